//! The commands that need no daemon, run as a user runs them.

use std::{fs, path::Path};

use assert_cmd::Command;
use serde_json::Value;

struct Run {
    code: i32,
    out: String,
    err: String,
}

fn egress(args: &[&str]) -> Run {
    run(Command::cargo_bin("egress").unwrap().args(args).env_remove("EGRESS_SOCKET"))
}

fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code().expect("an exit code, not a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn json(run: &Run) -> Value {
    serde_json::from_str(&run.out).unwrap_or_else(|error| panic!("{error}: {}{}", run.out, run.err))
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const GOOD: &str = "rules:\n  - name: web\n    why: the site\n    to: [\"*.example.com\"]\n    ports: [443/tcp]\n";

#[test]
fn check_says_ok() {
    let run = egress(&["check", "aks-required", "aks-optional"]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    assert!(run.out.starts_with("ok: 15 rules in 2 files, 0 warnings"), "{}", run.out);
}

#[test]
fn check_names_the_place_and_exits_2() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "p.yaml", "rules:\n  - name: x\n    to: [a.*.com]\n    ports: [443/tcp]\n");
    let run = egress(&["check", &path]);
    assert_eq!((run.code, run.out.as_str()), (2, ""));
    assert!(run.err.contains(&format!("{path}:3:10")), "{}", run.err);
    assert!(run.err.contains("^^^^^^^") && run.err.contains("help:"), "{}", run.err);
    assert!(!run.err.contains('\x1b'), "no colour in a pipe");

    let run = egress(&["check", "--json", &path]);
    let value = json(&run);
    assert_eq!((run.code, &value["ok"], &value["hash"]), (2, &Value::Bool(false), &Value::Null));
    assert_eq!((&value["errors"][0]["line"], &value["errors"][0]["column"]), (&3.into(), &10.into()));
}

#[test]
fn warnings_fail_with_strict_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "p.yaml", "rules:\n  - {name: x, to: [any], ports: [any]}\n");
    let run = egress(&["check", &path]);
    assert_eq!(run.code, 0);
    assert!(run.err.contains("warning[wide-ports]"), "{}", run.err);
    let run = egress(&["check", "--strict", "--json", &path]);
    assert_eq!((run.code, &json(&run)["warnings"][0]["code"]), (2, &"wide-ports".into()));
}

#[test]
fn a_directory_is_all_its_files_in_order() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "b.yml", &GOOD.replace("name: web", "name: second"));
    write(directory.path(), "a.yaml", GOOD);
    write(directory.path(), "notes.txt", "not a policy");
    let run = egress(&["check", "--json", directory.path().to_str().unwrap()]);
    let files = json(&run)["files"].as_array().unwrap().clone();
    assert_eq!(files.len(), 2);
    assert!(files[0].as_str().unwrap().ends_with("a.yaml") && files[1].as_str().unwrap().ends_with("b.yml"));
    let empty = tempfile::tempdir().unwrap();
    let run = egress(&["check", empty.path().to_str().unwrap()]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("has no policy"), "{}", run.err);
}

