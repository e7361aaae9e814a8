//! `egress schema`: the JSON schema of a policy, for editors.

use std::process::ExitCode;

use super::{exit, output};
use crate::policy::json_schema;

pub fn main() -> anyhow::Result<ExitCode> {
    output::json(&json_schema())?;
    Ok(ExitCode::from(exit::DONE))
}
