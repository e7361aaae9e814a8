//! `explain --packet`: the attached programs are run on a packet that never leaves.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
};

use egress_ebpf::decision::Verdict;

use super::{Active, Core, explain::rule, state::mode_name};
use crate::{
    api::{ExplainError, HookVerdict, PacketExplanation, PacketQuestion, PacketSpec, PacketVerdict},
    datapath::{Error, Scene, cgroup_root, packet},
    policy::Proto,
};

/// Where a packet without one comes from.
const PORT: u16 = 40_000;
/// Attach points that are asked.
const ASKED: usize = 32;

const SOCKET: &str = "socket";
const UPLINK: &str = "uplink";

fn wrong(message: impl Into<String>, hint: impl Into<String>) -> ExplainError {
    ExplainError { message: message.into(), hint: Some(hint.into()) }
}

fn failed(error: &Error) -> ExplainError {
    wrong(format!("the packet could not be judged: {error}"), "`egress status` tells what is attached")
}

/// Where a program is attached.
struct Point {
    hook: &'static str,
    program: &'static str,
    at: String,
    ifindex: u32,
}

pub(super) fn explain_packet(core: &Core, question: &PacketQuestion) -> Result<PacketExplanation, ExplainError> {
    let mut spec: PacketSpec = question
        .packet
        .parse()
        .map_err(|error: crate::policy::ItemError| ExplainError { message: error.what, hint: error.hint })?;
    let mut notes = Vec::new();
    let hook = wanted(core, question, &mut notes)?;
    let source = spec.source.unwrap_or_else(|| near_end(spec.destination));
    spec.source = Some(source);
    let bytes = packet(spec.proto, source, spec.destination, spec.ack, spec.query.as_ref());
    if spec.proto == Proto::Udp && spec.destination.port() == 53 && spec.query.is_none() {
        notes.push("to a resolver passes only what holds a question: write `query NAME` at the end".to_owned());
    }
    let points = points(core, hook, spec.destination.ip())?;
    let active = core.active();
    let mut said = PacketExplanation {
        packet: spec.to_string(),
        goes_on: true,
        agree: true,
        mode: mode_name(active.policy.mode).to_owned(),
        generation: active.installed.generation,
        hooks: Vec::new(),
        notes,
    };
    for point in points {
        let scene = Scene { program: point.program, ifindex: point.ifindex, packet: &bytes };
        let judged = core.datapath().rehearse(&scene).map_err(|error| failed(&error))?;
        let Some(judged) = judged else {
            return Err(wrong("no policy is in force yet", "ask again in a moment"));
        };
        said.generation = judged.generation;
        said.goes_on &= judged.goes_on;
        said.agree &= judged.agrees();
        said.hooks.push(HookVerdict {
            hook: point.hook.to_owned(),
            at: point.at,
            kernel: verdict(&active, judged.kernel, judged.goes_on),
            model: verdict(&active, judged.model, judged.model_goes_on),
            agree: judged.agrees(),
        });
    }
    if said.hooks.iter().any(|asked| asked.hook == UPLINK) {
        said.notes.push(
            "at an uplink as a packet without a governed socket: those of governed sockets pass there as `judged`"
                .to_owned(),
        );
    }
    Ok(said)
}

fn verdict(active: &Active, verdict: Verdict, goes_on: bool) -> PacketVerdict {
    let grant = active.installed.grants.iter().position(|index| *index == verdict.grant);
    let grant = grant.filter(|_| verdict.grant != 0).and_then(|grant| u32::try_from(grant).ok());
    PacketVerdict { goes_on, reason: verdict.reason.name().to_owned(), rule: grant.map(|grant| rule(active, grant)) }
}

