mod access;
mod dry_run;
mod limits;

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;
use crate::events::{Event, Kind, Lost, LostWhere, PolicyChange, Timestamp};

/// A daemon whose state is made up.
pub(crate) struct Fake {
    pub(crate) hub: Hub,
    pub(crate) status: Status,
}

impl Source for Fake {
    fn status(&self) -> Status {
        self.status.clone()
    }
    fn explain(&self, to: &str) -> Result<Explanation, ExplainError> {
        if to == "slow" {
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        if to.contains(' ') {
            let hint = Some("write NAME[:PORT]".into());
            return Err(ExplainError { message: format!("`{to}` is no destination"), hint });
        }
        Ok(Explanation { destination: to.into(), allowed: true, reason: "rule".into(), ..Explanation::default() })
    }
    fn hub(&self) -> &Hub {
        &self.hub
    }
}

/// A state with every field in use.
pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        mode: "enforce".into(),
        enforcing: true,
        started: Timestamp(1_772_366_624_000_000),
        generation: 3,
        policy: PolicyStatus {
            files: vec!["aks-required".into()],
            hash: "0123456789abcdef".into(),
            rules: 2,
            ..PolicyStatus::default()
        },
        attach_points: vec![
            AttachPoint {
                hook: "cgroup_skb/egress".into(),
                target: "/sys/fs/cgroup".into(),
                link_id: Some(7),
                present: true,
            },
            AttachPoint { hook: "tcx/egress".into(), target: "eth0".into(), link_id: None, present: false },
        ],
        rules: vec![
            RuleStatus {
                name: "api-server".into(),
                why: Some("API server endpoint".into()),
                action: "allow".into(),
                packets: 1200,
                bytes: 1_500_000,
                source: "aks-required:12".into(),
            },
            RuleStatus {
                name: "a-rule-with-a-name-that-is-much-too-long-for-its-column".into(),
                why: None,
                action: "deny".into(),
                packets: 0,
                bytes: 0,
                source: "/etc/egress/policies/some/deep/directory/local.yaml:3".into(),
            },
        ],
        names: vec![
            NameStatus {
                name: "mcr.microsoft.com".into(),
                addresses: vec![
                    AddressStatus { address: "203.0.113.4".parse().unwrap(), seconds_left: 930, permanent: false },
                    AddressStatus { address: "2001:db8::4".parse().unwrap(), seconds_left: 0, permanent: true },
                ],
                rules: vec!["images".into()],
                last_error: None,
            },
            NameStatus {
                name: format!("{}.blob.core.windows.net", "x".repeat(63)),
                addresses: Vec::new(),
                rules: vec!["images".into()],
                last_error: Some(
                    "10.0.0.53:53 answered SERVFAIL, and so did every other resolver that was asked".into(),
                ),
            },
        ],
        counters: vec![
            Counter { reason: "rule".into(), passes: true, packets: 1200, bytes: 1_500_000 },
            Counter { reason: "no-rule".into(), passes: false, packets: 12, bytes: 720 },
            Counter { reason: "denied".into(), passes: false, packets: 0, bytes: 0 },
        ],
        events_lost: 5,
        sinks: vec![SinkStatus { sink: "file:/var/log/egress.jsonl".into(), written: 7, lost: 2 }],
        learning: vec![
            LearnCounter { what: "added".into(), loses: false, count: 900 },
            LearnCounter { what: "map-full".into(), loses: true, count: 3 },
        ],
        maps: vec![
            MapFill { name: "ADDRESSES_4".into(), entries: 60_000, capacity: 65_536, bytes: 5_242_880, evicts: false },
            MapFill { name: "FLOWS".into(), entries: 65_536, capacity: 65_536, bytes: 7_340_032, evicts: true },
        ],
        warnings: vec![
            "BPF LSM is off: a governed workload with CAP_NET_RAW can skip the hooks with PACKET_QDISC_BYPASS; boot \
             with lsm=...,bpf"
                .into(),
        ],
        health: Health {
            healthy: false,
            problems: vec![
                "tcx/egress at eth0 is missing: something detached it; restart the daemon to attach it".into(),
            ],
        },
    }
}

pub(crate) struct Daemon {
    pub(crate) directory: TempDir,
    pub(crate) hub: Hub,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Daemon {
    pub(crate) fn start(group: Option<u32>, limits: Limits) -> Self {
        Self::over(group, limits, |hub| Fake { hub, status: status() })
    }

    fn over<S: Source>(group: Option<u32>, limits: Limits, source: impl FnOnce(Hub) -> S) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hub = Hub::new(4);
        let options = SocketOptions { path: directory.path().join("run/egress.sock"), group };
        let server = Server::bind(&options).unwrap().with_limits(limits);
        let (stop, stopped) = oneshot::channel::<()>();
        let source = Arc::new(source(hub.clone()));
        let task = tokio::spawn(server.serve(source, async {
            let _ = stopped.await;
        }));
        Self { directory, hub, stop: Some(stop), task }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("run/egress.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    async fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        (&mut self.task).await.unwrap();
    }
}

fn policy_event(generation: u32) -> Event {
    let change =
        PolicyChange { generation, applied: true, mode: "enforce".into(), rules: 1, message: "x".repeat(2000) };
    Event::new(Timestamp(1_772_366_624_000_000), Kind::Policy(change))
}

fn lost_event(count: u64) -> Event {
    Event::new(Timestamp(1_772_366_624_000_000), Kind::Lost(Lost { count, place: LostWhere::Kernel }))
}

#[tokio::test]
async fn status_health_and_explain_go_both_ways() {
    let daemon = Daemon::start(None, Limits::default());
    assert_eq!(daemon.client().status().await.unwrap(), status());
    assert_eq!(daemon.client().health().await.unwrap(), status().health);
    let to = "[2001:db8::1]:443/tcp&to=x%";
    assert_eq!(daemon.client().explain(to).await.unwrap().destination, to);
    let error = daemon.client().explain("a b").await.unwrap_err();
    let ClientError::Refused { message, hint } = &error else { panic!("{error:?}") };
    assert_eq!((message.as_str(), hint.as_deref()), ("`a b` is no destination", Some("write NAME[:PORT]")));
    let error = daemon.client().explain(&"x".repeat(1000)).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { message, .. } if message.contains("too long")), "{error:?}");
}

#[tokio::test]
async fn events_are_those_kept_then_those_that_come() {
    let mut daemon = Daemon::start(None, Limits::default());
    for number in 1..=6 {
        daemon.hub.publish(policy_event(number));
    }
    daemon.hub.publish(lost_event(9));
    let read = async |filter| {
        let mut stream = daemon.client().events(filter).await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = stream.next().await.unwrap() {
            events.push(event);
        }
        events
    };
    let kept = vec![policy_event(4), policy_event(5), policy_event(6), lost_event(9)];
    assert_eq!(read(EventFilter::default()).await, kept);
    assert_eq!(read(EventFilter { dropped: true, ..EventFilter::default() }).await, [lost_event(9)]);
    let one = EventFilter { recent: Some(2), ..EventFilter::default() };
    assert_eq!(read(one).await, [policy_event(6), lost_event(9)]);

    let follow = EventFilter { follow: true, dropped: true, ..EventFilter::default() };
    let mut live = daemon.client().events(follow).await.unwrap();
    daemon.hub.publish(policy_event(7));
    daemon.hub.publish(lost_event(10));
    assert_eq!(live.next().await.unwrap(), Some(lost_event(10)));
    daemon.stop().await;
    assert_eq!(live.next().await.unwrap(), None);
    assert!(!daemon.socket().exists());
}
