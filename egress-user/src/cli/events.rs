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

use crate::{
    api::{Client, EventFilter, EventStream},
    events::{Event, Style, line},
};

/// Past events that a follower sees first, as with other tools.
const RECENT: usize = 10;

/// Prints the daemon's events: those it keeps, or with `follow` the last ones and what comes. `dropped` leaves out
/// what was not refused. Not to be called inside a tokio runtime.
pub fn run(socket: &Path, follow: bool, dropped: bool, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let filter = EventFilter { follow, dropped, recent: follow.then_some(RECENT) };
    runtime.block_on(async {
        let stream = Client::new(socket).events(filter).await?;
        let style = Style::detect(&io::stdout());
        tokio::select! {
            printed = print(stream, json, style) => printed?,
            () = closed(), if follow => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn print(mut stream: EventStream, json: bool, style: Style) -> anyhow::Result<()> {
    while let Some(raw) = stream.next_line().await? {
        let text = if json { raw } else { pretty(&raw, style) };
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Ok(()) => {}
            // The reader has seen enough (`| head`).
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
