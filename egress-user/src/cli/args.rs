//! The arguments of every command.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};

use super::sinks::SinkArgs;
use crate::policy::{self, Destination, ItemError, Mode, Sources};
use crate::{
    api::{EventFilter, PacketSpec},
    events::{Filter, To},
};

/// Which policy: shared by `run`, `exec` and `explain`.
#[derive(Args, Clone, Debug, Default)]
pub struct PolicyArgs {
    /// A file, a directory, or an embedded policy; may be repeated, all are merged
    #[arg(long, short, value_name = "P")]
    pub policy: Vec<PathBuf>,
    /// Allow one destination more: github.com (443/tcp), github.com:22, 192.0.2.1:123/udp, 10.0.0.0/8:any,
    /// [2001:db8::1]:443; may be repeated
    #[arg(long, value_name = "DEST", value_parser = allow)]
    pub allow: Vec<String>,
    /// Fill a placeholder of the policies, like region=westeurope; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
}

impl PolicyArgs {
    /// What [`policy::load`] takes; mode, resolvers and search domains are the caller's to add.
    pub fn sources(&self) -> Sources {
        Sources {
            policies: self.policy.clone(),
            allow: self.allow.clone(),
            set: self.set.clone(),
            ..Sources::default()
        }
    }
}

/// What `run` and `exec` may say over the policy.
#[derive(Args, Clone, Debug, Default)]
pub struct OverrideArgs {
    /// Enforce, or only report what would be dropped; wins over the policy
    #[arg(long, value_enum)]
    pub mode: Option<ModeArg>,
    /// The only resolver that may be asked; may be repeated; wins over the policy
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = resolver)]
    pub resolver: Vec<SocketAddr>,
}

impl OverrideArgs {
    pub fn apply(&self, sources: &mut Sources) {
        sources.mode = self.mode.map(Mode::from);
        sources.resolvers.clone_from(&self.resolver);
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    Enforce,
    Audit,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Enforce => Self::Enforce,
            ModeArg::Audit => Self::Audit,
        }
    }
}

#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// The cgroup to govern [default: the root of cgroup v2]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// An uplink to guard; may be repeated; `none` guards the cgroup only [default: the default routes' interfaces]
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// Serve metrics at this address
    #[arg(long, value_name = "ADDR:PORT", value_parser = metrics)]
    pub metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub sinks: SinkArgs,
    /// Let this group (name or number) read from the daemon's socket; only root changes anything
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub socket_group: Option<u32>,
    /// Where policies are kept that come by `egress apply` (policy.json), and the addresses learned of names (names.json)
    #[arg(long, value_name = "DIR", env = "EGRESS_STATE", default_value = "/var/lib/egress")]
    pub state: PathBuf,
    /// Room for this many addresses of each family, learned ones included; half of it is for the next policy
    /// [default: 131072, or what the policy needs]
    #[arg(long, value_name = "N", value_parser = room)]
    pub max_addresses: Option<u32>,
    /// Room for this many flows [default: 131072]
    #[arg(long, value_name = "N", value_parser = room)]
    pub max_flows: Option<u32>,
    /// Log each decision of the eBPF programs, but those for established connections; slow, for finding out why
    #[arg(long)]
    pub log_programs: bool,
    /// Stop enforcing when the daemon ends; for experiments
    #[arg(long)]
    pub detach_on_exit: bool,
}

