//! Who a refused packet is told to be of: containers made by real runtimes, services, pods, forwarded packets. Needs root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use egress_tests::{
    Cgroup, Governed, Place, World,
    place::Run,
    probe::{tcp, udp},
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10], ports: [443/tcp]}\n";
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "1b2c3d4e-0000-4000-8000-0123456789ab";

/// Whether these programs are there; where they cannot be had, that is said, and there is nothing to test.
fn have(programs: &[&str]) -> bool {
    let there =
        |name: &&&str| ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|dir| Path::new(dir).join(name).exists());
    let missing: Vec<_> = programs.iter().filter(|name| !there(name)).collect();
    if missing.is_empty() {
        return true;
    }
    println!("SKIPPED: no {missing:?} here; `cargo xtask setup` installs them where Debian's packages can be had");
    false
}

/// A root directory with one static program, and nothing else.
fn from_scratch(dir: &Path) {
    fs::create_dir_all(dir.join("bin")).unwrap();
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    fs::copy(busybox, dir.join("bin/busybox")).unwrap();
    fs::set_permissions(dir.join("bin/busybox"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs a script where cgroup v2 is all that `/sys/fs/cgroup` has, as runtimes want it, and where nothing stays behind: in a mount
/// namespace of its own. What it says and how it ended is for the caller.
fn among_runtimes(place: &Place, script: &str) -> Run {
    let script = format!(
        "set -e; mount -t cgroup2 none /sys/fs/cgroup; mount -t tmpfs none /dev/shm; mount -t tmpfs none /var/lib; \
         if [ -d /etc/cni/net.d ]; then mount -t tmpfs none /etc/cni/net.d; fi; mkdir -p /run/containers; \
         export HOME=/run XDG_RUNTIME_DIR=/run; {script}"
    );
    place.run("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script], LIMIT).unwrap()
}

/// The path of a cgroup below the root of cgroup v2.
fn below_root(cgroup: &Cgroup) -> String {
    format!("/{}", cgroup.path().file_name().unwrap().to_string_lossy())
}

/// The event of a packet to this port, as soon as it is there.
fn event_to(test: &Governed, port: u16) -> Value {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        if let Some(event) = test.event(|event| event["destination_port"] == port).unwrap() {
            return event;
        }
    }
    panic!("no event to port {port}");
}

/// What a container does: sends, and stays until `/gate/open` is there, so that nothing of it is gone when it is looked up.
fn errand(port: u16) -> String {
    format!(
        "/bin/busybox nc -w 1 198.51.100.9 {port}; n=0; \
         while [ ! -e /gate/open ] && [ $n -lt 600 ]; do n=$((n+1)); /bin/busybox sleep 0.1; done"
    )
}

/// Runs a container's script, takes its event, and lets it end.
fn event_of(test: &Governed, script: &str, gate: &Path, port: u16) -> Value {
    let _ = fs::remove_file(gate.join("open"));
    std::thread::scope(|scope| {
        let container = scope.spawn(|| among_runtimes(&test.beside, script));
        let start = Instant::now();
        let event = loop {
            let event = test.event(|event| event["destination_port"] == port).unwrap();
            if event.is_some() || container.is_finished() || start.elapsed() > LIMIT {
                break event;
            }
        };
        fs::write(gate.join("open"), "").unwrap();
        let run = container.join().unwrap();
        event.unwrap_or_else(|| panic!("no event to port {port}: {run:?}"))
    })
}

/// An image made from scratch, run by podman with runc, in a cgroup that is governed: by id, runtime, process and executable.
#[test]
fn a_podman_container_is_told() {
    if !have(&["podman", "runc", "conmon", "busybox"]) {
        return;
    }
    let test = Governed::new(POLICY).unwrap();
    let dir = test.world.dir().join("podman");
    from_scratch(&dir.join("root"));
    let (parent, dir) = (below_root(&test.cgroup), dir.display());
    // Limits are left alone: on hybrid hosts cgroup v2 has no controllers, and a test's root may not raise them.
    let gate = test.world.dir().join("podman/gate");
    fs::create_dir(&gate).unwrap();
    let script = format!(
        "podman() {{ command podman --root {dir}/store --runroot /run/store --storage-driver vfs --cgroup-manager cgroupfs \
         --events-backend none --runtime runc \"$@\"; }}; \
         tar -C {dir}/root -c . | podman import - scratch; \
         podman run --cidfile {dir}/id --network host --cgroup-parent {parent} --pids-limit=-1 --ulimit nofile=1024:1024 \
         --ulimit nproc=1024:1024 --log-driver none --volume {dir}/gate:/gate scratch /bin/busybox sh -c '{}' || true; \
         podman rm --all --force",
        errand(8001)
    );
    let event = event_of(&test, &script, &gate, 8001);
    let id = fs::read_to_string(test.world.dir().join("podman/id")).unwrap();
    assert_eq!(event["container"], json!({"runtime": "podman", "id": id}), "{event}");
    assert_eq!(event["cgroup"], format!("{parent}/libpod-{id}"));
    assert_eq!((&event["process"]["comm"], &event["hook"]), (&"busybox".into(), &"connect".into()), "{event}");
    assert_eq!(event["process"]["uid"], 0);
    let text = test.daemon.egress(&["events", "--to", "198.51.100.9:8001"]).unwrap().stdout;
    assert!(text.contains(&format!("podman:{}", &id[..12])), "{text}");
}

/// runc and crun by hand: the name that it is given is in its cgroup's path; 64 hex digits are an id whose runtime nobody knows.
#[test]
fn a_container_of_an_unknown_runtime_is_told_by_its_id() {
    for runtime in ["runc", "crun"] {
        if have(&[runtime, "busybox"]) {
            an_unknown_runtime_is_told(runtime);
        }
    }
}

fn an_unknown_runtime_is_told(runtime: &str) {
    let test = Governed::new(POLICY).unwrap();
    let bundle = test.world.dir().join("bundle");
    from_scratch(&bundle.join("rootfs"));
    let gate = bundle.join("rootfs/gate");
    fs::create_dir(&gate).unwrap();
    let parent = below_root(&test.cgroup);
    for (name, port) in [(ID, 8002), ("box", 8003)] {
        let run = among_runtimes(&test.beside, &format!("cd {}; rm -f config.json; {runtime} spec", bundle.display()));
        assert!(run.ok(), "{run:?}");
        let file = bundle.join("config.json");
        let mut spec: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        spec["process"]["terminal"] = false.into();
        spec["process"]["args"] = json!(["/bin/busybox", "sh", "-c", errand(port)]);
        spec["process"].as_object_mut().unwrap().remove("rlimits");
        // crun's filter of devices is a BPF program, for which it raises a limit that a test's root may not.
        spec["linux"].as_object_mut().unwrap().remove("resources");
        spec["linux"]["cgroupsPath"] = format!("{parent}/{name}").into();
        spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|kind| kind["type"] != "network");
        // A sysfs can be mounted by who owns the network namespace alone.
        spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs" && mount["type"] != "cgroup");
        fs::write(&file, spec.to_string()).unwrap();
        let script = format!("cd {}; {runtime} --root /run/{runtime} run {name} </dev/null", bundle.display());
        let event = event_of(&test, &script, &gate, port);
        assert_eq!(event["cgroup"], format!("{parent}/{name}"), "{event}");
        let container = if name == ID { json!({"id": ID}) } else { Value::Null };
        assert_eq!(event["container"], container, "{event}");
    }
    let text = test.daemon.egress(&["events", "--to", "198.51.100.9:8002"]).unwrap().stdout;
    assert!(text.contains("container:0123456789ab"), "{text}");
}

/// A cgroup as systemd names a service's, and as the kubelet names a pod's container, whose pod it names in `/var/log/pods`.
#[test]
fn services_and_pods_are_told_by_their_cgroups() {
    let test = Governed::new(POLICY).unwrap();
    let pods = test.world.dir().join("pods");
    fs::create_dir_all(pods.join(format!("shop_cart-0_{UID}"))).unwrap();
    let mounted = test.world.mounts.run(|| {
        let log = Path::new("/var/log");
        let tmpfs = nix::mount::mount(Some("none"), log, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>);
        tmpfs.map_err(|errno| errno.to_string())?;
        std::os::unix::fs::symlink(&pods, log.join("pods")).map_err(|error| error.to_string())
    });
    assert_eq!(mounted, Ok(()), "make a /var/log/pods");
    let mut cgroup = test.cgroup.child("system.slice").unwrap().child("shop.service").unwrap();
    let from = |cgroup: &Cgroup, port: u16| {
        assert!(tcp(&test.world.node().in_cgroup(cgroup), &format!("198.51.100.9:{port}")).unwrap().refused());
        event_to(&test, port)
    };
    let event = from(&cgroup, 8004);
    assert_eq!(event["cgroup"], format!("{}/system.slice/shop.service", below_root(&test.cgroup)), "{event}");
    assert!(event["container"].is_null() && event["pod_uid"].is_null(), "{event}");
    let slice = format!("kubepods-burstable-pod{}.slice", UID.replace('-', "_"));
    cgroup = test.cgroup.child("kubepods.slice").unwrap();
    for name in ["kubepods-burstable.slice", &slice, &format!("cri-containerd-{ID}.scope")] {
        cgroup = cgroup.child(name).unwrap();
    }
    let event = from(&cgroup, 8005);
    assert_eq!(event["container"], json!({"runtime": "containerd", "id": ID}), "{event}");
    assert_eq!(
        (&event["pod_uid"], &event["pod_namespace"], &event["pod_name"]),
        (&UID.into(), &"shop".into(), &"cart-0".into())
    );
    let text = test.daemon.egress(&["events", "--to", "198.51.100.9:8005"]).unwrap().stdout;
    assert!(text.contains("pod:shop/cart-0"), "{text}");
}

/// What a pod with a network of its own sends is nobody's on the node, and said to be.
#[test]
fn a_forwarded_packet_is_of_no_process() {
    let world = World::with_pod().unwrap();
    let test = Governed::over(world, POLICY).unwrap();
    let _ = udp(&test.world.pod(), "198.51.100.9:8006", 10).unwrap();
    let event = event_to(&test, 8006);
    assert!(event["process"].is_null() && event["cgroup"].is_null() && event["container"].is_null(), "{event}");
    assert_eq!((&event["source"], &event["hook"]), (&"10.244.0.2".into(), &"uplink-egress".into()), "{event}");
    let text = test.daemon.egress(&["events", "--to", "198.51.100.9:8006/udp"]).unwrap().stdout;
    assert!(text.contains("no process"), "{text}");
}
