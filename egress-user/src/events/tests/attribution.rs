use std::{fs, os::unix::fs::MetadataExt, os::unix::fs::symlink, path::Path, time::Duration};

use super::*;

/// `comm` stands between parentheses; the 20th field after it is the start in ticks of 10 ms.
fn fake_process(root: &Path, pid: u32, comm: &str, started: u64) {
    let directory = root.join(pid.to_string());
    fs::create_dir_all(&directory).unwrap();
    let stat = format!("{pid} ({comm}) S 77 {} {started} 0 0", vec!["0"; 17].join(" "));
    fs::write(directory.join("stat"), stat).unwrap();
    fs::write(directory.join("cgroup"), "0::/demo.slice/x.scope\n").unwrap();
    symlink("/usr/bin/cu\x1brl", directory.join("exe")).unwrap();
}

fn enricher(root: &Path) -> Enricher {
    Enricher::new(Roots {
        proc: root.join("proc"),
        cgroup: root.join("cgroup"),
        pods: root.join("pods"),
        interface: |index| Some(format!("eth{index}")),
    })
}

fn process_of(enricher: &mut Enricher, event: DropEvent) -> ProcessInfo {
    let event = enricher.enrich_at(&RawEvent::Drop(Box::new(event)), &Nothing, &CLOCK);
    event.refusal().unwrap().process.clone().unwrap()
}

#[test]
fn a_process_is_attributed_while_it_lives_and_shortly_after() {
    let root = tempfile::tempdir().unwrap();
    // The event is at 1,499 s of the boot clock.
    fake_process(&root.path().join("proc"), 1234, "cu) R 1 (rl", 149_800);
    let mut enricher = enricher(root.path());
    let found = process_of(&mut enricher, refused());
    let whole = ProcessInfo {
        pid: 1234,
        comm: "curl".into(),
        exe: Some(r"/usr/bin/cu\u{1b}rl".into()),
        uid: 1000,
        ppid: Some(77),
    };
    assert_eq!(found, whole);
    fs::remove_dir_all(root.path().join("proc/1234")).unwrap();
    assert_eq!(process_of(&mut enricher, refused()), whole);
    let gone = ProcessInfo { exe: None, ppid: None, ..whole.clone() };
    let later = DropEvent { time: refused().time + 11_000_000_000, ..refused() };
    assert_eq!(process_of(&mut enricher, later), gone);
    // Another command with the same id is not taken for it.
    let other = DropEvent { process: Process { comm: comm(b"wget"), ..refused().process }, ..refused() };
    assert_eq!(process_of(&mut enricher, other), ProcessInfo { comm: "wget".into(), ..gone });
}

#[test]
fn a_process_that_began_after_the_event_is_another() {
    let root = tempfile::tempdir().unwrap();
    fake_process(&root.path().join("proc"), 1234, "curl", 149_950);
    assert_eq!(process_of(&mut enricher(root.path()), refused()).exe, None);
}

#[test]
fn no_process_is_none_and_broken_files_are_no_error() {
    assert_eq!(refusal(DropEvent { process: Process::default(), ..refused() }).process, None);
    let root = tempfile::tempdir().unwrap();
    for stat in [&b""[..], b"1234 (curl", b"1234 (curl)", b"1234 (curl) S x", b"\xff) \xff"] {
        fs::create_dir_all(root.path().join("proc/1234")).unwrap();
        fs::write(root.path().join("proc/1234/stat"), stat).unwrap();
        assert_eq!(process_of(&mut enricher(root.path()), refused()).ppid, None);
    }
}

/// The uid is in the cgroup's path, the rest in the kubelet's directory of logs.
#[test]
fn a_pod_is_told_by_namespace_and_name() {
    let root = tempfile::tempdir().unwrap();
    let slice = "kubepods.slice/kubepods-pod1b2c3d4e_0000_4000_8000_0123456789ab.slice/cri-containerd-x.scope";
    let cgroup = root.path().join("cgroup").join(slice);
    fs::create_dir_all(&cgroup).unwrap();
    let event = DropEvent { cgroup: fs::metadata(&cgroup).unwrap().ino(), ..refused() };
    let of = |enricher: &mut Enricher| {
        let event = enricher.enrich_at(&RawEvent::Drop(Box::new(event)), &Nothing, &CLOCK);
        let refusal = event.refusal().unwrap();
        assert_eq!(refusal.pod_uid.as_deref(), Some("1b2c3d4e-0000-4000-8000-0123456789ab"));
        (refusal.pod_namespace.clone(), refusal.pod_name.clone())
    };
    assert_eq!(of(&mut enricher(root.path())), (None, None));
    let pod = root.path().join("pods/shop_cart-0_1b2c3d4e-0000-4000-8000-0123456789ab");
    fs::create_dir_all(pod).unwrap();
    assert_eq!(of(&mut enricher(root.path())), (Some("shop".into()), Some("cart-0".into())));
    let event = enricher(root.path()).enrich_at(&RawEvent::Drop(Box::new(event)), &Nothing, &CLOCK);
    assert_eq!(
        event.refusal().unwrap().place().as_deref(),
        Some("pod shop/cart-0"),
        "as `learn` and `report` write it"
    );
}

