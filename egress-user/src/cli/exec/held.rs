//! The command's process: forked early, held until its policy is in force.

use std::{
    ffi::OsString,
    io::{self, PipeReader, PipeWriter, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::Command,
};

use nix::{
    sys::{
        signal::{SigSet, SigmaskHow, Signal},
        wait::waitpid,
    },
    unistd::{self, ForkResult, Pid, fork},
};

use super::{cgroup::ExecCgroup, child::handed_on, user::User};
use crate::cli::Failure;

/// The command's process, before it is the command.
///
/// It is forked before anything that takes time, because its way into the cgroup takes some 10 ms (a grace period of RCU in
/// `cgroup_attach_lock`, kernel/cgroup/cgroup.c), which so pass while its policy is put in force.
#[derive(Debug)]
pub struct Held {
    pid: Pid,
    program: OsString,
    cgroup: PathBuf,
    words: Option<PipeWriter>,
    failure: PipeReader,
}

/// What the process could not do; then the error's number follows, in four bytes of the machine's order.
const ENTER: u8 = 0;
const BECOME: u8 = 1;
const EXECUTE: u8 = 2;

impl Held {
    /// Forks the process, which waits for [`Held::enter`]. To be called before any thread is started.
    pub fn fork(line: &[OsString], cgroup: &ExecCgroup, user: Option<&User>) -> anyhow::Result<Self> {
        let [program, arguments @ ..] = line else {
            return Err(Failure::input("no command is given", "write it after `--`").into());
        };
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(user) = user {
            user.describe(&mut command);
        }
        let (theirs, words) = io::pipe()?;
        let (failure, their_failure) = io::pipe()?;
        let parent = Pid::this();
        let mask = handed_on().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // SAFETY: this process has one thread, so that the child may use the whole of libc.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => {
                let (program, cgroup) = (program.clone(), cgroup.path().to_owned());
                Ok(Self { pid: child, program, cgroup, words: Some(words), failure })
            }
            ForkResult::Child => {
                drop((words, failure));
                let (what, error) = become_command(command, theirs, cgroup, user, mask, parent);
                let number = error.raw_os_error().unwrap_or(libc::EINVAL);
                let _ = (&their_failure).write_all(&[[what].as_slice(), &number.to_ne_bytes()].concat());
                // SAFETY: ends this process without running the parent's destructors.
                unsafe { libc::_exit(1) }
            }
        }
    }

    /// Lets the process go into its cgroup. While it does, this process cannot start a thread.
    pub fn enter(&self) {
        self.say();
    }

    fn say(&self) {
        if let Some(mut words) = self.words.as_ref() {
            // If the process is gone, `start` tells why.
            let _ = words.write_all(b"x");
        }
    }

    /// Lets the process become the command, and waits until it has.
    pub fn start(mut self) -> anyhow::Result<Pid> {
        self.say();
        let mut failure = Vec::new();
        // The command has closed its end by becoming the command (close-on-exec).
        self.failure.read_to_end(&mut failure)?;
        match failure.as_slice() {
            [] => {
                self.words = None;
                Ok(self.pid)
            }
            [what, number @ ..] => {
                let number = number.try_into().map_or(libc::EIO, i32::from_ne_bytes);
                Err(self.refusal(*what, io::Error::from_raw_os_error(number)))
            }
        }
    }

    fn refusal(&self, what: u8, error: io::Error) -> anyhow::Error {
        let program = self.program.display();
        if what == ENTER {
            return anyhow::Error::new(error).context(format!("move the command into {}", self.cgroup.display()));
        }
        if what == BECOME {
            return anyhow::Error::new(error).context(format!("become the user that is to run {program}"));
        }
        match error.kind() {
            io::ErrorKind::NotFound => Failure {
                code: 127,
                what: format!("cannot find the command {program}"),
                hint: Some("write its path, or look for it in PATH".to_owned()),
            }
            .into(),
            io::ErrorKind::PermissionDenied => Failure {
                code: 126,
                what: format!("cannot run {program}: {error}"),
                hint: Some("it must be executable, by the user that runs it".to_owned()),
            }
            .into(),
            _ => anyhow::Error::new(error).context(format!("run {program}")),
        }
    }
}

impl Drop for Held {
    /// Ends a process that has not become the command.
    fn drop(&mut self) {
        if self.words.take().is_some() {
            let _ = waitpid(self.pid, None);
        }
    }
}

/// Waits for the two words, and becomes the command. Gives what could not be done.
fn become_command(
    mut command: Command,
    mut words: PipeReader,
    cgroup: &ExecCgroup,
    user: Option<&User>,
    mask: SigSet,
    parent: Pid,
) -> (u8, io::Error) {
    // Without the word this one is not wanted: its policy could not be put in force, or its parent is gone.
    let mut await_word = || {
        if words.read_exact(&mut [0]).is_err() {
            // SAFETY: ends this process without running the parent's destructors.
            unsafe { libc::_exit(1) }
        }
    };
    await_word();
    if let Err(error) = std::fs::write(cgroup.path().join("cgroup.procs"), "0") {
        return (ENTER, error);
    }
    await_word();
    if let Err(error) = user.map_or(Ok(()), User::assume) {
        return (BECOME, error.into());
    }
    // If this program is killed, the janitor ends the whole cgroup; this makes it sooner for the command itself. After the
    // change of user, which takes it back (`commit_creds` in kernel/cred.c).
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    if unistd::getppid() != parent {
        // SAFETY: ends this process without running the parent's destructors.
        unsafe { libc::_exit(1) }
    }
    // SAFETY: one system call. The standard library empties the mask before.
    unsafe { command.pre_exec(move || Ok(mask.thread_set_mask()?)) };
    (EXECUTE, command.exec())
}
