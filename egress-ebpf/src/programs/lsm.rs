//! BPF LSM: a governed workload gets no socket that sends past the egress hooks.
//!
//! AF_XDP hands frames to the driver, and AF_PACKET with PACKET_QDISC_BYPASS skips the queueing layer, where tc's egress
//! hook is; neither has a packet that a cgroup's hooks see. LSM programs are called for every process of the machine, so
//! whose process it is comes first.

use aya_ebpf::{
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id},
    macros::lsm,
    programs::LsmContext,
};
use egress_ebpf::{abi::Config, abi::HOOK_LSM, reason::Reason};

use super::{clock::exact, report, tables::live_by};

/// AF_XDP, `include/linux/socket.h`.
const AF_XDP: i32 = 44;
/// SOL_PACKET, `include/linux/socket.h`.
const SOL_PACKET: i32 = 263;
/// PACKET_QDISC_BYPASS, `include/uapi/linux/if_packet.h`.
const PACKET_QDISC_BYPASS: i32 = 20;
const EPERM: i32 = 1;
/// The largest error number that a hook may return, negated (MAX_ERRNO).
const MAX_ERRNO: i32 = 4095;

/// `int socket_create(int family, int type, int protocol, int kern)`.
#[lsm(hook = "socket_create")]
pub fn lsm_socket_create(ctx: LsmContext) -> i32 {
    let (family, kern, earlier) = (ctx.arg::<i32>(0), ctx.arg::<i32>(3), ctx.arg::<i32>(4));
    if earlier != 0 {
        return defer(earlier);
    }
    let Some(config) = governing() else { return 0 };
    if family != AF_XDP || kern != 0 {
        return 0;
    }
    refuse(config)
}

/// `int socket_setsockopt(struct socket *sock, int level, int optname)`.
#[lsm(hook = "socket_setsockopt")]
pub fn lsm_socket_setsockopt(ctx: LsmContext) -> i32 {
    let (level, option, earlier) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2), ctx.arg::<i32>(3));
    if earlier != 0 {
        return defer(earlier);
    }
    let Some(config) = governing() else { return 0 };
    if level != SOL_PACKET || option != PACKET_QDISC_BYPASS {
        return 0;
    }
    refuse(config)
}

/// What an earlier program on this hook said, within what the verifier lets a hook return.
#[inline(always)]
fn defer(earlier: i32) -> i32 {
    if (-MAX_ERRNO..0).contains(&earlier) { earlier } else { -EPERM }
}

/// How deep a governed cgroup is looked for where its own depth is not known.
const DEPTHS: u32 = 64;

/// The live policy, if it governs the process that is running.
#[inline(always)]
fn governing() -> Option<&'static Config> {
    let config = live_by(exact)?;
    // SAFETY: helper 123 takes a depth, and gives 0 where the process's cgroup is not as deep as that.
    let ancestor = |depth: u32| unsafe { bpf_get_current_ancestor_cgroup_id(depth as i32) };
    if config.cgroup_id == 0 {
        return None;
    }
    if config.cgroup_level != Config::LEVEL_UNKNOWN {
        return (ancestor(config.cgroup_level) == config.cgroup_id).then_some(config);
    }
    for depth in 0..DEPTHS {
        match ancestor(depth) {
            0 => return None,
            id if id == config.cgroup_id => return Some(config),
            _ => {}
        }
    }
    None
}

#[inline(never)]
fn refuse(config: &Config) -> i32 {
    let sender = report::Sender {
        hook: HOOK_LSM,
        bytes: 0,
        ifindex: 0,
        // SAFETY: helper 80 takes nothing.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        netns: 0,
        process: report::current_process(),
    };
    report::refused(config, &report::unknown(), report::Refused::plain(Reason::Bypass).pack(), &sender);
    if config.has(Config::ENFORCE) { -EPERM } else { 0 }
}
