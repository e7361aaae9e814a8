//! The ways by which a packet gets to the uplink.

use std::time::Duration;

use egress_tests::daemon::patient;
use egress_tests::probe::{send_frame, send_ip};
use egress_tests::world::{POD_VETH, UPLINK};
use egress_tests::{Governed, World};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::made::Part;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A raw socket of a governed process.
    Raw = 1,
    /// AF_PACKET at the uplink, of a governed process.
    Packet = 2,
    /// A raw socket of the node, outside the governed cgroup.
    Beside = 3,
    /// AF_PACKET at the uplink, outside the governed cgroup.
    BesidePacket = 4,
    /// A raw socket in a container that is not governed: the node forwards.
    Forwarded = 5,
    /// AF_PACKET in a governed container, at its end of the veth: judged there first.
    Container = 6,
}

pub const WAYS: [Way; 6] = [Way::Raw, Way::Packet, Way::Beside, Way::BesidePacket, Way::Forwarded, Way::Container];

impl Way {
    pub const fn is_pods(self) -> bool {
        matches!(self, Self::Forwarded | Self::Container)
    }

    /// Whether a packet that is longer than it says goes on as it is.
    pub const fn keeps_lies(self, six: bool) -> bool {
        matches!(self, Self::Packet | Self::BesidePacket) || (six && matches!(self, Self::Raw | Self::Beside))
    }

    /// Sends all of them, in order, by one process. The errors of the system calls, 0 for none.
    pub fn send(self, world: &World, governed: Option<&Governed>, parts: &[&Part]) -> Vec<i32> {
        let mut place = if self.is_pods() { world.pod() } else { world.node() };
        if let Some(test) = governed
            && matches!(self, Self::Raw | Self::Packet | Self::Container)
        {
            place = place.in_cgroup(&test.cgroup);
        }
        let (uplink, veth) = (world.world_ns.mac("wup0").unwrap(), world.node_ns.mac(POD_VETH).unwrap());
        let sent = place.fork(patient(Duration::from_secs(20)), || {
            // On one processor: two would forward out of order.
            let mut one = CpuSet::new();
            one.set(sched_getcpu()?)?;
            sched_setaffinity(Pid::from_raw(0), &one)?;
            let send = |part: &Part| match self {
                Self::Raw | Self::Beside | Self::Forwarded => send_ip(&part.packet, part.to),
                Self::Packet | Self::BesidePacket => send_frame(UPLINK, uplink, &part.packet),
                Self::Container => send_frame("eth0", veth, &part.packet),
            };
            let error = |part: &&Part| send(part).map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
            Ok(parts.iter().map(error).collect())
        });
        sent.unwrap()
    }
}