#[test]
fn cgroup_ids_become_paths_and_stay_known() {
    let root = tempfile::tempdir().unwrap();
    let slice = root.path().join("demo.slice");
    fs::create_dir_all(slice.join("x\n.scope")).unwrap();
    let id = |path: &Path| fs::metadata(path).unwrap().ino();
    let (root_id, slice_id, scope_id) = (id(root.path()), id(&slice), id(&slice.join("x\n.scope")));
    let mut paths = CgroupPaths::new(root.path()).with_pause(Duration::ZERO);
    assert_eq!(paths.path(root_id).as_deref(), Some("/"));
    assert_eq!(paths.path(slice_id).as_deref(), Some("/demo.slice"));
    fs::remove_dir_all(&slice).unwrap();
    assert_eq!(paths.path(scope_id).as_deref(), Some(r"/demo.slice/x\n.scope"));
    assert_eq!((paths.path(0), paths.path(u64::MAX)), (None, None));
}

#[test]
fn unknown_cgroup_ids_do_not_walk_the_tree_each_time() {
    let root = tempfile::tempdir().unwrap();
    let mut paths = CgroupPaths::new(root.path()).with_pause(Duration::from_secs(3600));
    assert_eq!(paths.path(u64::MAX), None);
    let late = root.path().join("late");
    fs::create_dir(&late).unwrap();
    let id = fs::metadata(&late).unwrap().ino();
    assert_eq!(paths.path(id), None, "no second walk so soon");
    assert_eq!(paths.path_with_hint(id, || Some(b"/../elsewhere".to_vec())), None, "a wrong hint is not believed");
    assert_eq!(paths.path_with_hint(id, || Some(b"/../late".to_vec())).as_deref(), Some("/late"));
}

/// A container's cgroup may be gone before its event is looked at: it was heard of when it was made.
#[test]
fn a_cgroup_that_is_gone_was_heard_of() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("early")).unwrap();
    let mut paths = CgroupPaths::new(root.path()).with_pause(Duration::from_secs(3600));
    paths.watch();
    for name in ["early/one", "two", "three/four/five"] {
        fs::create_dir_all(root.path().join(name)).unwrap();
        let id = fs::metadata(root.path().join(name)).unwrap().ino();
        paths.hear();
        fs::remove_dir(root.path().join(name)).unwrap();
        paths.hear();
        assert_eq!(paths.path(id), Some(format!("/{name}")));
    }
}

#[test]
fn a_drop_tells_its_cgroup_container_and_interface() {
    let root = tempfile::tempdir().unwrap();
    let id = "c".repeat(64);
    let scope = root.path().join(format!("cgroup/docker-{id}.scope"));
    fs::create_dir_all(&scope).unwrap();
    let cgroup = fs::metadata(&scope).unwrap().ino();
    let event = DropEvent { cgroup, ifindex: 3, hook: abi::HOOK_UPLINK_EGRESS, ..refused() };
    let mut enricher = enricher(root.path());
    let event = enricher.enrich_at(&RawEvent::Drop(Box::new(event)), &Nothing, &CLOCK);
    let refusal = event.refusal().unwrap();
    assert_eq!(refusal.cgroup, Some(format!("/docker-{id}.scope")));
    assert_eq!(refusal.container, Some(Container { runtime: Some("docker".into()), id }));
    assert_eq!((refusal.interface.as_deref(), refusal.cgroup_id), (Some("eth3"), Some(cgroup)));
    // An index in a workload's namespace says nothing about the host's interfaces.
    let inside = DropEvent { ifindex: 3, hook: abi::HOOK_CGROUP_EGRESS, ..refused() };
    let event = enricher.enrich_at(&RawEvent::Drop(Box::new(inside)), &Nothing, &CLOCK);
    assert_eq!(
        (event.refusal().unwrap().interface.as_deref(), event.refusal().unwrap().interface_index),
        (None, Some(3))
    );
}

struct Policy;

impl Known for Policy {
    fn names(&self, _: IpAddr) -> Vec<String> {
        vec!["b.example".into(), "new.example".into()]
    }
    fn deny_rule(&self, destination: IpAddr, protocol: u8, port: u16) -> Option<String> {
        Some(format!("no-{destination}-{protocol}-{port}"))
    }
    fn name_rules(&self, _: &str) -> Vec<String> {
        vec!["images".into()]
    }
}

#[test]
fn names_learned_earlier_and_rules_are_told() {
    let mut enricher = nowhere();
    let mut feed = |raw: RawEvent, known: &dyn Known| enricher.enrich_at(&raw, known, &CLOCK);
    for name in ["a.example", "b.example", "a.example"] {
        let event = feed(RawEvent::Learned(Box::new(answered(name))), &Policy);
        let Kind::Learned(learned) = event.kind else { panic!("{event:?}") };
        assert_eq!((learned.name.as_str(), learned.rules), (name, vec!["images".to_owned()]));
        // Tick 1,000 is second 1,073.74; the answer came at 998.
        assert_eq!((learned.addresses[0].ttl, learned.addresses[0].seconds_left), (60, Some(75)));
    }
    let names = |event: &Event| event.refusal().unwrap().names.clone();
    let offline = feed(RawEvent::Drop(Box::new(refused())), &Nothing);
    assert_eq!(names(&offline), ["a.example", "b.example"]);
    let denied = DropEvent { reason: Reason::Denied as u8, ..refused() };
    let live = feed(RawEvent::Drop(Box::new(denied)), &Policy);
    assert_eq!(names(&live), ["a.example", "b.example", "new.example"]);
    assert_eq!(live.refusal().unwrap().rule.as_deref(), Some("no-203.0.113.9-6-443"));
    assert_eq!(feed(RawEvent::Drop(Box::new(refused())), &Policy).refusal().unwrap().rule, None);
}