#[test]
fn files_that_cannot_be_read() {
    let run = egress(&["check", "aks-requird"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("did you mean the embedded policy `aks-required`?"), "{}", run.err);
    let directory = tempfile::tempdir().unwrap();
    let binary = directory.path().join("p.yaml");
    fs::write(&binary, b"rules:\n\xff\xfe").unwrap();
    let run = egress(&["check", binary.to_str().unwrap()]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("not UTF-8 text (line 2)"), "{}", run.err);
    let large = directory.path().join("large.yaml");
    fs::File::create(&large).unwrap().set_len(65 << 20).unwrap();
    let run = egress(&["check", large.to_str().unwrap()]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("larger than 64 MiB"), "{}", run.err);
}

#[test]
fn a_pipe_among_the_files_of_a_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "a.yaml", GOOD);
    let pipe = directory.path().join("z.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let run = egress(&["check", directory.path().to_str().unwrap()]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("z.yaml`: it is no regular file"), "{}", run.err);
    // One that is named is waited for, if somebody writes to it.
    let started = std::time::Instant::now();
    let run = egress(&["check", pipe.to_str().unwrap()]);
    assert!(run.code == 2 && run.err.contains("nobody writes to this pipe"), "{}", run.err);
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
    let to = pipe.clone();
    let writer = std::thread::spawn(move || {
        let mut pipe = fs::OpenOptions::new().write(true).open(to).unwrap();
        for part in GOOD.split_inclusive('\n') {
            std::io::Write::write_all(&mut pipe, part.as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let run = egress(&["check", pipe.to_str().unwrap()]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
    writer.join().unwrap();
}

#[test]
fn standard_input_is_a_policy_too() {
    let large = format!("{GOOD}{}", "# a comment\n".repeat(100_000));
    let run = Command::cargo_bin("egress").unwrap().args(["check", "/dev/stdin"]).write_stdin(large).output().unwrap();
    assert!(run.status.success() && run.stdout.starts_with(b"ok: 1 rule"), "{run:?}");
    let run = Command::cargo_bin("egress").unwrap().args(["check", "/dev/stdin"]).write_stdin("").output().unwrap();
    assert!(run.status.code().is_some(), "nothing is an answer too: {run:?}");
}

#[test]
fn a_file_of_10_mb_that_is_no_policy() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "p.yaml", &"x".repeat(10_000_000));
    let run = egress(&["check", &path]);
    assert_eq!(run.code, 2);
    assert!(run.err.len() < 4000, "the excerpt is cut: {}", run.err.len());
}

#[test]
fn a_byte_order_mark_and_windows_lines_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), "p.yaml", &format!("\u{feff}{}", GOOD.replace('\n', "\r\n")));
    let run = egress(&["check", &path]);
    assert_eq!((run.code, run.err.as_str()), (0, ""));
}

#[test]
fn explain_answers_with_rule_and_exit_code() {
    let run = egress(&["explain", "--policy", "aks-required", "x.hcp.westeurope.azmk8s.io:9000"]);
    assert_eq!(run.code, 0);
    assert!(run.out.starts_with("allowed  x.hcp.westeurope.azmk8s.io:9000/tcp\n"), "{}", run.out);
    assert!(run.out.contains("`aks-api-server` (aks-required.yaml:6)"), "{}", run.out);
    let run = egress(&["explain", "--policy", "aks-required", "example.com"]);
    assert_eq!(run.code, 1);
    assert!(run.out.starts_with("denied  example.com:443/tcp\n"), "{}", run.out);
    let run = egress(&["explain", "--json", "--policy", "aks-optional", "192.0.2.1:123/udp"]);
    let value = json(&run);
    assert_eq!((&value["reason"], &value["rules"][0]["name"]), (&"allow".into(), &"aks-ntp".into()));
}

#[test]
fn allow_needs_no_file() {
    assert_eq!(egress(&["explain", "--allow", "github.com", "github.com"]).code, 0);
    assert_eq!(egress(&["explain", "--allow", "github.com", "github.com:22"]).code, 1);
    assert_eq!(egress(&["explain", "--allow", "10.0.0.0/8:any", "10.1.2.3/icmp"]).code, 0);
    assert_eq!(egress(&["explain", "--allow", "[2001:db8::1]:443", "[2001:db8::1]:443"]).code, 0);
    let run = egress(&["explain", "--allow", "https://github.com/x", "github.com"]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("write the host and its port alone: `github.com:443`"), "{}", run.err);
}

#[test]
fn wrong_destinations_exit_2() {
    for wrong in ["*.example.com", "10.0.0.0/8", "any", "a.com:0", "a.com:443/sctp", "a.com:1-5"] {
        assert_eq!(egress(&["explain", "--policy", "deny-all", wrong]).code, 2, "{wrong}");
    }
}

#[test]
fn placeholders_come_from_set() {
    let directory = tempfile::tempdir().unwrap();
    let text = "rules:\n  - {name: x, to: [\"${region}.example.com\"], ports: [443/tcp]}\n";
    let path = write(directory.path(), "p.yaml", text);
    let run = egress(&["check", &path]);
    assert_eq!(run.code, 2);
    assert!(run.err.contains("--set region="), "{}", run.err);
    assert_eq!(egress(&["check", &path, "--set", "region=westeurope"]).code, 0);
    assert_eq!(egress(&["check", &path, "--set", "region=west europe"]).code, 2);
    assert_eq!(egress(&["check", &path, "--set", "region=a", "--set", "regoin=b"]).code, 2);
    assert_eq!(egress(&["check", "deny-all", "--set", "region"]).code, 2);
}

#[test]
fn policies_are_listed_and_printed() {
    let run = egress(&["policies"]);
    let listed = json(&egress(&["policies", "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 8);
    for row in listed.as_array().unwrap() {
        let name = row["name"].as_str().unwrap();
        assert!(run.out.contains(name));
        let printed = egress(&["policies", name]);
        let directory = tempfile::tempdir().unwrap();
        let path = write(directory.path(), "p.yaml", &printed.out);
        assert_eq!(egress(&["check", "--strict", &path]).code, 0, "{name}");
    }
    assert_eq!(egress(&["policies", "nope"]).code, 2);
}

#[test]
fn schema_and_completions_print() {
    let schema = json(&egress(&["schema"]));
    assert_eq!(schema["additionalProperties"], Value::Bool(false));
    for shell in ["bash", "zsh", "fish"] {
        let run = egress(&["completions", shell]);
        assert!(run.code == 0 && run.out.contains("explain"), "{shell}");
    }
}

#[test]
fn arguments_of_every_command_hold_together() {
    for command in
        ["run", "exec", "check", "explain", "status", "events", "detach", "policies", "schema", "completions"]
    {
        let run = egress(&[command, "--help"]);
        assert!(run.code == 0 && run.out.contains("--socket"), "{command}: {}", run.err);
    }
    assert_eq!(egress(&["exec", "--allow", "github.com"]).code, 2, "no command");
    assert_eq!(egress(&[]).code, 2);
}

#[test]
fn every_example_of_the_documentation_is_valid() {
    let text = include_str!("../../docs/policy.md");
    let directory = tempfile::tempdir().unwrap();
    let examples: Vec<_> = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 5);
    for (number, example) in examples.into_iter().enumerate() {
        let path = write(directory.path(), &format!("{number}.yaml"), example);
        let run = egress(&["check", "--strict", &path]);
        assert_eq!(run.code, 0, "{example}\n{}", run.err);
    }
    for (name, _) in egress_user::policy::WARNINGS {
        assert!(text.contains(&format!("| `{name}` |")), "the documentation lacks the warning {name}");
    }
}

#[test]
fn what_cannot_be_written_is_said_at_once_with_a_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let file = write(directory.path(), "file", "");
    let below = format!("{file}/x.yaml");
    for (args, says) in [
        (&["learn", "-o", &below, "--", "true"][..], "make it, or name another file"),
        (&["man", "--out", &below], "name a directory that you may write"),
    ] {
        let run = egress(args);
        assert!(run.code == 2 && run.err.contains(says), "{args:?}: {}", run.err);
    }
}

/// Ten megabytes in one piece, or what would be far more once it is unfolded: read, or refused with its place.
#[test]
fn huge_shapes_are_read_or_refused_with_their_place() {
    let directory = tempfile::tempdir().unwrap();
    let check = |name: &str, text: &str| egress(&["check", &write(directory.path(), name, text)]);
    let rule = |why: &str| format!("rules:\n  - {{name: a, why: {why}, to: [a.example.com], ports: [443/tcp]}}\n");
    let run = check("scalar.yaml", &rule(&"a".repeat(10_000_000)));
    assert_eq!(run.code, 0, "{}", run.err);
    let run = check("nested.yaml", &format!("rules: {}\n", "[".repeat(5_000_000)));
    assert!(run.code == 2 && run.err.contains("nested.yaml:1:"), "{}", run.err);
    // Each line is nine times the one before.
    let bomb: String = ('b'..='j')
        .map(|name| {
            let before = char::from(name as u8 - 1);
            format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(","))
        })
        .collect();
    let run = check("bomb.yaml", &format!("a: &a [x,x,x,x,x,x,x,x,x]\n{bomb}"));
    assert!(run.code == 2 && run.err.contains("bomb.yaml:"), "{}", run.err);
}

/// Without a daemon: what can be asked all the same.
#[test]
fn what_needs_no_daemon_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let alone = |args: &[&str]| {
        run(Command::cargo_bin("egress")
            .unwrap()
            .args(args)
            .env("EGRESS_SOCKET", directory.path().join("egress.sock"))
            .env("EGRESS_BPFFS", directory.path()))
    };
    for (line, hint) in [
        (&["explain", "192.0.2.1:123/udp"][..], "`egress explain --policy P 192.0.2.1:123/udp`"),
        (&["diff", "deny-all"], "`egress diff A B`"),
    ] {
        let run = alone(line);
        assert!(run.code == 3 && run.err.contains("no daemon answers at") && run.err.contains(hint), "{}", run.err);
    }
    // What it put in force does not go with it.
    let stays = "enforcement stays on without a daemon; `egress detach` ends it";
    assert!(!alone(&["status"]).err.contains(stays));
    let links = directory.path().join("egress/v0/links");
    fs::create_dir_all(&links).unwrap();
    fs::write(links.join("link"), "").unwrap();
    let run = alone(&["status"]);
    assert!(run.code == 3 && run.err.contains(stays), "{}", run.err);
}

/// What is wrong is told with what is right.
#[test]
fn a_wrong_argument_is_told_with_an_example() {
    for (line, hint) in [
        (&["exec", "true"][..], "put `--` before the command: `-- true`"),
        (&["exec", "--allow", "github.com", "curl", "-v", "x"], "`-- curl`"),
        (&["learn", "-o", "p.yaml", "true"], "`-- true`"),
        (&["events", "--pid", "x"], "like 1234"),
        // In no cgroup, so that nothing is governed should it be taken.
        (&["run", "--policy", "deny-all", "--cgroup", "/none", "--metrics", "foo"], "like 127.0.0.1:9464"),
        (
            &["run", "--policy", "deny-all", "--cgroup", "/none", "--interface", "none", "--interface", "up0"],
            "`none` stands alone",
        ),
        (&["run", "--policy", "deny-all", "--interface", "none", "--cgroup", "/none"], "/sys/fs/cgroup/"),
        (&["explain", "github.com", "--set", "a=b"], "`egress explain --policy P --set KEY=VALUE DEST`"),
        (&["explain", "--packet", "icmp 192.0.2.1", "--set", "a=b"], "`--set` fills a placeholder"),
    ] {
        let run = egress(line);
        assert!(run.code == 2 && run.err.contains(hint), "{line:?}: {} {}", run.code, run.err);
    }
    for line in [&["events", "true"][..], &["exec", "--alow", "x"]] {
        assert!(!egress(line).err.contains("before the command"), "{line:?}");
    }
}
