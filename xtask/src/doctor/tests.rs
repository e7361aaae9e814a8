use super::State;
use super::kernel::{lsm, options, version};
use super::privileges::{capabilities, unprivileged_bpf};

const CONFIG: &str = "CONFIG_BPF_SYSCALL=y\nCONFIG_CGROUP_BPF=y\nCONFIG_NET_CLS_ACT=y\nCONFIG_BPF_JIT=y\nCONFIG_BPF_LSM=y\n\
                      CONFIG_DEBUG_INFO_BTF=y\nCONFIG_NET_NS=y\nCONFIG_VETH=m\nCONFIG_NET_XGRESS=y\n\
                      CONFIG_LSM=\"landlock,yama,bpf\"\n# CONFIG_NET_CLS_BPF is not set\n";

#[test]
fn each_lacking_capability_is_a_line_with_its_use() {
    let all = capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
    assert!(matches!(&all[..], [one] if one.state == State::Good), "root has all");
    let few = capabilities("CapEff:\t0000000000002000\n");
    let names: Vec<_> = few.iter().map(|item| (item.found.split(':').next().unwrap_or(""), item.state)).collect();
    assert!(
        names.contains(&("lacks CAP_BPF", State::Missing)) && names.contains(&("lacks CAP_SYS_PTRACE", State::Weaker))
    );
    assert!(!names.iter().any(|(name, _)| name.ends_with("NET_RAW")), "bit 13 was set: {names:?}");
    assert_eq!(capabilities("nothing")[0].state, State::Unknown);
}

#[test]
fn unprivileged_bpf_is_a_weakness() {
    assert_eq!(unprivileged_bpf(Some("0\n")).state, State::Weaker);
    assert_eq!(unprivileged_bpf(Some("2\n")).state, State::Good);
    assert_eq!(unprivileged_bpf(None).state, State::Unknown);
}

#[test]
fn the_way_to_the_uplinks_depends_on_the_version() {
    assert_eq!(version("6.1.0-41-cloud-amd64"), (6, 1));
    assert_eq!(options(Some(CONFIG), (6, 18)).state, State::Good);
    let old = options(Some(CONFIG), (6, 1));
    assert_eq!((old.state, old.found.as_str()), (State::Missing, "lacks CONFIG_NET_SCH_INGRESS CONFIG_NET_CLS_BPF"));
    let weak = options(Some(&CONFIG.replace("CONFIG_BPF_LSM=y", "")), (6, 18));
    assert_eq!((weak.state, weak.found.as_str()), (State::Weaker, "lacks CONFIG_BPF_LSM"));
    assert_eq!(options(None, (6, 18)).state, State::Unknown);
}

#[test]
fn the_lsm_list_comes_from_securityfs_then_the_boot_line_then_the_default() {
    assert_eq!(lsm(Some("capability,bpf2"), "lsm=bpf", Some(CONFIG)).state, State::Weaker, "bpf2 is another");
    assert_eq!(lsm(Some("capability,bpf\n"), "", None).state, State::Good);
    assert_eq!(lsm(None, "quiet lsm=yama,bpf lsm=yama", Some(CONFIG)).state, State::Weaker, "the last one counts");
    assert_eq!(lsm(None, "quiet", Some(CONFIG)).state, State::Good);
    assert_eq!(lsm(None, "quiet", None).state, State::Unknown);
}
