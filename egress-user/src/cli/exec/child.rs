//! The command as it runs: given the signals, waited for.

use std::process::ExitCode;

use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

/// The signals that are handed on: held back from before the command starts until [`wait`] takes them, so that one that
/// comes early does not end this program, and the command with it.
pub fn handed_on() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().collect()
}

/// Waits for the command, and hands it the signals that are sent to this process alone. What a terminal sends (Ctrl-C)
/// goes to the whole foreground process group, the command included.
pub fn wait(child: Pid) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code: i32 = runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut user1 = signal(SignalKind::user_defined1())?;
        let mut user2 = signal(SignalKind::user_defined2())?;
        handed_on().thread_unblock()?;
        loop {
            // As shells have it: 128 and the number of the signal that ended it.
            match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::Exited(_, code) => return Ok::<_, std::io::Error>(code),
                WaitStatus::Signaled(_, signal, _) => return Ok(128 + signal as i32),
                _ => {}
            }
            let forward = tokio::select! {
                _ = ended.recv() => None,
                _ = interrupt.recv() => None,
                _ = quit.recv() => None,
                _ = terminate.recv() => Some(Signal::SIGTERM),
                _ = hangup.recv() => Some(Signal::SIGHUP),
                _ = user1.recv() => Some(Signal::SIGUSR1),
                _ = user2.recv() => Some(Signal::SIGUSR2),
            };
            if let Some(forward) = forward {
                let _ = kill(child, forward);
            }
        }
    })?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
