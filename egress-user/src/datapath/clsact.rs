//! Interfaces on kernels before 6.6, which have no tcx: a clsact filter at a fixed priority and handle, so that a later
//! daemon replaces it in place, with no moment between (`cls_bpf_change` in net/sched/cls_bpf.c swaps the program in the
//! list), and anyone can ask whether it is there.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::programs::tc::{self, TcAttachType, TcHandle};
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

use super::{Error, Object};

/// First, as a filter before ours may end the chain.
const PRIORITY: u16 = 1;
/// Ours among the filters of that priority; others let the kernel count up from 1. An interface can be an uplink and a
/// workload's, which have one each.
const UPLINK_HANDLE: TcHandle = TcHandle::new(0xe9e5, 1);
const WORKLOAD_HANDLE: TcHandle = TcHandle::new(0xe9e5, 2);

const FILTERS: [&str; 6] = [
    super::WORKLOAD_HOOK,
    super::DENIAL_HOOK,
    "uplink_ingress",
    "uplink_egress",
    "uplink_ingress_l3",
    "uplink_egress_l3",
];

fn direction(name: &str) -> TcAttachType {
    if name.starts_with("uplink_egress") || name == super::DENIAL_HOOK {
        TcAttachType::Egress
    } else {
        TcAttachType::Ingress
    }
}

fn handle(name: &str) -> TcHandle {
    if name == super::WORKLOAD_HOOK { WORKLOAD_HANDLE } else { UPLINK_HANDLE }
}

const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
// linux/pkt_cls.h
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;

/// A netlink attribute: its length without the padding, its kind, its bytes.
fn attribute(kind: u16, bytes: &[u8]) -> Vec<u8> {
    let length = 4 + bytes.len();
    let mut attribute = [(length as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(bytes);
    attribute.resize(length.next_multiple_of(4), 0);
    attribute
}

/// A filter of ours at an interface, which holds it.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    index: u32,
    name: &'static str,
}

/// Puts the program at the interface, in the place of an earlier daemon's.
pub(super) fn attach(object: &Object, name: &'static str, interface: &str, index: u32) -> Result<Filter, Error> {
    // "File exists" is what an interface says that has the qdisc already.
    let _ = tc::qdisc_add_clsact(interface);
    let filter = Filter { index, name };
    let put = filter.put(object.program(name)?);
    put.map_err(|source| Error::Attach { what: format!("clsact of {interface}"), source })?;
    Ok(filter)
}

/// Removes egress' filters from an interface; gives their names. There are none where tcx is used.
pub fn remove(interface: &str) -> Vec<String> {
    remove_where(interface, |_| true)
}

/// Removes those of egress' filters at an interface whose name is said so of.
pub fn remove_where(interface: &str, goes: impl Fn(&str) -> bool) -> Vec<String> {
    FILTERS
        .into_iter()
        .filter(|name| goes(name))
        // No such filter, or no clsact at all: nothing to remove.
        .filter(|name| tc::qdisc_detach_program(interface, direction(name), name).is_ok())
        .map(|name| format!("filter {name} of {interface}"))
        .collect()
}

/// Removes one of them, if it is there.
pub fn remove_one(interface: &str, name: &str) {
    let _ = tc::qdisc_detach_program(interface, direction(name), name);
}

impl Filter {
    /// Whether the interface has it now, by the kernel's answer. A kernel that cannot be asked counts as no.
    pub fn present(&self) -> bool {
        self.ask().is_ok_and(|reply| {
            // Of the answer's attributes the name says that the filter is ours; it ends in a NUL byte (TCA_BPF_NAME).
            let name = [self.name.as_bytes(), b"\0"].concat();
            reply.windows(name.len()).any(|window| window == name)
        })
    }

    /// RTM_GETTFILTER for this one filter; the answer, or an error message of the kernel, as it is.
    fn ask(&self) -> nix::Result<Vec<u8>> {
        self.say(libc::RTM_GETTFILTER, 0, &[])
    }

    /// RTM_NEWTFILTER with this program, by the descriptor that is held: to find it by its id takes CAP_SYS_ADMIN, which the running daemon
    /// has given up. What the interface has as this filter is replaced.
    fn put(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        // linux/pkt_cls.h: the program's verdict is the action.
        const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
        let (fd, name) = (program.as_raw_fd().to_ne_bytes(), [self.name.as_bytes(), b"\0"].concat());
        let options = [
            attribute(TCA_BPF_FD, &fd),
            attribute(TCA_BPF_NAME, &name),
            attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
        ];
        let attributes = [attribute(libc::TCA_KIND, b"bpf\0"), attribute(libc::TCA_OPTIONS, &options.concat())];
        let reply = self.say(libc::RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE, &attributes.concat())?;
        // NLMSG_ERROR with 0 is yes: struct nlmsghdr, then the negative errno.
        let is_answer = reply.get(4..6) == Some(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        match reply.get(16..20).and_then(|errno| errno.try_into().ok()).map(i32::from_ne_bytes) {
            Some(0) if is_answer => Ok(()),
            Some(errno) if is_answer => Err(io::Error::from_raw_os_error(-errno)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// One message about this filter; what the kernel says to it.
    fn say(&self, kind: u16, flags: u16, attributes: &[u8]) -> nix::Result<Vec<u8>> {
        const NLM_F_REQUEST: u16 = 1;
        const ETH_P_ALL: u16 = 3;
        // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS) of linux/pkt_sched.h.
        let parent: u32 = if matches!(direction(self.name), TcAttachType::Ingress) { 0xffff_fff2 } else { 0xffff_fff3 };
        let info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
        // struct nlmsghdr, then struct tcmsg: its family and padding, interface, handle, parent, info.
        let length = 36 + attributes.len();
        let mut request = Vec::with_capacity(length);
        request.extend((length as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        for word in [1, 0, 0, self.index, u32::from(handle(self.name)), parent, info] {
            request.extend(word.to_ne_bytes());
        }
        request.extend(attributes);
        let netlink =
            socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        socket::sendto(netlink.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut reply = vec![0; 8192];
        let length = socket::recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
        reply.truncate(length);
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::Sizes;

    /// As the running daemon attaches what appears later. On loopback of a network namespace that the thread has to itself.
    #[test]
    fn a_filter_is_put_and_replaced_without_cap_sys_admin() {
        let sizes = Sizes { addresses: 64, prefixes: 64, classes: 64, grants: 64, names: 64, inner: 64, flows: 64 };
        let object = Object::load(&sizes, None).expect("the object loads: needs root");
        for name in ["uplink_egress", "uplink_egress_l3"] {
            object.program(name).unwrap();
        }
        let alone = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN).unwrap();
            let first = attach(&object, "uplink_egress", "lo", 1).unwrap();
            assert!(first.present());
            let second = attach(&object, "uplink_egress_l3", "lo", 1).unwrap();
            assert_eq!((first.present(), second.present()), (false, true), "one took the other's place");
            assert_eq!(remove("lo"), ["filter uplink_egress_l3 of lo"]);
            let gone = attach(&object, "uplink_egress", "none", 99).unwrap_err();
            assert!(
                matches!(&gone, Error::Attach { source, .. } if source.raw_os_error() == Some(libc::ENODEV)),
                "{gone}"
            );
        };
        std::thread::spawn(alone).join().unwrap();
    }
}
