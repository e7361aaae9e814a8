//! The kernel's address maps, read back: what an attack must not have put there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use egress_ebpf::abi::{AddressEntry, AddressKey4, AddressKey6};
use egress_user::datapath::{Pins, Table, sys};

use crate::mntns::BPFFS;
use crate::world::World;

/// Every address that any generation of the pinned maps holds.
pub fn addresses(world: &World) -> Result<BTreeSet<IpAddr>> {
    world.mounts.run(|| {
        let pins = Pins::new(Path::new(BPFFS));
        let four = Table::<AddressKey4, AddressEntry>::new("ADDRESSES_4", sys::open_pin(&pins.map("ADDRESSES_4"))?)?;
        let six = Table::<AddressKey6, AddressEntry>::new("ADDRESSES_6", sys::open_pin(&pins.map("ADDRESSES_6"))?)?;
        let four = four.keys()?.into_iter().map(|key| IpAddr::from(key.address));
        Ok(four.chain(six.keys()?.into_iter().map(|key| IpAddr::from(key.address))).collect())
    })
}
