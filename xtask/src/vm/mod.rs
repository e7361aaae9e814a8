//! `cargo xtask vm`: the kernel tests, or a command, on another kernel, in a virtual machine without a network.
//!
//! The machine sees this host's root file system read-only, so that what was built here runs there as it is; what it
//! writes stays in its memory.

mod kernel;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::place::Place;
use crate::{build, run, setup};
use kernel::Kernel;

#[derive(clap::Args)]
pub struct Options {
    /// The kernel: 6.1 (before tcx) or 6.12.
    #[arg(long, default_value = "6.1")]
    kernel: String,
    /// Ends the machine after so many seconds.
    #[arg(long, default_value_t = 1800)]
    limit: u64,
    /// A shell command to run there instead of tests.
    #[arg(long, conflicts_with = "args")]
    command: Option<String>,
    /// Given to `cargo nextest run` there; without any, the tests of the virtual machine and of BPF LSM.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// How long a kernel takes to begin, at most, where KVM works; emulated it took about 10 s.
const KVM_LIMIT: Duration = Duration::from_secs(15);
const UP: &str = "egress-vm-up: ";
const EXIT: &str = "egress-vm-exit: ";

/// Whether what ran there ended well.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    setup::emulator(place)?;
    let kernel = Kernel::ready(place, &options.kernel)?;
    let command = match &options.command {
        Some(command) => command.clone(),
        None => tests(place, &options.args)?,
    };
    let path = ebpf::path_with_tools(&place.target);
    let second = include_str!("second.sh")
        .replace("@PATH@", &path.to_string_lossy())
        .replace("@WORKSPACE@", &place.workspace.display().to_string())
        .replace("@COMMAND@", &command);
    fs::write(place.target.join("vm").join(&options.kernel).join("second.sh"), second)?;

    let limit = Duration::from_secs(options.limit);
    if let Some(why) = no_kvm(place) {
        println!("vm: without KVM ({why}): emulated, many times slower");
    } else {
        if let Some(code) = boot(&kernel, "kvm", KVM_LIMIT, limit)? {
            return Ok(code == 0);
        }
        println!("vm: KVM is there and starts no kernel in {KVM_LIMIT:?}: emulated, many times slower");
        fs::write(place.target.join("vm/no-kvm"), boot_id())?;
    }
    let code = boot(&kernel, "tcg,thread=multi", limit, limit)?;
    Ok(code.context("the virtual machine did not start")? == 0)
}

/// Why KVM need not be tried; it was, once, since this host started.
fn no_kvm(place: &Place) -> Option<&'static str> {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Some("/dev/kvm cannot be opened");
    }
    let tried = fs::read_to_string(place.target.join("vm/no-kvm")).is_ok_and(|tried| tried == boot_id());
    tried.then_some("it started no kernel before; remove target/vm/no-kvm to try again")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Builds the tests, and gives the command that runs them without cargo.
fn tests(place: &Place, args: &[String]) -> Result<String> {
    build::egress(place, false)?;
    let save = |name: &str, cargo: &mut Command| -> Result<String> {
        let file = place.target.join("vm").join(name);
        run::check(cargo.stdout(fs::File::create(&file)?))?;
        Ok(file.display().to_string())
    };
    let list = ["nextest", "list", "--package", "egress-tests", "--list-type", "binaries-only"];
    let binaries =
        save("binaries.json", run::cargo(place).args(list).args(["--message-format", "json", "--cargo-quiet"]))?;
    let metadata = save("metadata.json", run::cargo(place).args(["metadata", "--format-version", "1"]))?;
    let default = ["-E".to_owned(), "binary(lsm) | binary(vm_clsact)".to_owned()];
    let args = if args.is_empty() { &default } else { args };
    let args: Vec<_> = args.iter().map(|arg| format!("'{}'", arg.replace('\'', r"'\''"))).collect();
    Ok(format!(
        "cargo-nextest nextest run --binaries-metadata '{binaries}' --cargo-metadata '{metadata}' \
         --profile vm --status-level all --show-progress none --color never --test-threads 2 {}",
        args.join(" ")
    ))
}

/// Boots, prints what the machine says from when it is up, and gives the command's exit code; `None` when it was not up
/// within `start`.
fn boot(kernel: &Kernel, accelerator: &str, start: Duration, limit: Duration) -> Result<Option<i32>> {
    let cpu = if accelerator == "kvm" { "host" } else { "max" };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", accelerator, "-cpu", cpu, "-smp", "2", "-m", "3G"])
        .args(["-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&kernel.initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off lsm=landlock,lockdown,yama,integrity,bpf"])
        .args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"])
        .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut machine = Machine(qemu.spawn().context("start qemu-system-x86_64")?);
    let pipe = machine.0.stdout.take().context("the machine's console")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    let begun = Instant::now();
    let mut up = false;
    let mut last = String::new();
    loop {
        let left = (if up { limit } else { start }).saturating_sub(begun.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                if let Some(code) = line.strip_prefix(EXIT) {
                    println!("vm: {code} is the command's exit code, after {} s", begun.elapsed().as_secs());
                    return Ok(Some(code.trim().parse().context("the exit code")?));
                }
                // The firmware's control characters stand before the first line.
                if let Some((_, what)) = line.split_once(UP) {
                    up = true;
                    println!("vm: {what}");
                } else if up {
                    println!("{line}");
                }
                last = line;
            }
            Err(_) if !up && begun.elapsed() < limit => return Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the virtual machine ran longer than {limit:?} (--limit)"),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                bail!("the virtual machine ended before the command did; it said last: {last:?}")
            }
        }
    }
}

/// Ends with this program, whatever happens.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
