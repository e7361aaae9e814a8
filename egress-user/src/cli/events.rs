//! `egress events`: what was dropped and learned, a line each.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::args::EventsArgs;
use crate::{
    api::{Client, EventFilter, EventStream},
    events::{Event, Style, line},
};

/// Past events that a follower sees first, as with other tools.
const RECENT: usize = 10;

/// Prints the daemon's events: those it keeps, or with `follow` the last ones and what comes; the daemon itself leaves
/// out what is not asked for. Not to be called inside a tokio runtime.
pub fn run(socket: &Path, args: EventsArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let EventsArgs { follow, filter, json } = args;
    let filter = EventFilter { follow, recent: follow.then_some(RECENT), ..filter.filter() };
    let narrow = filter.is_narrow();
    runtime.block_on(async {
        let stream = Client::new(socket).events(filter).await?;
        let style = Style::detect(&io::stdout());
        let printed = tokio::select! {
            printed = print(stream, json, style) => printed?,
            () = closed(), if follow => 1,
        };
        // Silence might be an empty log or a filter with a slip in it.
        if narrow && printed == 0 {
            super::output::eprint("no event matches; without a filter `egress events` shows all that are kept\n");
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Gives how many were printed.
async fn print(mut stream: EventStream, json: bool, style: Style) -> anyhow::Result<usize> {
    let mut printed = 0;
    while let Some(raw) = stream.next_line().await? {
        printed += 1;
        let text = if json { raw } else { pretty(&raw, style) };
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => {}
            // The reader has seen enough (`| head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(printed),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(printed)
}

/// A later version's event is shown as it came: JSON leaves no control character unescaped.
fn pretty(raw: &str, style: Style) -> String {
    serde_json::from_str::<Event>(raw).map_or_else(|_| raw.to_owned(), |event| line(&event, style))
}

/// Waits until the reader of standard output is gone, which otherwise the next event would have to find out. A thread
/// waits in `poll`, which knows every kind of file; it ends with the process.
async fn closed() {
    let (told, gone) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let stdout = io::stdout();
        loop {
            // Without events asked for, poll reports POLLERR and POLLHUP alone.
            let mut state = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
            match poll(&mut state, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(_) => return,
                Ok(_) => break,
            }
        }
        let _ = told.send(());
    });
    if gone.await.is_err() {
        std::future::pending().await
    }
}
