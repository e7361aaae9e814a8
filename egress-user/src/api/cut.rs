//! What a change of the policy would cut, of the traffic of the last minutes.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Destinations that are told in one answer.
pub const CUT_TOLD: usize = 200;
/// Destinations that are printed.
const SHOWN: usize = 20;

/// The destinations that were reached lately, and would not be any more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    /// How far back was looked, seconds.
    pub within_seconds: u64,
    /// The latest first, open connections before all.
    pub destinations: Vec<CutDestination>,
    /// How many more there are.
    pub more: usize,
    /// Not every flow was looked at: there are too many.
    pub partial: bool,
}

/// One destination that would be cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutDestination {
    /// The address.
    pub address: IpAddr,
    /// The port; absent for ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// The names that the address has or had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// TCP connections that stand now: they are cut at their next packet.
    pub open: usize,
    /// Their near ends, as `ADDRESS:PORT`; at most eight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<String>,
    /// Seconds since the last packet; absent where no packet is timed: connections, open or forwarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_ago: Option<u64>,
    /// Who has the sockets, as `NAME (PID)`, as far as is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub processes: Vec<String>,
}

impl Cut {
    /// Whether nothing is cut, as far as is known.
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty() && !self.partial
    }
}

impl fmt::Display for CutDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.names.first() {
            Some(name) => write!(f, "{name} ({})", self.address)?,
            None => write!(f, "{}", self.address)?,
        }
        match self.port {
            Some(port) => write!(f, " {port}/{}", self.protocol)?,
            None => write!(f, " {}", self.protocol)?,
        }
        match (self.open, self.seconds_ago) {
            (0, Some(seconds)) => write!(f, ", {seconds} s ago")?,
            (0, None) => write!(f, ", forwarded: open, or ended")?,
            (1, _) => write!(f, ", 1 open connection")?,
            (open, _) => write!(f, ", {open} open connections")?,
        }
        if !self.processes.is_empty() {
            write!(f, ", by {}", self.processes.join(", "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = self.within_seconds / 60;
        if !self.destinations.is_empty() {
            let count = self.destinations.len() + self.more;
            let were = if count == 1 { "destination was" } else { "destinations were" };
            writeln!(f, "warning: {count} {were} reached in the last {minutes} minutes and would be cut off:")?;
            for destination in self.destinations.iter().take(SHOWN) {
                writeln!(f, "    {destination}")?;
            }
            let hidden = self.destinations.len().saturating_sub(SHOWN) + self.more;
            if hidden != 0 {
                writeln!(f, "    and {hidden} more")?;
            }
            writeln!(f, "  their open connections are cut at the next packet; all others go on")?;
        }
        if self.partial {
            writeln!(f, "warning: there are too many flows to look at all of them: more may be cut")?;
        }
        Ok(())
    }
}
