//! What the cgroup's hook must know of veths to leave refused queries to the programs at their host sides (decision 0047).

use std::{collections::BTreeMap, os::fd::AsFd as _};

use egress_ebpf::abi::{INSIDES_MAX, InsideKey};

use super::{
    Datapath, Error, Object, Pins, Table,
    sys::{self, ANY},
    workload::{WORKLOAD_HOOK, WORKLOAD_PIN},
};

impl Datapath {
    /// Forgets the veths of an earlier daemon whose program is not known to be in force: to be called before anything is
    /// attached.
    pub fn keep_veths(&self, pins: Option<&Pins>) -> Result<(), Error> {
        let in_force = |index: u32| {
            let pin = |pins: &Pins| sys::open_pin(&pins.link(&format!("{WORKLOAD_PIN}{index}-{WORKLOAD_HOOK}")));
            let link = pins.and_then(|pins| pin(pins).ok());
            link.is_some_and(|link| sys::link_info(link.as_fd()).is_ok_and(|info| info.target == index))
        };
        veths(&self.object)?.remove_where(|index| !in_force(*index)).map(drop)
    }

    /// Forgets all veths but these.
    pub fn keep_only_veths(&self, wanted: impl Fn(u32) -> bool) -> Result<(), Error> {
        veths(&self.object)?.remove_where(|index| !wanted(*index))?;
        // Where governed sockets asked; another veth may get the index later.
        self.object.table::<u32, u32>("ASKING")?.remove_where(|index| !wanted(*index)).map(drop)
    }

    /// From here on refused queries are left to this veth's program, or no more.
    pub fn set_veth(&self, index: u32, in_force: bool) -> Result<(), Error> {
        let veths = veths(&self.object)?;
        if in_force { veths.set(&index, &[index, 0], ANY) } else { veths.remove(&index).map(drop) }
    }

    /// Writes down the other ends of governed veths, each with the index of its host side. What has no room is left out: its first
    /// refused queries get an error.
    pub fn set_insides(&self, wanted: &BTreeMap<InsideKey, u32>) -> Result<(), Error> {
        let table = self.object.table::<InsideKey, u32>("INSIDES")?;
        table.remove_where(|inside| !wanted.contains_key(inside))?;
        for (inside, host) in wanted.iter().take(INSIDES_MAX as usize) {
            if table.get(inside)? != Some(*host) {
                table.set(inside, host, ANY)?;
            }
        }
        Ok(())
    }
}

/// The value is the kernel's `bpf_devmap_val`: the interface, and no XDP program.
fn veths(object: &Object) -> Result<Table<u32, [u32; 2]>, Error> {
    object.table("VETHS")
}
