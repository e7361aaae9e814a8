//! `egress detach`: break-glass. It needs no daemon, no policy and no sound state: it removes what is pinned.

use std::{path::Path, process::ExitCode};

use super::{Failure, args::DetachArgs, exec, output};
use crate::{
    api,
    datapath::{Pins, cgroup_root, remove_clsact},
};

/// Removes every program, pin and cgroup that egress made. A daemon that still runs goes on without enforcing.
pub fn main(args: DetachArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    // Without it the pins cannot even be seen, and "nothing to remove" would be a lie.
    if !nix::unistd::geteuid().is_root() {
        return Err(
            Failure::machine("`egress detach` needs root: nothing was looked at or removed", "run it as root").into()
        );
    }
    let pins = Pins::new(&Pins::default_bpffs());
    let mut removed = Vec::new();
    let all = pins.detach_all(&mut removed);
    for interface in nix::net::if_::if_nameindex().iter().flatten() {
        removed.extend(remove_clsact(&interface.name().to_string_lossy()));
    }
    if let Ok(root) = cgroup_root() {
        removed.extend(exec::remove_leftovers(&root));
    }
    // What else is there, a daemon that hangs or somebody's file, stays and keeps nobody waiting.
    if api::remove_left(socket).is_ok_and(|left| left) {
        removed.push(format!("socket {}", socket.display()));
    }
    if args.json {
        output::json(&serde_json::json!({ "removed": removed }))?;
    } else if removed.is_empty() && all.is_ok() {
        output::print("nothing to remove: no egress program is pinned here\n");
    } else {
        let end = if all.is_ok() { "nothing is enforced any more" } else { "not all could be" };
        output::print(&format!("removed {} objects; {end}\n", removed.len()));
        for object in &removed {
            output::print(&format!("  {object}\n"));
        }
    }
    all.map_err(|error| {
        Failure::machine(error.to_string(), "remove that by hand; what is pinned does not outlive a reboot")
    })?;
    Ok(ExitCode::SUCCESS)
}
