//! The metrics as a real Prometheus takes them, and the dashboard's queries as it answers them. Needs root and Debian's
//! package `prometheus`, which `cargo xtask setup` installs.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use egress_tests::{Cgroup, Daemon, Governed, World, probe::tcp};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(8);
const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: named, to: [api.example.com], ports: [7000/tcp]}
";
const METRICS: &str = "127.0.0.1:9464";
const PROMETHEUS: &str = "http://127.0.0.1:9090";

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.dns.set_text("api.example.com", 30, &["203.0.113.40"]);
    world.serve(egress_tests::Service::TcpEcho, "203.0.113.10:7000").unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon =
        Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).arg("--metrics").arg(METRICS).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    Governed { daemon, inside, beside, cgroup, world }
}

fn get(test: &Governed, path: &str) -> String {
    let url = format!("http://{METRICS}{path}");
    test.beside.run("curl", &["-sS", "--max-time", "5", "--write-out", "\n%{http_code}", &url], LIMIT).unwrap().stdout
}

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file)
}

/// What was counted is told, for every part of a verdict, and a daemon that is well is ready.
#[test]
fn traffic_is_counted_in_the_metrics() {
    let test = governed();
    assert!(tcp(&test.inside, "203.0.113.10:7000").unwrap().echoed);
    assert!(tcp(&test.inside, "203.0.113.11:7000").unwrap().refused());
    let text = get(&test, "/metrics");
    let value = |start: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}\n{text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("egress_rule_packets_total{rule=\"one\"}") >= 1.0);
    assert!(value("egress_packets_total{verdict=\"pass\",reason=\"rule\"}") >= 1.0);
    assert!(value("egress_packets_total{verdict=\"drop\",reason=\"no-rule\"}") >= 1.0);
    assert!(value("egress_map_capacity{map=\"ADDRESSES_4\"}") >= 65536.0);
    assert_eq!(value("egress_attach_points{hook=\"socket_egress\",state=\"missing\"}"), 0.0);
    assert!(
        get(&test, "/healthz").ends_with("200") && get(&test, "/readyz").ends_with("200"),
        "{}",
        get(&test, "/readyz")
    );
}

/// A port that somebody has is a clear error before anything is enforced.
#[test]
fn a_metrics_port_in_use_is_refused() {
    let test = governed();
    let cgroup = Cgroup::new("second").unwrap();
    let beside = test.world.dir().join("beside.sock");
    let args = [
        "run",
        "--policy",
        "deny-all",
        "--cgroup",
        &cgroup.path().to_string_lossy(),
        "--interface",
        "none",
        "--resolver",
        "203.0.113.53",
        "--socket",
        &beside.to_string_lossy(),
        "--metrics",
        METRICS,
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let run = egress_tests::daemon::egress(&test.beside, &args, LIMIT).unwrap();
    assert!(run.code() == Some(3) && run.stderr.contains(METRICS) && run.stderr.contains("in use"), "{run:?}");
}

struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every query of the dashboard and of the alerts means something to Prometheus, and those that always have data have it.
#[test]
fn the_dashboards_queries_are_answered() {
    let test = governed();
    if !Path::new("/usr/bin/prometheus").exists() {
        eprintln!("SKIPPED: there is no /usr/bin/prometheus; `cargo xtask setup` installs it");
        return;
    }
    let dir = test.world.dir().join("prometheus");
    std::fs::create_dir(&dir).unwrap();
    let rules = dir.join("egress.rules.yml");
    std::fs::copy(deploy("prometheus/egress.rules.yml"), &rules).unwrap();
    let config = dir.join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n  - {{job_name: egress, static_configs: [{{targets: ['{METRICS}']}}]}}\n",
        rules.display()
    );
    std::fs::write(&config, text).unwrap();
    let checked = test.beside.run("promtool", &["check", "config", &config.to_string_lossy()], LIMIT).unwrap();
    assert!(checked.ok(), "{checked:?}");
    let mut command = test.beside.command("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .arg("--web.listen-address=127.0.0.1:9090")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _prometheus = Prometheus(command.spawn().unwrap());
    let ask = |query: &str| {
        let run = test.beside.run("promtool", &["query", "instant", PROMETHEUS, query], LIMIT).unwrap();
        (run.ok(), run.stdout, run.stderr)
    };
    let start = Instant::now();
    loop {
        let _ = tcp(&test.inside, "203.0.113.10:7000");
        let _ = tcp(&test.inside, "203.0.113.11:7000");
        let (ok, found, _) = ask("count_over_time(egress_packets_total{reason=\"no-rule\"}[1m]) > 3");
        if ok && !found.trim().is_empty() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(25), "Prometheus scraped nothing: {found}");
        std::thread::sleep(Duration::from_millis(300));
    }
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("grafana/egress.json")).unwrap()).unwrap();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let query = target["expr"].as_str().unwrap().replace("$__rate_interval", "1m");
            let (ok, found, error) = ask(&query);
            assert!(ok, "{query}: {error}");
            // A resolver that never failed has no failures to show.
            assert!(!found.trim().is_empty() || query.contains("resolver_failures"), "nothing for {query}");
            queries += 1;
        }
    }
    assert!(queries >= 14);
    let (_, firing, _) = ask("ALERTS{alertname=~\"EgressNotAttached|EgressTableFull\"}");
    assert!(firing.trim().is_empty(), "{firing}");
}
