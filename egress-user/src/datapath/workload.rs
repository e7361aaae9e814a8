//! The host side of workloads' veths: the program at its ingress, and the map that tells workloads' interfaces.

use std::collections::BTreeMap;

use egress_ebpf::abi::LEADS_OUT;

use super::{
    Attached, Datapath, Error, Pins,
    attach::link,
    clsact,
    sys::{self, AttachType},
};

/// The program, and how its attachments are told in `status`.
pub const WORKLOAD_HOOK: &str = "workload_ingress";
/// What the pinned links of workloads begin with; the interface's index follows.
pub const WORKLOAD_PIN: &str = "veth";

/// The host side of a workload's veth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// The index of the bridge that it is a port of, if it is.
    pub bridge: Option<u32>,
    /// Whether that bridge leads out of the node too.
    pub bridge_leads_out: bool,
}

impl Workload {
    /// Where its link is pinned.
    pub fn pin(&self) -> String {
        format!("{WORKLOAD_PIN}{}-{WORKLOAD_HOOK}", self.index)
    }
}

impl Datapath {
    /// Attaches the program to a workload's veth: by tcx, or by clsact where the kernel (before 6.6) has no tcx.
    ///
    /// # Errors
    /// [`Error::Attach`]; with [`std::io::ErrorKind::NotFound`] or ENODEV where the veth is gone meanwhile.
    pub fn attach_workload(&mut self, workload: &Workload, pins: Option<&Pins>) -> Result<Attached, Error> {
        let pin = pins.map(|pins| pins.link(&workload.pin()));
        let program = self.object.program(WORKLOAD_HOOK)?;
        let mut filter = None;
        let link = match link(program, workload.index, AttachType::TcxIngress, pin.as_deref()) {
            Ok(link) => Some(link),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                filter = Some(clsact::attach(&self.object, WORKLOAD_HOOK, &workload.name, workload.index)?);
                None
            }
            Err(source) => {
                return Err(Error::Attach { what: format!("{WORKLOAD_HOOK} of {}", workload.name), source });
            }
        };
        Ok(Attached {
            hook: WORKLOAD_HOOK,
            target: workload.name.clone(),
            interface: workload.index,
            link,
            pin: None,
            filter,
        })
    }

    /// Writes down which interfaces are workloads', and by which the routes to each lead: see map `WORKLOADS`.
    ///
    /// # Errors
    /// The first one that could not be written; the rest is tried all the same.
    pub fn set_workloads(&self, workloads: &[Workload]) -> Result<(), Error> {
        let table = self.object.table::<u32, u32>("WORKLOADS")?;
        let wanted = elements(workloads);
        table.remove_where(|index| !wanted.contains_key(index))?;
        let mut first = Ok(());
        for (index, device) in &wanted {
            if table.get(index)? != Some(*device) {
                first = first.and(table.set(index, device, sys::ANY));
            }
        }
        first
    }
}

/// The map's elements: each veth, and each bridge that does not lead out. Where one leads out, the routes by it lead outside: not all
/// that is behind it is behind the veth; which bridge it is a second element says.
fn elements(workloads: &[Workload]) -> BTreeMap<u32, u32> {
    let mut elements = BTreeMap::new();
    for workload in workloads {
        let bridge = workload.bridge.filter(|_| !workload.bridge_leads_out);
        elements.insert(workload.index, bridge.unwrap_or(workload.index));
        let outward = workload.bridge.filter(|_| workload.bridge_leads_out);
        elements.extend(outward.map(|bridge| (workload.index | LEADS_OUT, bridge)));
        elements.extend(bridge.map(|bridge| (bridge, bridge)));
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bridge_that_leads_out_is_no_workloads() {
        let veth = |index, bridge, bridge_leads_out| Workload {
            name: format!("veth{index}"),
            index,
            bridge,
            bridge_leads_out,
        };
        let given = [veth(5, None, false), veth(6, Some(3), false), veth(7, Some(3), false), veth(8, Some(4), true)];
        assert_eq!(elements(&given), BTreeMap::from([(3, 3), (5, 5), (6, 3), (7, 3), (8, 8), (8 | LEADS_OUT, 4)]));
    }
}
