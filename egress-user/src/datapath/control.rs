//! Addresses written through the `control` program, by the very code that learns in the kernel, so that the two never
//! overwrite one another.

use std::net::IpAddr;

use egress_ebpf::abi::{
    CONTROL_END, CONTROL_LEARN, CONTROL_RECLAIM, CONTROL_RECORDS, ControlHeader, ControlRecord, Ticks,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Error, Object, sys};

/// Writes (address, class of map `CLASSES`, expiry) into an epoch.
///
/// # Errors
/// [`Error::Full`] where an address has no slot, or the map no room, for one of them. The others are written.
pub(super) fn learn(
    object: &mut Object,
    epoch: u32,
    addresses: &[(IpAddr, u32, Ticks)],
    capacity: u32,
) -> Result<(), Error> {
    let mut lost = 0;
    for chunk in addresses.chunks(CONTROL_RECORDS) {
        let results = run(object, CONTROL_LEARN, epoch, chunk)?;
        let [_unchanged, _extended, _added, slots_full, map_full, contended] = results;
        lost += slots_full + map_full + contended;
    }
    if lost != 0 {
        return Err(Error::Full {
            what: "addresses and ports of names",
            needed: lost as usize,
            capacity: capacity as usize,
        });
    }
    Ok(())
}

/// Deletes those of the addresses whose every slot is dead. Gives how many were.
pub(super) fn reclaim(object: &mut Object, epoch: u32, addresses: &[IpAddr]) -> Result<u64, Error> {
    let mut deleted = 0;
    for chunk in addresses.chunks(CONTROL_RECORDS) {
        let records: Vec<_> = chunk.iter().map(|&address| (address, 0, 0)).collect();
        let [gone, ..] = run(object, CONTROL_RECLAIM, epoch, &records)?;
        deleted += u64::from(gone);
    }
    Ok(deleted)
}

/// Ends the life that each address has by the class beside it, though it is one that never ends.
pub(super) fn end(object: &mut Object, epoch: u32, addresses: &[(IpAddr, u32)]) -> Result<(), Error> {
    for chunk in addresses.chunks(CONTROL_RECORDS) {
        let records: Vec<_> = chunk.iter().map(|&(address, class)| (address, class, 0)).collect();
        run(object, CONTROL_END, epoch, &records)?;
    }
    Ok(())
}

/// Runs the program once; gives its results.
fn run(object: &mut Object, command: u32, epoch: u32, records: &[(IpAddr, u32, Ticks)]) -> Result<[u32; 6], Error> {
    let program = object.program("control")?;
    let header = ControlHeader { command, of: epoch, count: records.len() as u32, ..ControlHeader::default() };
    let mut data = header.as_bytes().to_vec();
    for &(address, class, expiry) in records {
        let record = ControlRecord { address: address.to_canonical().into(), class, expiry };
        data.extend_from_slice(record.as_bytes());
    }
    let mut output = vec![0; data.len()];
    let run = sys::test_run(program, sys::TestInput { packet: &data, output: Some(&mut output), ..Default::default() })
        .map_err(|source| Error::map("write", "ADDRESSES", source))?;
    if run.returned != 0 {
        let source = std::io::Error::from_raw_os_error(run.returned as i32);
        return Err(Error::map("write", "ADDRESSES", source));
    }
    Ok(ControlHeader::read_from_prefix(&output).map_or([0; 6], |(header, _)| header.results))
}
