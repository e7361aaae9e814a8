//! `egress top`: what is dropped, and what each rule matches, live.

mod draw;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _},
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use self::state::{Act, State, View};
use super::{Failure, args::TopArgs};
use crate::{
    api::{Client, ClientError, EventFilter, EventStream, RuleStatus},
    events::{Event, Style},
};

/// Between two pictures, however many events come.
const FRAME: Duration = Duration::from_millis(250);
/// Between two readings of the rules' counters, and two tries to reach a daemon that ended.
const READING: Duration = Duration::from_secs(1);

/// Shows it until `q`, Ctrl-C or SIGTERM. Not to be called inside a tokio runtime.
pub fn run(socket: &Path, args: TopArgs) -> anyhow::Result<ExitCode> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(
            Failure::input("`egress top` needs a terminal", "elsewhere: `egress events --follow --json`").into()
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let client = Client::new(socket);
        let filter = EventFilter { follow: true, dropped: true, recent: None, ..args.filter.filter() };
        // Asked before the screen changes: no daemon is an error like any other command's.
        let stream = client.events(filter.clone()).await?;
        let color = Style::detect(&io::stdout()).color;
        let mut terminal = ratatui::try_init()?;
        let result = live(&mut terminal, &client, filter, stream, color).await;
        ratatui::try_restore()?;
        result
    });
    // A thread waits for keys in vain.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

async fn live(
    terminal: &mut DefaultTerminal,
    client: &Client,
    filter: EventFilter,
    stream: EventStream,
    color: bool,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let (mut state, mut stream) = (State::default(), Some(stream));
    let (mut keys, mut ticks) = (keys(), tokio::time::interval(FRAME));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let wanted = Arc::new(AtomicBool::new(false));
    let mut rules = rules(client.clone(), Arc::clone(&wanted));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tried = start;
    loop {
        let redraw = tokio::select! {
            // Keys first: a flood of events must not keep `q` waiting.
            biased;
            key = keys.recv() => match key {
                Some(Some(act)) => {
                    if !state.act(act) {
                        return Ok(());
                    }
                    true
                }
                // Another size.
                Some(None) => true,
                // The terminal is gone.
                None => return Ok(()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = ticks.tick() => true,
            Some(read) = rules.recv() => {
                state.rules(&read);
                false
            }
            event = next(stream.as_mut()) => {
                match event {
                    Ok(Some(event)) => state.event(&event),
                    Ok(None) => stream = None,
                    Err(error) => {
                        state.trouble = Some(error.to_string());
                        stream = None;
                    }
                }
                false
            }
        };
        state.now = start.elapsed().as_secs();
        wanted.store(state.view == View::Rule, Ordering::Relaxed);
        if stream.is_none() && tried.elapsed() >= READING {
            tried = Instant::now();
            match client.events(filter.clone()).await {
                Ok(again) => (stream, state.trouble) = (Some(again), None),
                Err(error) => state.trouble = Some(error.to_string()),
            }
        }
        if redraw {
            terminal.draw(|frame| draw::draw(frame, &state, color))?;
        }
    }
}

async fn next(stream: Option<&mut EventStream>) -> Result<Option<Event>, ClientError> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

/// The rules' counters each second, while they are looked at.
fn rules(client: Client, wanted: Arc<AtomicBool>) -> mpsc::Receiver<Vec<RuleStatus>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            if wanted.load(Ordering::Relaxed)
                && let Ok(status) = client.status().await
                && sender.send(status.rules).await.is_err()
            {
                return;
            }
            tokio::time::sleep(READING).await;
        }
    });
    receiver
}

/// Keys that mean something; `None` for a change of the terminal's size.
fn keys() -> mpsc::UnboundedReceiver<Option<Act>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(input) = event::read() {
            let told = match input {
                Input::Key(key) if key.kind == KeyEventKind::Press => match act(key) {
                    Some(act) => Some(act),
                    None => continue,
                },
                Input::Resize(..) => None,
                _ => continue,
            };
            if sender.send(told).is_err() {
                return;
            }
        }
    });
    receiver
}

fn act(key: KeyEvent) -> Option<Act> {
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Act::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Act::Quit,
        KeyCode::Char('d') => Act::Show(View::Destination),
        KeyCode::Char('p') => Act::Show(View::Process),
        KeyCode::Char('c') => Act::Show(View::Container),
        KeyCode::Char('r') => Act::Show(View::Rule),
        KeyCode::Char('s') => Act::NextSort,
        KeyCode::Tab => Act::NextView,
        KeyCode::Up | KeyCode::Char('k') => Act::Up,
        KeyCode::Down | KeyCode::Char('j') => Act::Down,
        _ => return None,
    })
}
