//! From a workload's own network namespace to the host side of its veth: where the cgroup's hook may let a refused query go,
//! since the program there judges it again, and answers it (decision 0047).
//!
//! An interface's index says nothing in a namespace that is not the daemon's. So a way counts when a query was seen to
//! arrive by it, or, for the first ones, when its index and its source's address are those of a governed veth's other end.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC},
    btf_maps::{DevMapHash, HashMap, LruHashMap},
    macros::btf_map,
};
use egress_ebpf::{
    abi::{
        Address, Config, INSIDES_MAX, InsideKey, PATHS_MAX, Path, PathKey, SocketState, UNSEEN_FIRST, UNSEEN_MAX,
        WORKLOADS_MAX,
    },
    atomic,
};

use super::{
    cgroup_skb::LOOPBACK_IFINDEX,
    clock::now,
    skb::socket,
    sockets,
    uplink::{AF_INET, AF_INET6},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// The host sides of veths whose program is in force, by index: a map of devices as `UPLINKS` is one.
#[btf_map]
pub static VETHS: DevMapHash<{ WORKLOADS_MAX as usize }> = DevMapHash::new();

/// The ways that were taken.
#[btf_map]
pub static PATHS: LruHashMap<PathKey, Path, { PATHS_MAX as usize }> = LruHashMap::new();

/// The other ends of governed veths, as the daemon knows them.
#[btf_map]
pub static INSIDES: HashMap<InsideKey, u32, { INSIDES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// The host sides of veths, by index, that governed sockets ask by: there a query is judged whoever sends it.
#[btf_map]
pub static ASKING: HashMap<u32, u32, { WORKLOADS_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// Notes by which interface an allowed query of another network namespace leaves.
// Not inlined, for the stack's sake.
#[inline(never)]
pub fn asks(skb: *mut __sk_buff, config: &Config) {
    if config.teaching_netns == 0 {
        return;
    }
    let Some(sk) = socket(skb) else { return };
    let Some(state) = sockets::state(sk) else { return };
    if is_elsewhere(config, state) {
        // SAFETY: the context is valid.
        note(state, unsafe { (*skb).ifindex }, None);
    }
}

/// Whether a refused query goes to a veth whose host side refuses it again, and answers.
// Not inlined, for the stack's sake.
#[inline(never)]
pub fn lead_to_a_veth(skb: *mut __sk_buff, config: &Config, source: &Address) -> bool {
    let Some(sk) = socket(skb) else { return false };
    let Some(state) = sockets::state(sk) else { return false };
    // SAFETY: the context is valid.
    let ifindex = unsafe { (*skb).ifindex };
    is_elsewhere(config, state)
        && ifindex != LOOPBACK_IFINDEX
        && governed(state.netns, ifindex, source)
        && note(state, ifindex, Some(config))
}

#[inline(always)]
fn is_elsewhere(config: &Config, state: &SocketState) -> bool {
    config.teaching_netns != 0 && state.netns != 0 && state.netns != config.teaching_netns
}

#[inline(never)]
fn governed(netns: u64, ifindex: u32, source: &Address) -> bool {
    let key = PathKey { netns, ifindex, pad: 0 };
    if let Some(path) = PATHS.get_ptr_mut(&key) {
        // SAFETY: an entry of a map, valid until the program ends; the count is only used atomically.
        let (host, unseen) = unsafe { ((*path).host, &raw mut (*path).unseen) };
        if VETHS.get_ifindex(host).is_some() {
            // SAFETY: as above.
            return unsafe { atomic::fetch_add(unseen, 1) } < UNSEEN_MAX;
        }
    }
    let inside = InsideKey { address: *source, ifindex, pad: 0 };
    // SAFETY: the value is a plain word, copied at once.
    let Some(host) = (unsafe { INSIDES.get(&inside) }).copied() else { return false };
    let path = Path { unseen: UNSEEN_MAX - UNSEEN_FIRST + 1, host, pad: 0 };
    VETHS.get_ifindex(host).is_some() && ASKING.insert(&host, &host, 0).is_ok() && PATHS.insert(&key, &path, 0).is_ok()
}

/// Whether every query of this socket, this one too, leaves by this interface. That one is let go by a policy, `left_by`, is
/// written down with it.
#[inline(never)]
fn note(state: &mut SocketState, ifindex: u32, left_by: Option<&Config>) -> bool {
    let own = u64::from(ifindex);
    if let Some(config) = left_by {
        (state.left, state.left_by) = (now(), config.generation);
    }
    let way = &raw mut state.way;
    // SAFETY: the socket's own storage, which lives until the program ends. Whichever interface is written first stays, or gives
    // way to `MIXED` before a packet goes by another one: so what the host side reads was true of the packet that arrived.
    unsafe {
        if atomic::load(way) != own {
            atomic::replace(way, 0, own);
        }
        if left_by.is_some() {
            atomic::replace(way, own, own | SocketState::LEFT);
        }
        let now = atomic::load(way);
        if now & !SocketState::LEFT != own {
            ptr::write_volatile(way, SocketState::MIXED);
            return false;
        }
        left_by.is_none() || now & SocketState::LEFT != 0
    }
}

/// Who judged a datagram that arrives at the host side of a veth.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// The cgroup's hook, or it is of nobody who is governed.
    Elsewhere,
    /// The cgroup's hook may have refused it, and told of that.
    Left,
    /// Perhaps nobody.
    Unknown,
    /// The hook may have refused it as a query to what the policy of a moment ago had for a resolver.
    Former,
}

/// Takes the arrival of a query at the host side `index` for a proof of the way that it came, and says whether it is to be
/// judged there. `query` says whether the datagram goes to a resolver.
#[inline(never)]
pub fn arrives(skb: *mut __sk_buff, config: &Config, index: u32, query: bool) -> Judged {
    // SAFETY: a full socket's fields may be read.
    let sk = socket(skb).filter(|sk| unsafe { (**sk).family == AF_INET || (**sk).family == AF_INET6 });
    let Some(sk) = sk else {
        // Forwarded inside, or sent below the sockets. With the machine's root governed everybody is.
        if !query {
            return Judged::Elsewhere;
        }
        // SAFETY: only whether there is an entry is looked at.
        let asked_by = unsafe { ASKING.get(&index) }.is_some();
        let asking = asked_by || (config.cgroup_id != 0 && config.cgroup_level == 0);
        return if asking { Judged::Unknown } else { Judged::Elsewhere };
    };
    // Whatever the cgroup's hook let go has this.
    let Some(state) = sockets::state(sk) else { return Judged::Elsewhere };
    // SAFETY: as in `note`.
    let way = unsafe { atomic::load(&raw const state.way) };
    if !query {
        let lately = state.left_by != config.generation && now().wrapping_sub(state.left) <= 1;
        return if way & SocketState::LEFT != 0 && lately { Judged::Former } else { Judged::Elsewhere };
    }
    if way == SocketState::MIXED {
        return Judged::Left;
    }
    if way != 0 {
        seen(PathKey { netns: state.netns, ifindex: way as u32, pad: 0 }, index);
    }
    if way & SocketState::LEFT == 0 { Judged::Elsewhere } else { Judged::Left }
}

#[inline(never)]
fn seen(key: PathKey, host: u32) {
    if let Some(path) = PATHS.get_ptr_mut(&key) {
        // SAFETY: an entry of a map, valid until the program ends.
        unsafe {
            if (*path).host == host {
                if (*path).unseen != 0 {
                    ptr::write_volatile(&raw mut (*path).unseen, 0);
                }
                return;
            }
        }
    }
    // A failure leaves the way unknown: there the sender gets an error.
    if ASKING.insert(&host, &host, 0).is_ok() {
        let _ = PATHS.insert(&key, &Path { unseen: 0, host, pad: 0 }, 0);
    }
}
