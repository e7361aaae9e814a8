//! Processes that keep their sockets while the test does something else: a client with an open connection, and an echo
//! server. Both run in a place of their own, since a socket belongs to the cgroup of the process that made it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::place::Place;

const CLIENT: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
s.settimeout(0.7)
print('ready', flush=True)
for line in sys.stdin:
    try:
        s.sendall(line.encode())
        print('echo' if s.recv(100) == line.encode() else 'end', flush=True)
    except OSError as e:
        print(e, flush=True)
";

const SERVER: &str = "import socket, sys, threading
port = int(sys.argv[1])
def talk(c):
    while d := c.recv(65536):
        c.sendall(d)
t = socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
def accept():
    while True:
        threading.Thread(target=talk, args=(t.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
def datagrams(u):
    while True:
        d, a = u.recvfrom(65536)
        u.sendto(d, a)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
u.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
u.bind(('::', port))
v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
v.bind(('0.0.0.0', port + 1))
threading.Thread(target=datagrams, args=(v,), daemon=True).start()
print('ready', flush=True)
datagrams(u)
";

/// A Python script that sends forbidden datagrams as fast as it can, until it is killed.
pub const FLOOD: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
 try: s.sendto(b'leak', ('198.51.100.77', 7000))
 except OSError: pass
";

/// The system's Python, not a version manager's wrapper, where there is one.
#[must_use]
pub fn python() -> &'static str {
    if std::path::Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

/// A TCP connection to an echo server, held by a process in a place. Ends when dropped.
#[derive(Debug)]
pub struct Held {
    child: Child,
    words: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Held {
    /// Connects.
    pub fn connect(place: &Place, address: &str, port: u16) -> Result<Self> {
        let mut command = place.command(python());
        command.args(["-c", CLIENT, address, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start python3")?;
        let (words, lines) = (child.stdin.take().context("stdin")?, child.stdout.take().context("stdout")?);
        let mut held = Self { child, words, lines: BufReader::new(lines) };
        let first = held.line()?;
        ensure!(first == "ready", "{address} port {port}: the client could not connect");
        Ok(held)
    }

    /// Says a line; `echo` when it came back within 0.7 s, else what happened.
    pub fn say(&mut self, words: &str) -> Result<String> {
        writeln!(self.words, "{words}")?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An echo server: TCP and UDP of both families by dual-stack sockets on a port, UDP by an IPv4 socket on the next.
#[derive(Debug)]
pub struct EchoServer {
    child: Child,
}

impl EchoServer {
    pub fn start(place: &Place, port: u16) -> Result<Self> {
        let mut command = place.command(python());
        command.args(["-c", SERVER, &port.to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start python3")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "the echo server did not start: {line}");
        Ok(Self { child })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
