//! P9: asking what a policy would change is work, of which those who may only read get one piece at a time.

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::{Condvar, Mutex},
    time::{Duration, Instant},
};

use super::{access::as_user, *};

const GROUP: u32 = 7654;
/// A test that fails ends all the same.
const LIMIT: Duration = Duration::from_secs(10);

/// How many are at work, at most so far and in all, and whether they may end.
#[derive(Default)]
struct Work {
    now: usize,
    most: usize,
    done: usize,
    open: bool,
}

/// Changes that take until they are let go.
#[derive(Default)]
struct Slow {
    work: Mutex<Work>,
    turned: Condvar,
}

impl Slow {
    fn wait(&self, until: impl Fn(&Work) -> bool) {
        let work = self.work.lock().unwrap();
        let (_work, waited) = self.turned.wait_timeout_while(work, LIMIT, |work| !until(work)).unwrap();
        assert!(!waited.timed_out());
    }

    fn open(&self, open: bool) {
        self.work.lock().unwrap().open = open;
        self.turned.notify_all();
    }
}

impl Change for Slow {
    fn apply(&self, _request: &ApplyRequest) -> Result<Changed, ChangeError> {
        let mut work = self.work.lock().unwrap();
        work.now += 1;
        work.most = work.most.max(work.now);
        self.turned.notify_all();
        let (mut work, _) = self.turned.wait_timeout_while(work, LIMIT, |work| !work.open).unwrap();
        work.now -= 1;
        work.done += 1;
        self.turned.notify_all();
        Ok(Changed::default())
    }
    fn confirm(&self) -> Result<Changed, ChangeError> {
        Ok(Changed::default())
    }
    fn roll_back(&self) -> Result<Changed, ChangeError> {
        Ok(Changed::default())
    }
}

struct Changing {
    fake: Fake,
    slow: Arc<Slow>,
}

impl Source for Changing {
    fn status(&self) -> Status {
        self.fake.status()
    }
    fn explain(&self, to: &str) -> Result<Explanation, ExplainError> {
        self.fake.explain(to)
    }
    fn hub(&self) -> &Hub {
        &self.fake.hub
    }
    fn change(&self) -> Option<&dyn Change> {
        Some(&*self.slow)
    }
}

fn daemon(limits: Limits) -> (Daemon, Arc<Slow>) {
    let slow = Arc::new(Slow::default());
    let change = Arc::clone(&slow);
    let daemon =
        Daemon::over(Some(GROUP), limits, |hub| Changing { fake: Fake { hub, status: status() }, slow: change });
    fs::set_permissions(daemon.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    (daemon, slow)
}

/// Sends a dry run whose policy has `size` bytes.
fn send(socket: &Path, size: usize) -> UnixStream {
    let texts = Texts { files: vec![("p.yaml".into(), "#".repeat(size))], ..Texts::default() };
    let body = serde_json::to_vec(&ApplyRequest { texts, confirm_seconds: None, dry_run: true }).unwrap();
    let head = format!(
        "POST /v1/policy HTTP/1.1\r\nhost: egress\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    // Who is refused is not heard to the end.
    let _ = stream.write_all(&body);
    stream
}

fn code(mut stream: UnixStream) -> u16 {
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(LIMIT / 2)).unwrap();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
}

fn as_reader<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    as_user(4321, &[GROUP], what)
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_readers_dry_runs_come_one_after_the_other_also_when_they_go_away() {
    let (daemon, slow) = daemon(Limits { request: Duration::from_millis(500), ..Limits::default() });
    let socket = daemon.socket();
    let first = as_reader(|| send(&socket, 10));
    slow.wait(|work| work.now == 1);
    // Gone, but what it began goes on.
    drop(first);
    let started = Instant::now();
    assert_eq!(as_reader(|| code(send(&socket, 10))), 503);
    assert!(started.elapsed() >= Duration::from_millis(500), "it waits for its turn");
    let root = send(&socket, 10);
    slow.wait(|work| work.now == 2);
    slow.open(true);
    assert_eq!(code(root), 200, "root's are not counted");
    slow.wait(|work| work.done == 2);
    assert_eq!(as_reader(|| code(send(&socket, 10))), 200, "the turn is free again");
    assert_eq!(slow.work.lock().unwrap().most, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn p9_a_reader_sends_less_than_root() {
    let (daemon, slow) = daemon(Limits::default());
    let socket = daemon.socket();
    slow.open(true);
    assert_eq!(as_reader(|| code(send(&socket, 1_000_000))), 200);
    assert_eq!(as_reader(|| code(send(&socket, 1 << 20))), 413);
    assert_eq!(code(send(&socket, 1 << 20)), 200);
    let texts = Texts { files: vec![("p.yaml".into(), "#".repeat(4 << 20))], ..Texts::default() };
    let request = ApplyRequest { texts, confirm_seconds: None, dry_run: true };
    let asked = tokio::task::spawn_blocking(move || {
        as_reader(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(Client::new(socket).apply(&request)).unwrap_err().to_string()
        })
    });
    let error = asked.await.unwrap();
    assert!(error.contains("up to 1 MiB"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_change_is_waited_for_however_long_it_takes() {
    let short = Duration::from_millis(200);
    let (daemon, slow) = daemon(Limits { whole: short, request: short, ..Limits::default() });
    let socket = daemon.socket();
    let (root, reader) = (send(&socket, 10), as_reader(|| send(&socket, 10)));
    slow.wait(|work| work.now == 2);
    tokio::time::sleep(2 * short).await;
    slow.open(true);
    assert_eq!(code(root), 200);
    assert_eq!(code(reader), 0, "others' connections end");
}
