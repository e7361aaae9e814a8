//! The command: started in the cgroup, given the signals, waited for.

use std::{
    ffi::{CString, OsString},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitCode},
};

use anyhow::Context as _;
use nix::{
    sys::signal::{SigSet, SigmaskHow, Signal, kill},
    unistd::{self, Gid, Pid, Uid},
};
use tokio::signal::unix::{SignalKind, signal};

use super::cgroup::ExecCgroup;
use crate::cli::Failure;

/// Whom to run the command as.
#[derive(Debug)]
pub struct User {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    home: Option<OsString>,
    name: String,
}

impl User {
    /// A user by name or number.
    pub fn find(text: &str) -> Result<Self, Failure> {
        let unknown =
            || Failure::input(format!("there is no user `{text}`"), "name one of /etc/passwd, or write its number");
        let known = match text.parse() {
            Ok(uid) => unistd::User::from_uid(Uid::from_raw(uid)),
            Err(_) => unistd::User::from_name(text),
        };
        match known {
            Ok(Some(user)) => {
                let name = CString::new(user.name.clone()).map_err(|_| unknown())?;
                Ok(Self {
                    uid: user.uid,
                    gid: user.gid,
                    groups: unistd::getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]),
                    home: Some(user.dir.into_os_string()),
                    name: user.name,
                })
            }
            // A number without an entry is a user all the same, with no name, home or further groups.
            _ => {
                let uid = text.parse().map_err(|_| unknown())?;
                let gid = Gid::from_raw(uid);
                Ok(Self { uid: Uid::from_raw(uid), gid, groups: vec![gid], home: None, name: text.to_owned() })
            }
        }
    }
}

/// The signals that are handed on: held back from before the command starts until [`wait`] takes them, so that one that
/// comes early does not end this program, and the command with it.
fn handed_on() -> SigSet {
    use Signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2].into_iter().collect()
}

/// Starts the command. It is in the cgroup before it runs its first instruction.
pub fn spawn(words: &[OsString], cgroup: &ExecCgroup, user: Option<&User>) -> anyhow::Result<Child> {
    let [program, arguments @ ..] = words else {
        return Err(Failure::input("no command is given", "write it after `--`").into());
    };
    let mut command = Command::new(program);
    command.args(arguments);
    let procs = cgroup.path().join("cgroup.procs");
    if let Some(user) = user {
        command.env("USER", &user.name).env("LOGNAME", &user.name);
        if let Some(home) = &user.home {
            command.env("HOME", home);
        }
    }
    let user = user.map(|user| (user.uid, user.gid, user.groups.clone()));
    let mask = handed_on().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    // SAFETY: between fork and exec only system calls are made, on data that was made ready before; this process has no
    // thread yet that could hold a lock.
    unsafe {
        command.pre_exec(move || {
            std::fs::write(&procs, "0")?;
            mask.thread_set_mask()?;
            if let Some((uid, gid, groups)) = &user {
                unistd::setgroups(groups)?;
                unistd::setgid(*gid)?;
                unistd::setuid(*uid)?;
            }
            // If this program is killed, the janitor ends the whole cgroup; this makes it sooner for the command itself.
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        });
    }
    command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure {
            code: 127,
            what: format!("cannot find the command {}", program.display()),
            hint: Some("write its path, or look for it in PATH".to_owned()),
        }
        .into(),
        std::io::ErrorKind::PermissionDenied => Failure {
            code: 126,
            what: format!("cannot run {}: {error}", program.display()),
            hint: Some("it must be executable, by the user that runs it".to_owned()),
        }
        .into(),
        _ => anyhow::Error::new(error).context(format!("run {}", program.display())),
    })
}

/// Waits for the command, and hands it the signals that are sent to this process alone. What a terminal sends (Ctrl-C)
/// goes to the whole foreground process group, the command included.
pub fn wait(mut child: Child) -> anyhow::Result<ExitCode> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut user1 = signal(SignalKind::user_defined1())?;
        let mut user2 = signal(SignalKind::user_defined2())?;
        handed_on().thread_unblock()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok::<_, std::io::Error>(status);
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
                let _ = kill(pid, forward);
            }
        }
    })?;
    // As shells have it: 128 and the number of the signal that ended it.
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}
