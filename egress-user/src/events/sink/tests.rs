use std::{
    fs,
    os::unix::net::UnixDatagram,
    sync::{Mutex, mpsc},
    thread,
};

use serde_json::{Value, json};

use super::{run::Sink, *};
use crate::events::{Kind, LostWhere, PolicyChange, Timestamp};

fn refusal(count: u32) -> Event {
    serde_json::from_value(json!({"version": 1, "time": "2026-03-01T12:03:44.000001Z", "kind": "dropped",
        "verdict": "drop", "reason": "no-rule", "hook": "connect", "protocol": "tcp", "source": "192.0.2.1",
        "destination": "2001:db8::9", "destination_port": 443, "names": ["a.example", "b.example"], "bytes": 0,
        "generation": 3, "count": count, "cgroup_id": u64::MAX, "pod_uid": "u-1", "pod_namespace": "ns", "pod_name": "web",
        "process": {"pid": 12, "comm": "curl", "exe": "/usr/bin/curl", "uid": 1000, "ppid": 1},
        "container": {"id": "abc", "runtime": "podman"}}))
    .unwrap()
}

fn policy(message: &str) -> Event {
    let change =
        PolicyChange { generation: 1, applied: false, mode: "enforce".into(), rules: 1, message: message.into() };
    Event::new(Timestamp(1_772_366_624_000_000), Kind::Policy(change))
}

fn tally() -> Arc<Tally> {
    Arc::new(Tally::new("test".into()))
}

#[test]
fn a_sink_is_named_as_the_command_line_takes_it() {
    for (text, name) in [
        ("-", "stdout"),
        ("stdout:json", "stdout"),
        ("file:/var/log/e.jsonl", "file:/var/log/e.jsonl"),
        ("journal", "journal"),
        ("journal:/run/systemd/journal.x/socket", "journal:/run/systemd/journal.x/socket"),
        ("otlp:http://[::1]:4318", "otlp:http://[::1]:4318/v1/logs"),
        ("otlp:http://collector/custom", "otlp:http://collector/custom"),
    ] {
        assert_eq!(text.parse::<SinkSpec>().unwrap().to_string(), name);
    }
    for (text, says) in [
        ("", "a sink is one of"),
        ("stdout:xml", "a sink is one of"),
        ("file:", "a sink is one of"),
        ("kafka:x", "a sink is one of"),
        ("file:/events.jsonl", "a directory of its own"),
        ("otlp:https://x:4318", "TLS is not spoken here"),
        ("otlp:http://u:p@x", "user and password are not sent"),
        ("otlp:x:4318", "is no OTLP endpoint"),
    ] {
        let error = text.parse::<SinkSpec>().unwrap_err();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_file_gets_lines_and_is_made_anew_when_it_was_moved_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    fs::write(&path, "before\n").unwrap();
    let mut file = file::File::open(&path).unwrap();
    file.write(&[Arc::new(refusal(1)), Arc::new(refusal(2))]).unwrap();
    let rotated = directory.path().join("events.jsonl.1");
    fs::rename(&path, &rotated).unwrap();
    file.write(&[Arc::new(refusal(3))]).unwrap();
    fs::remove_file(&path).unwrap();
    file.write(&[Arc::new(refusal(4))]).unwrap();
    let counts = |path: &Path| -> Vec<u64> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?["count"].as_u64()).collect()
    };
    assert_eq!((counts(&rotated), counts(&path)), (vec![1, 2], vec![4]));
    assert!(fs::read_to_string(&rotated).unwrap().starts_with("before\n"));
}

