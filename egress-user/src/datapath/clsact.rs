//! Interfaces on kernels before 6.6, which have no tcx: a clsact filter at a fixed priority and handle, so that a later
//! daemon replaces it in place, with no moment between (`cls_bpf_change` in net/sched/cls_bpf.c swaps the program in the
//! list), and anyone can ask whether it is there.

use std::os::fd::AsRawFd as _;

use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle};
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

/// A filter of ours at an interface, which holds it.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    index: u32,
    name: &'static str,
}

/// Puts the program at the interface, in the place of an earlier daemon's.
pub(super) fn attach(object: &Object, name: &'static str, interface: &str, index: u32) -> Result<Filter, Error> {
    let failed = |source: std::io::Error| Error::Attach { what: format!("clsact of {interface}"), source };
    // "File exists" is what an interface says that has the qdisc already.
    let _ = tc::qdisc_add_clsact(interface);
    let (direction, handle) = (direction(name), handle(name));
    let filter = Filter { index, name };
    let mut program = object.classifier(name)?;
    let id = if filter.present() {
        let link = SchedClassifierLink::attached(interface, direction, PRIORITY, handle, None).map_err(failed)?;
        program.attach_to_link(link)
    } else {
        let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle, classid: None });
        program.attach_with_options(interface, direction, options)
    };
    let id = id.map_err(|error| failed(std::io::Error::other(error)))?;
    // The filter belongs to the interface from here on; dropping the link would take it away.
    std::mem::forget(program.take_link(id).map_err(|error| failed(std::io::Error::other(error)))?);
    Ok(filter)
}

/// Removes egress' filters from an interface; gives their names. There are none where tcx is used.
pub fn remove(interface: &str) -> Vec<String> {
    FILTERS
        .into_iter()
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
        const NLM_F_REQUEST: u16 = 1;
        const ETH_P_ALL: u16 = 3;
        // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or TC_H_MIN_EGRESS) of linux/pkt_sched.h.
        let parent: u32 = if matches!(direction(self.name), TcAttachType::Ingress) { 0xffff_fff2 } else { 0xffff_fff3 };
        let info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
        // struct nlmsghdr, then struct tcmsg: its family and padding, interface, handle, parent, info.
        let mut request = Vec::with_capacity(36);
        request.extend(36_u32.to_ne_bytes());
        request.extend(libc::RTM_GETTFILTER.to_ne_bytes());
        request.extend(NLM_F_REQUEST.to_ne_bytes());
        for word in [1, 0, 0, self.index, u32::from(handle(self.name)), parent, info] {
            request.extend(word.to_ne_bytes());
        }
        let netlink =
            socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        socket::sendto(netlink.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut reply = vec![0; 8192];
        let length = socket::recv(netlink.as_raw_fd(), &mut reply, MsgFlags::empty())?;
        reply.truncate(length);
        Ok(reply)
    }
}
