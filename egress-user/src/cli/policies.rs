//! `egress policies`: lists the embedded policies, or prints one.

use std::process::ExitCode;

use serde::Serialize;

use super::{Failure, args::PoliciesArgs, exit, output};
use crate::policy::embedded::{self, ALL};

/// One row of `--json`.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    about: &'static str,
}

pub fn main(args: PoliciesArgs) -> anyhow::Result<ExitCode> {
    if let Some(name) = args.name {
        let name = name.strip_suffix(".yaml").unwrap_or(&name);
        let Some(policy) = embedded::find(name) else {
            return Err(Failure::input(
                format!("there is no embedded policy `{name}`"),
                "`egress policies` lists them",
            )
            .into());
        };
        output::print(policy.text);
        return Ok(ExitCode::from(exit::DONE));
    }
    if args.json {
        let rows: Vec<_> = ALL.iter().map(|policy| Row { name: policy.name, about: policy.about }).collect();
        output::json(&rows)?;
    } else {
        let width = ALL.iter().map(|policy| policy.name.len()).max().unwrap_or(0);
        let rows = ALL.iter().map(|policy| format!("{:width$}  {}\n", policy.name, policy.about));
        output::print(&rows.collect::<String>());
        output::print("\nPrint one with `egress policies NAME`; use it with `--policy NAME`.\n");
    }
    Ok(ExitCode::from(exit::DONE))
}