#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// Files, directories or embedded policies; merged, they take the place of the policy in force
    #[arg(value_name = "P", required_unless_present = "allow")]
    pub policies: Vec<PathBuf>,
    /// Allow one destination more, as `egress run` takes it; may be repeated
    #[arg(long, value_name = "DEST", value_parser = allow)]
    pub allow: Vec<String>,
    /// Fill a placeholder of the policies, like region=westeurope; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Put the old policy back after this time (like 60s or 10m), unless `egress confirm` comes before
    #[arg(long, value_name = "TIME", value_parser = seconds, conflicts_with = "dry_run")]
    pub confirm: Option<u64>,
    /// Only say what would change
    #[arg(long)]
    pub dry_run: bool,
    /// Print what changes as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ChangeArgs {
    /// Print what changed as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct DiffArgs {
    /// A file, a directory or an embedded policy: compared with the second one, or the one in force with it
    #[arg(value_name = "A")]
    pub first: PathBuf,
    /// What A is compared with
    #[arg(value_name = "B")]
    pub second: Option<PathBuf>,
    /// Fill a placeholder of the policies, like region=westeurope; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Print the difference as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ExecArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    #[command(flatten)]
    pub overrides: OverrideArgs,
    /// Run the command as this user (name or number)
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    #[command(flatten)]
    pub sinks: SinkArgs,
    /// Print the summary of what was blocked as JSON
    #[arg(long)]
    pub json: bool,
    /// Print no summary
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
    /// The command and its arguments, after `--`
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug)]
pub struct LearnArgs {
    /// How long to watch, like 10m; Ctrl-C ends it sooner and writes what was learned so far
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = time)]
    pub time: Duration,
    /// The policy to write; `-` for standard output
    #[arg(long, short, value_name = "P")]
    pub output: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
    /// Make `*.example.com` of three names or more right below example.com that use the same ports
    #[arg(long)]
    pub wildcards: bool,
    /// The cgroup to watch [default: the root of cgroup v2]
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// An uplink to watch; may be repeated; `none` watches the cgroup only [default: the default routes' interfaces]
    #[arg(long, value_name = "IF")]
    pub interface: Vec<String>,
    /// The only resolver whose answers count, and which the policy will trust; may be repeated [default: the system's]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = resolver)]
    pub resolver: Vec<SocketAddr>,
    /// Write every event to this file too, a JSON object a line, for `egress report`
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Run the command as this user (name or number)
    #[arg(long, short, value_name = "USER", requires = "command")]
    pub user: Option<String>,
    /// Print what was learned as JSON
    #[arg(long)]
    pub json: bool,
    /// Watch this command alone, until it ends
    #[arg(last = true, value_name = "CMD", conflicts_with_all = ["cgroup", "interface", "time"])]
    pub command: Vec<std::ffi::OsString>,
}

#[derive(Args, Debug)]
pub struct ReportArgs {
    /// Events as JSON lines (`egress events --json`, `learn --events`); `-` for standard input [default: the daemon's
    /// recent events]
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// The page to write; `-` for standard output
    #[arg(long, short, value_name = "FILE", default_value = "egress-report.html")]
    pub output: PathBuf,
    /// The page's title
    #[arg(long, value_name = "TEXT", default_value = "Outbound traffic")]
    pub title: String,
}

#[derive(Args, Debug)]
pub struct ManArgs {
    /// The directory to write the pages to; made where it is missing
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Files, directories or embedded policies; checked together, as `run` would merge them
    #[arg(required = true, value_name = "P")]
    pub policies: Vec<PathBuf>,
    /// Fill a placeholder of the policies, like region=westeurope; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub set: Vec<(String, String)>,
    /// Take warnings for errors
    #[arg(long)]
    pub strict: bool,
    /// Ask the system's resolver for every exact name, and warn where there is no answer
    #[arg(long)]
    pub resolve: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// NAME-or-ADDRESS[:PORT][/PROTO], like api.example.com:443 or 192.0.2.1:123/udp; 443/tcp when no port is said
    #[arg(value_name = "DEST", value_parser = destination, required_unless_present = "packet")]
    pub destination: Option<Destination>,
    /// Run the attached programs on this packet: 'tcp 10.0.0.2:40000 > 192.0.2.1:443', the source may be left out
    #[arg(long, value_name = "PACKET", conflicts_with_all = ["destination", "policy", "allow"], value_parser = packet)]
    pub packet: Option<PacketSpec>,
    /// The packet is sent from this cgroup
    #[arg(long, value_name = "PATH", requires = "packet")]
    pub cgroup: Option<String>,
    /// Ask only the programs at sockets, or only those at uplinks
    #[arg(long, value_name = "HOOK", requires = "packet", value_parser = ["socket", "uplink"])]
    pub hook: Option<String>,
    /// Print the answer as JSON
    #[arg(long)]
    pub json: bool,
}

