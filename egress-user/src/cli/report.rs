//! `egress report`: one page of HTML that shows a run.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::ExitCode,
};

use super::{Failure, args::ReportArgs, exit, output};
use crate::{
    api::{Client, EventFilter},
    events::Event,
    report::Run,
};

/// The longest line of an event that is read; a longer one is counted as unreadable.
const LINE_MAX: u64 = 1 << 20;

pub fn main(args: ReportArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let mut run = Run::new();
    match &args.events {
        Some(path) if path == Path::new("-") => read(std::io::stdin().lock(), &mut run, "standard input")?,
        Some(path) => {
            let shown = path.display().to_string();
            let file = fs::File::open(path).map_err(|error| {
                Failure::input(
                    format!("cannot read {shown}: {error}"),
                    "`egress learn --events FILE` writes such a file",
                )
            })?;
            read(BufReader::new(file), &mut run, &shown)?;
        }
        None => daemon(socket, &mut run)?,
    }
    let page = run.html(&args.title);
    if args.output == Path::new("-") {
        output::print(&page);
    } else {
        fs::write(&args.output, page).map_err(|error| {
            Failure::input(format!("cannot write {}: {error}", args.output.display()), "name another file with -o")
        })?;
        output::print(&format!("{}\n", args.output.display()));
    }
    Ok(ExitCode::from(exit::DONE))
}

fn read(mut lines: impl BufRead, run: &mut Run, shown: &str) -> anyhow::Result<()> {
    let mut line = Vec::new();
    let mut events = 0_u64;
    let mut unreadable = 0_u64;
    loop {
        line.clear();
        let read = std::io::Read::take(&mut lines, LINE_MAX).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice::<Event>(&line) {
            Ok(event) => {
                events += 1;
                run.add(&event);
            }
            Err(_) => {
                unreadable += 1;
                run.unreadable();
            }
        }
    }
    if events == 0 && unreadable > 0 {
        let hint = "it takes JSON lines: `egress events --json > FILE`, or `egress learn --events FILE`";
        return Err(Failure::input(format!("{shown} holds no event"), hint).into());
    }
    Ok(())
}

fn daemon(socket: &Path, run: &mut Run) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stream = Client::new(socket).events(EventFilter::default()).await?;
        while let Some(line) = stream.next_line().await? {
            match serde_json::from_str::<Event>(&line) {
                Ok(event) => run.add(&event),
                Err(_) => run.unreadable(),
            }
        }
        Ok(())
    })
}
