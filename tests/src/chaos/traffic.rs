//! Steady traffic while things break: processes in a place of their own that count what they got.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::held::python;
use crate::place::Place;

const SCRIPT: &str = include_str!("traffic.py");

/// What one process says at its end.
#[derive(Debug, Deserialize)]
pub struct Told {
    pub kind: String,
    pub to: String,
    pub tried: u64,
    /// How many of these came back as they should.
    pub through: u64,
    /// A connection that was to last has ended.
    pub broken: u64,
    /// The longest that one try took, in milliseconds.
    pub worst_ms: u64,
    /// Errors by name, with how often each came.
    pub errors: BTreeMap<String, u64>,
}

/// A running process. Ends with its counts by [`Traffic::end`]; dropped, it is killed.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Traffic {
    /// `kind` is a function of `traffic.py`, which says what `address` is for it. Returns once it is under way.
    pub fn start(place: &Place, kind: &str, address: &str, port: u16) -> Result<Self> {
        let mut command = place.command(python());
        command.args(["-c", SCRIPT, kind, address, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start python3")?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?);
        let mut traffic = Self { child, lines };
        let first = traffic.line()?;
        ensure!(first == "ready", "{kind} to {address} port {port} did not begin");
        Ok(traffic)
    }

    /// Ends it and reads its counts.
    pub fn end(mut self) -> Result<Told> {
        drop(self.child.stdin.take());
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("the traffic said {line:?}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