impl ExplainArgs {
    /// A policy is given, so that no daemon is asked.
    pub fn is_offline(&self) -> bool {
        !self.policy.policy.is_empty() || !self.policy.allow.is_empty()
    }
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Print the state as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Go on with new events until interrupted
    #[arg(long, short)]
    pub follow: bool,
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct TopArgs {
    #[command(flatten)]
    pub filter: FilterArgs,
}

/// Which events: those for which everything that is said holds.
#[derive(Args, Clone, Debug, Default)]
pub struct FilterArgs {
    /// Only what was dropped (in audit mode: what would be)
    #[arg(long)]
    pub dropped: bool,
    /// Only of this process
    #[arg(long, value_name = "PID", value_parser = pid)]
    pub pid: Option<u32>,
    /// Only of this cgroup and those below it, like /system.slice/cron.service
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<String>,
    /// Only to this destination: a name, a wildcard, an address or a prefix, with :PORT[/PROTO] if you like
    #[arg(long, value_name = "DEST", value_parser = to)]
    pub to: Option<String>,
    /// Only with this reason, like no-rule or name-not-allowed
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Option<String>,
}

impl FilterArgs {
    /// What the daemon is asked for.
    pub fn filter(self) -> EventFilter {
        let root = crate::datapath::cgroup_root().map(|root| root.display().to_string()).unwrap_or_default();
        EventFilter {
            dropped: self.dropped,
            pid: self.pid,
            cgroup: self.cgroup.map(|path| Filter::cgroup(&path, &root)),
            to: self.to,
            reason: self.reason,
            ..EventFilter::default()
        }
    }
}

#[derive(Args, Debug)]
pub struct DetachArgs {
    /// Print what was removed as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct PoliciesArgs {
    /// Print this policy instead of the list
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print the list as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// What is wrong and what to write, on one line, as clap shows it.
fn sentence(error: ItemError) -> String {
    match error.hint {
        Some(hint) => format!("{}; {hint}", error.what),
        None => error.what,
    }
}

fn seconds(text: &str) -> Result<u64, String> {
    match policy::parse_duration(text).map_err(sentence)?.as_secs() {
        seconds @ 2..=86_400 => Ok(seconds),
        _ => Err("write a time from 2s to 24h, like 60s or 10m".to_owned()),
    }
}

fn allow(text: &str) -> Result<String, String> {
    policy::check_allow(text).map(|()| text.to_owned()).map_err(sentence)
}

fn destination(text: &str) -> Result<Destination, String> {
    text.parse().map_err(sentence)
}

fn packet(text: &str) -> Result<PacketSpec, String> {
    text.parse().map_err(sentence)
}

fn to(text: &str) -> Result<String, String> {
    text.parse::<To>().map(|_| text.to_owned()).map_err(sentence)
}

fn reason(text: &str) -> Result<String, String> {
    Filter::reason(text).map_err(sentence)
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    // `[::1]` without a port is how people write it, too.
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let text = bare.filter(|bare| bare.parse::<IpAddr>().is_ok()).unwrap_or(text);
    policy::parse_resolver(text).map_err(sentence)
}

fn metrics(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an address of this node and a port, like 127.0.0.1:9464".to_owned())
}

fn pid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write a process's number, like 1234".to_owned())
}

fn group(text: &str) -> Result<u32, String> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group here; `getent group` lists them".to_owned()),
        Err(errno) => Err(format!("cannot look the group up: {errno}")),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time >= Duration::from_secs(1) => Ok(time),
        _ => Err("write a time of a second or more, like 60s, 10m or 1h".to_owned()),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, like region=westeurope".to_owned()),
    }
}

fn room(text: &str) -> Result<u32, String> {
    let range = crate::datapath::Room::RANGE;
    text.parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("not a number from {} to {}", range.start(), range.end()))
}
