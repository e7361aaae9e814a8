//! `--events`, as `run` and `exec` take it: where events are written besides the control socket.

use clap::Args;

use super::Failure;
use crate::events::{Opened, SinkSpec};

#[derive(Args, Debug)]
pub struct SinkArgs {
    /// Write events here too; may be repeated: `stdout` (or `-`; `stdout:json`, `stdout:pretty`), `file:PATH` (JSON
    /// lines), `journal`, `otlp:http://HOST:PORT`
    #[arg(long, value_name = "SINK")]
    pub events: Vec<SinkSpec>,
}

impl SinkArgs {
    /// Opens every sink, or says which one cannot be written to.
    pub fn open(&self) -> Result<Vec<Opened>, Failure> {
        self.events.iter().map(open).collect()
    }

    /// Whether one of them is standard output.
    pub fn take_stdout(&self) -> bool {
        self.events.iter().any(|sink| matches!(sink, SinkSpec::Stdout(_)))
    }
}

fn open(spec: &SinkSpec) -> Result<Opened, Failure> {
    Opened::new(spec).map_err(|error| {
        Failure::machine(
            format!("cannot write events to {spec}: {error}"),
            "give a file in a directory that is there, and that root may write to",
        )
    })
}
