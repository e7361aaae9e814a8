//! What `--cgroup` and `--interface` name.

use std::{io, path::Path};

use crate::{
    cli::Failure,
    daemon::{Scope, Wanted},
    datapath::{self, Cgroup, Pins, Room, Uplink},
};

/// What `--interface` names.
pub(in crate::cli) fn wanted(interfaces: &[String]) -> Result<Wanted, Failure> {
    if interfaces.len() > 1 && interfaces.iter().any(|name| name == "none") {
        return Err(Failure::input(
            "`none` stands alone: `--interface none` governs no interface",
            "leave it out, or the others",
        ));
    }
    Ok(Wanted::from_arguments(interfaces))
}

fn no_cgroup(error: datapath::Error) -> Failure {
    use datapath::Error::{NotACgroup, Path};
    let what = error.to_string();
    match error {
        NotACgroup { .. } => Failure::input(what, "`systemd-cgls` lists those there are"),
        Path { source, .. } if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Failure::input(
                what,
                "write its path, like /sys/fs/cgroup/system.slice; `systemd-cgls` lists those there are",
            )
        }
        error => Failure::kernel(&error),
    }
}

/// What `--cgroup` and `--interface` name.
pub(in crate::cli) fn scope_of(
    cgroup: Option<&Path>,
    interfaces: &[String],
    pins: Option<Pins>,
) -> anyhow::Result<Scope> {
    let wanted = wanted(interfaces)?;
    let cgroup = Cgroup::open(cgroup).map_err(no_cgroup)?;
    let (uplinks, missing) = wanted
        .find()
        .map_err(|error| Failure::machine(error.to_string(), "`egress run --help` says what each option takes"))?;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        tracing::warn!(
            "there is no interface {missing}: governed as soon as it appears; `ip link` lists those there are"
        );
    }
    let has_past = pins.is_some() || cgroup.is_populated();
    Ok(Scope {
        cgroup,
        uplinks,
        answered: vec![Uplink::loopback()],
        pins,
        has_past,
        room: Room::default(),
        tells: false,
    })
}
