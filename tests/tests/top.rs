//! `egress top` in a real terminal. Needs root and tmux.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use egress_tests::{Governed, daemon::binary, probe::tcp};

const LIMIT: Duration = Duration::from_secs(10);

/// A terminal of its own server, which ends with the test.
struct Terminal(String);

impl Terminal {
    fn new(columns: u32, command: &str) -> Self {
        let terminal = Self(format!("egress-top-{}-{columns}", std::process::id()));
        // A shell round it: what the screen looks like afterwards can be seen.
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &columns.to_string(), "-y", "20", "/bin/sh"]);
        terminal.tmux(&["send-keys", "-l", command]);
        terminal.tmux(&["send-keys", "Enter"]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux").args(["-L", &self.0]).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]);
            if holds(&screen) {
                return screen;
            }
            assert!(start.elapsed() < LIMIT, "waited in vain for {what}:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn it_shows_what_is_dropped_and_leaves_the_terminal_as_it_was() {
    let test = Governed::new("version: 1\nrules: [{name: one, to: [203.0.113.1], ports: [443/tcp]}]\n").unwrap();
    let top = format!(
        "{} --socket {} top; stty -a | tr -d '\\n' >&2; echo ended=$?",
        binary().unwrap().display(),
        test.daemon.socket().display()
    );
    for (columns, quit) in [(80, "q"), (20, "C-c")] {
        let terminal = Terminal::new(columns, &top);
        terminal.until("the first picture", |screen| screen.starts_with("dropped, by"));
        for _ in 0..3 {
            let _ = tcp(&test.inside, "198.51.100.9:4444");
        }
        terminal.until("a destination", |screen| screen.contains("198.51.100.9") && screen.contains("q quit"));
        terminal.tmux(&["send-keys", "r"]);
        terminal.until("the rules", |screen| screen.contains("matched, by rule") && screen.contains("one"));
        terminal.tmux(&["send-keys", quit]);
        let screen = terminal.until("its end", |screen| screen.contains("ended=0"));
        assert!(!screen.contains("matched, by rule"), "the screen from before is back: {screen}");
        let flags = screen.replace('\n', "");
        assert!(flags.contains(" echo ") && !flags.contains("-icanon"), "{screen}");
    }
}