#[test]
fn the_journal_gets_every_field() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut sink = journal::Journal::new(&path).unwrap();
    let event = Arc::new(refusal(1));
    assert!(sink.write(&[Arc::clone(&event)]).is_err(), "nobody is there");
    let socket = UnixDatagram::bind(&path).unwrap();
    sink.write(&[event, Arc::new(policy("two\nlines"))]).unwrap();
    let mut buffer = [0; 65_536];
    let length = socket.recv(&mut buffer).unwrap();
    let entry = String::from_utf8(buffer[..length].to_vec()).unwrap();
    for line in [
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=egress",
        "EGRESS_KIND=dropped",
        "EGRESS_REASON=no-rule",
        "EGRESS_DESTINATION=2001:db8::9",
        "EGRESS_NAMES=a.example",
        "EGRESS_NAMES=b.example",
        "EGRESS_PROCESS_PID=12",
        "EGRESS_CONTAINER_RUNTIME=podman",
    ] {
        assert!(entry.lines().any(|have| have == line), "{line}: {entry}");
    }
    let message = entry.lines().find_map(|line| line.strip_prefix("MESSAGE=")).unwrap();
    assert!(message.starts_with("dropped") && message.contains("[2001:db8::9]:443"), "{message}");
    // A value with a line feed goes with its length, or it could forge fields.
    let length = socket.recv(&mut buffer).unwrap();
    let mut want = b"EGRESS_MESSAGE\n".to_vec();
    want.extend_from_slice(&9_u64.to_le_bytes());
    want.extend_from_slice(b"two\nlines\n");
    assert!(buffer[..length].windows(want.len()).any(|part| part == want), "{}", buffer[..length].escape_ascii());
}

#[test]
fn a_log_record_has_the_conventions_names() {
    let request = otlp::request(&[Arc::new(refusal(1))], "node-1");
    let resource = request.resource_logs[0].resource.as_ref().unwrap();
    let record = &request.resource_logs[0].scope_logs[0].log_records[0];
    let text = |key: &str| {
        let found = record.attributes.iter().chain(&resource.attributes).find(|attribute| attribute.key == key);
        let value = found.unwrap_or_else(|| panic!("{key} is missing")).value.clone().unwrap();
        format!("{:?}", value.value.unwrap())
    };
    for (key, value) in [
        ("service.name", "StringValue(\"egress\")"),
        ("host.name", "StringValue(\"node-1\")"),
        ("destination.address", "StringValue(\"2001:db8::9\")"),
        ("destination.port", "IntValue(443)"),
        ("source.address", "StringValue(\"192.0.2.1\")"),
        ("network.transport", "StringValue(\"tcp\")"),
        ("network.type", "StringValue(\"ipv6\")"),
        ("process.pid", "IntValue(12)"),
        ("process.parent_pid", "IntValue(1)"),
        ("process.command", "StringValue(\"curl\")"),
        ("process.executable.path", "StringValue(\"/usr/bin/curl\")"),
        ("process.user.id", "IntValue(1000)"),
        ("container.id", "StringValue(\"abc\")"),
        ("container.runtime.name", "StringValue(\"podman\")"),
        ("k8s.namespace.name", "StringValue(\"ns\")"),
        ("k8s.pod.name", "StringValue(\"web\")"),
        ("k8s.pod.uid", "StringValue(\"u-1\")"),
        ("egress.reason", "StringValue(\"no-rule\")"),
        ("egress.count", "IntValue(1)"),
        ("egress.cgroup_id", "StringValue(\"18446744073709551615\")"),
    ] {
        assert_eq!(text(key), value, "{key}");
    }
    assert!(text("egress.names").contains("b.example"));
    assert_eq!((record.event_name.as_str(), record.severity_text.as_str()), ("egress.dropped", "WARN"));
    assert_eq!(record.time_unix_nano, 1_772_366_624_000_001_000);
}

/// What a sink under test got, and what it answers: as long as `down` is set, an error.
#[derive(Clone, Default)]
struct Fake {
    got: Arc<Mutex<Vec<Arc<Event>>>>,
    down: Arc<Mutex<Option<io::ErrorKind>>>,
}

impl Write for Fake {
    fn write(&mut self, events: &[Arc<Event>]) -> io::Result<u64> {
        if let Some(kind) = *self.down.lock().unwrap() {
            return Err(kind.into());
        }
        self.got.lock().unwrap().extend_from_slice(events);
        Ok(0)
    }
}

/// Runs a sink over a hub until that is closed.
fn running(hub: &Hub, fake: &Fake, patience: Duration) -> (Arc<Tally>, thread::JoinHandle<()>) {
    let (tally, events) = (tally(), hub.subscribe());
    let mut sink =
        Sink { writer: Box::new(fake.clone()), tally: Arc::clone(&tally), patience, failing: false, owed: 0 };
    (tally, thread::spawn(move || sink.run(events)))
}