/// Which hook is asked: as said, or as the sender's cgroup has it.
fn wanted(
    core: &Core,
    question: &PacketQuestion,
    notes: &mut Vec<String>,
) -> Result<Option<&'static str>, ExplainError> {
    let said = match question.hook.as_deref() {
        None => None,
        Some(SOCKET) => Some(SOCKET),
        Some(UPLINK) => Some(UPLINK),
        Some(other) => {
            return Err(wrong(format!("`{}` is no hook", other.escape_default()), "write `socket` or `uplink`"));
        }
    };
    let Some(cgroup) = &question.cgroup else { return Ok(said) };
    let root = cgroup_root().map_err(|error| failed(&error))?;
    let given = Path::new(cgroup);
    let path = if given.starts_with(&root) { given.to_owned() } else { root.join(cgroup.trim_start_matches('/')) };
    if !path.join("cgroup.procs").exists() {
        return Err(wrong(
            format!("{} is no cgroup", path.display()),
            format!("write its path, from {} or from there on, as `egress events` shows it", root.display()),
        ));
    }
    let governed = governed(core);
    let is_governed = governed.as_ref().is_some_and(|governed| path.starts_with(governed));
    let hook = if is_governed { SOCKET } else { UPLINK };
    notes.push(match governed {
        Some(governed) if !is_governed => {
            format!(
                "the cgroup is not below {}: its sockets are not governed, the uplinks judge what it sends",
                governed.display()
            )
        }
        None => "no cgroup is governed: the uplinks judge".to_owned(),
        Some(_) => "the cgroup is governed: its sockets' packets are judged there".to_owned(),
    });
    if said.is_some_and(|said| said != hook) {
        return Err(wrong(
            format!("what that cgroup sends is not judged at `{}`", said.unwrap_or_default()),
            format!("leave `--hook` or `--cgroup` out, or write `--hook {hook}`"),
        ));
    }
    Ok(Some(hook))
}

fn governed(core: &Core) -> Option<PathBuf> {
    let attached = super::state::lock(&core.attached);
    attached.iter().find(|point| point.hook == "socket_egress").map(|point| PathBuf::from(&point.target))
}

/// The attach points of a hook, or of both. What holds another program than this daemon's is an error: what would be run
/// is not what judges.
fn points(core: &Core, hook: Option<&str>, destination: IpAddr) -> Result<Vec<Point>, ExplainError> {
    // Gathered first: who holds the data path may want this lock.
    let attached: Vec<_> = super::state::lock(&core.attached)
        .iter()
        .map(|point| (point.hook, point.target.clone(), point.interface, point.present(), point.info()))
        .collect();
    // Loopback and the host side of workloads' veths have programs too.
    let first = attached.iter().find(|(hook, ..)| hook.starts_with("uplink_egress")).map(|(_, _, index, ..)| *index);
    let mut points = Vec::new();
    for (program, at, interface, present, info) in attached {
        let (kind, ifindex) = match program {
            "socket_egress" => (SOCKET, leaves_by(destination, first)?),
            "uplink_egress" | "uplink_egress_l3" => (UPLINK, interface),
            _ => continue,
        };
        if hook.is_some_and(|hook| hook != kind) || points.len() >= ASKED {
            continue;
        }
        // A clsact filter has no link to ask.
        let own = core.datapath().program_id(program).map_err(|error| failed(&error))?;
        if !present || info.is_some_and(|info| info.program != own) {
            return Err(wrong(
                format!("this daemon's program is not attached to {at} any more"),
                "`egress status` shows the attach points; start the daemon again",
            ));
        }
        points.push(Point { hook: kind, program, at, ifindex });
    }
    if points.is_empty() {
        let what = if hook == Some(UPLINK) { "uplink" } else { "cgroup" };
        return Err(wrong(format!("no {what} is governed"), "`egress status` shows the attach points"));
    }
    Ok(points)
}

/// The interface that a socket's packet leaves by: loopback for its addresses, else the first governed uplink or any other.
fn leaves_by(destination: IpAddr, uplink: Option<u32>) -> Result<u32, ExplainError> {
    const LOOPBACK: u32 = 1;
    if destination.is_loopback() {
        return Ok(LOOPBACK);
    }
    if let Some(index) = uplink {
        return Ok(index);
    }
    let all = nix::net::if_::if_nameindex()
        .map_err(|errno| wrong(format!("the interfaces cannot be listed: {errno}"), "ask again"))?;
    all.iter()
        .map(nix::net::if_::Interface::index)
        .find(|index| *index != LOOPBACK)
        .ok_or_else(|| wrong("there is no interface but loopback that it could leave by", "name a loopback address"))
}

/// The address that the node would send from. Connecting a datagram socket sends nothing.
fn near_end(destination: SocketAddr) -> SocketAddr {
    let any: IpAddr = if destination.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let chosen = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((destination.ip(), destination.port().max(1)))?;
        socket.local_addr()
    });
    SocketAddr::new(chosen.map_or(any, |chosen| chosen.ip()), PORT)
}
