//! `egress exec` in a terminal, as people use it: tmux is the terminal, a shell without rules of its own types.

use std::process::Command;
use std::time::{Duration, Instant};

use egress_tests::daemon::binary;

/// A tmux server of its own, ended when dropped.
struct Terminal {
    dir: tempfile::TempDir,
}

impl Terminal {
    fn new() -> Self {
        let terminal = Self { dir: tempfile::tempdir().unwrap() };
        // So wide that no line that is typed is wrapped, whatever the way to the binary: what is shown below a line that ends at the
        // last column counts as its end.
        let shell = format!("env PS1='$ ' E='{}' bash --norc --noprofile", binary().unwrap().display());
        terminal.tmux(&["new-session", "-d", "-x", "300", "-y", "30", &shell]);
        // What is typed before the prompt is echoed twice.
        terminal.shows("$");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let socket = self.dir.path().join("tmux");
        let mut command = Command::new("tmux");
        let output = command.arg("-S").arg(&socket).args(args).output().expect("tmux is installed");
        assert!(output.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Types a line.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.tmux(&["send-keys", "Enter"]);
    }

    fn key(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Waits until a line of the screen begins with this.
    #[track_caller]
    fn shows(&self, start: &str) {
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            let screen = self.tmux(&["capture-pane", "-p", "-J", "-S", "-200"]);
            if screen.lines().any(|line| line.starts_with(start)) {
                return;
            }
            assert!(Instant::now() < limit, "no line begins with {start:?}:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// `egress exec` of this command.
    fn exec(&self, command: &str) {
        self.line(&format!("$E exec --allow example.com -- {command}"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn a_shell_inside_has_the_terminal() {
    let terminal = Terminal::new();
    terminal.exec("bash --norc --noprofile -i");
    terminal.line("echo inside=$((40 + 2))");
    terminal.shows("inside=42");
    // Ctrl-C and Ctrl-Z reach what the inner shell runs, not the shell, not egress. What they are for says itself that it
    // runs: a key that comes earlier is the shell's.
    terminal.line("sh -c 'echo sleeps; exec sleep 60'");
    terminal.shows("sleeps");
    terminal.key("C-c");
    terminal.line("echo interrupted=$?");
    terminal.shows("interrupted=130");
    terminal.line("sh -c 'echo again; exec sleep 61'");
    terminal.shows("again");
    terminal.key("C-z");
    terminal.shows("[1]+  Stopped");
    terminal.line("kill %1; wait; echo inner=$?");
    terminal.shows("inner=");
    // A change of the window's size is known inside.
    terminal.tmux(&["resize-window", "-x", "81", "-y", "24"]);
    terminal.line("echo size=$(stty size)");
    terminal.shows("size=24 81");
    terminal.line("exit 7");
    terminal.line("echo outer=$?");
    terminal.shows("outer=7");
}

#[test]
fn the_outer_shell_controls_it_as_a_job() {
    let terminal = Terminal::new();
    terminal.exec("bash -c 'trap \"echo is-back\" CONT; echo runs; while sleep .1; do :; done'");
    terminal.shows("runs");
    terminal.key("C-z");
    terminal.shows("[1]+  Stopped");
    terminal.line("fg");
    terminal.shows("is-back");
    terminal.key("C-c");
    terminal.line("echo ended=$?");
    terminal.shows("ended=130");
    // Ctrl-C is the command's to answer: egress waits for what it does.
    terminal.exec(
        "bash -c 'trap \"echo; echo goes-on; exit 5\" INT; echo is-ready; while sleep .1; do :; done; exec sleep 64'",
    );
    terminal.shows("is-ready");
    terminal.key("C-c");
    terminal.shows("goes-on");
    terminal.line("echo answered=$?");
    terminal.shows("answered=5");
    // Killed, it leaves the terminal to the shell.
    terminal.exec("bash -c 'echo runs-too; exec sleep 63'");
    terminal.shows("runs-too");
    let shell = terminal.tmux(&["display-message", "-p", "#{pane_pid}"]);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.trim())).unwrap();
    let egress: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(egress), nix::sys::signal::Signal::SIGKILL).unwrap();
    terminal.line("echo killed=$? $(stty -a | grep -o ' -\\?echo ')");
    terminal.shows("killed=137 echo");
}