#[test]
fn what_a_sink_misses_is_counted_and_told_to_it() {
    let (hub, fake) = (Hub::new(4), Fake::default());
    *fake.down.lock().unwrap() = Some(io::ErrorKind::BrokenPipe);
    let (tally, thread) = running(&hub, &fake, Duration::from_secs(60));
    hub.publish(refusal(1));
    while tally.lost() < 1 {
        thread::sleep(Duration::from_millis(1));
    }
    *fake.down.lock().unwrap() = None;
    hub.publish(refusal(2));
    hub.close();
    thread.join().unwrap();
    let got = fake.got.lock().unwrap();
    let Kind::Lost(lost) = got[0].kind else { panic!("{got:?}") };
    assert_eq!((lost.count, lost.place), (1, LostWhere::Subscriber));
    assert_eq!(got[1].refusal().unwrap().count, 2);
    assert_eq!((got.len(), tally.written(), tally.lost()), (2, 1, 1));
}

#[test]
fn a_sink_that_was_away_for_a_moment_misses_nothing() {
    let (hub, fake) = (Hub::new(64), Fake::default());
    *fake.down.lock().unwrap() = Some(io::ErrorKind::ConnectionRefused);
    let (tally, thread) = running(&hub, &fake, Duration::from_secs(60));
    (1..=40).for_each(|count| hub.publish(refusal(count)));
    thread::sleep(Duration::from_millis(150));
    *fake.down.lock().unwrap() = None;
    hub.close();
    thread.join().unwrap();
    let counts: Vec<u32> = fake.got.lock().unwrap().iter().map(|event| event.refusal().unwrap().count).collect();
    assert_eq!((counts, tally.lost()), ((1..=40).collect(), 0));
}

/// P6: the publisher never waits, and nobody's queue grows without end.
#[test]
fn a_sink_that_hangs_holds_up_nobody() {
    struct Hangs(mpsc::Receiver<()>);
    impl Write for Hangs {
        fn write(&mut self, _: &[Arc<Event>]) -> io::Result<u64> {
            let _ = self.0.recv();
            Ok(0)
        }
    }
    let (hub, (release, held)) = (Hub::new(16), mpsc::channel());
    let tally = tally();
    let opened = Opened { writer: Box::new(Hangs(held)), tally: Arc::clone(&tally) };
    let running = start(vec![opened.subscribe(&hub)]).unwrap();
    let mut other = hub.subscribe();
    hub.publish(refusal(0));
    assert!(other.try_next().is_some());
    for count in 1..=10_000 {
        hub.publish(refusal(count));
        assert!(other.try_next().is_some(), "the other reader has each at once");
    }
    // Of 10,001 up to 512 are in its hands, and 16 wait.
    let lost = tally.lost();
    assert!((9_473..=9_985).contains(&lost), "counted while it hangs: {tally:?}");
    drop(release);
    hub.close();
    running.finish();
    assert_eq!((tally.written() + tally.lost(), tally.missing()), (10_001, tally.lost()));
    assert_eq!(tally.lost(), lost, "and once");
}

/// The answers of a collector, one for each request.
fn collector(answers: Vec<Vec<u8>>) -> hyper::Uri {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = otlp::endpoint(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            // A request of one event is far below this, and sent whole.
            let _ = stream.read(&mut [0; 65_536]).unwrap();
            stream.write_all(&answer).unwrap();
        }
    });
    uri
}

#[test]
fn what_a_collector_refuses_for_good_is_lost_and_not_sent_again() {
    use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceResponse};
    use prost::Message as _;
    let partial = ExportLogsPartialSuccess { rejected_log_records: 1, error_message: "too old".into() };
    let body = ExportLogsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    let mut rejects = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    rejects.extend_from_slice(&body);
    let uri = collector(vec![
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec(),
        rejects,
        b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(),
    ]);
    let mut sink = otlp::Otlp::new(uri).unwrap();
    let event = [Arc::new(refusal(1))];
    assert_eq!(sink.write(&event).unwrap(), 1, "400");
    assert_eq!(sink.write(&event).unwrap(), 1, "one rejected");
    assert!(sink.write(&event).unwrap_err().to_string().contains("503"));
    assert_eq!(sink.write(&event).unwrap(), 0);
}
