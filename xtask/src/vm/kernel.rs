//! Kernels of the distribution, unpacked below `target/vm/`, and the first file system that each boots from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::place::Place;
use crate::run;
use crate::setup::{Private, begin};

/// The kernels on offer, and the suite that each comes from.
const SUITES: [(&str, &str); 2] = [("6.1", "bookworm"), ("6.12", "bookworm-backports")];

/// A kernel that is ready to boot.
pub struct Kernel {
    pub image: PathBuf,
    pub initrd: PathBuf,
}

impl Kernel {
    /// The kernel of this version, downloaded at the first call.
    pub fn ready(place: &Place, version: &str) -> Result<Self> {
        let Some((_, suite)) = SUITES.iter().find(|(known, _)| *known == version) else {
            let known = SUITES.map(|(known, _)| known).join(", ");
            bail!("there is no kernel {version} here; --kernel takes one of {known}");
        };
        let folder = place.target.join("vm").join(version);
        let root = folder.join("root");
        if release(&root).is_err() {
            begin("kernel", &format!("downloading linux-image-amd64 of {suite}"));
            let log = place.target.join("setup/vm.log");
            let apt = Private::new(&folder, suite, &log)?;
            let package = apt.download(&apt.stands_for("linux-image-amd64")?, &log)?;
            run::logged(Command::new("dpkg").arg("-x").arg(&package).arg(&root), &log)?;
            fs::remove_file(&package)?;
            run::logged(Command::new("depmod").arg("-b").arg(&root).arg(release(&root)?), &log)?;
        }
        let release = release(&root)?;
        let initrd = folder.join("initrd");
        pack(&folder, &root, &release, &initrd)?;
        Ok(Self { image: root.join(format!("boot/vmlinuz-{release}")), initrd })
    }
}

/// As `uname -r` says it.
fn release(root: &Path) -> Result<String> {
    let modules = root.join("lib/modules");
    let entry = fs::read_dir(&modules)?.next().with_context(|| format!("{} is empty", modules.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

/// The host's root file system, read-only by 9p, with what is written kept in memory; then the second script.
fn pack(folder: &Path, root: &Path, release: &str, initrd: &Path) -> Result<()> {
    let tree = folder.join("initramfs");
    let _ = fs::remove_dir_all(&tree);
    for name in ["bin", "mods", "proc", "sys", "dev", "lower", "rw", "new"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copy busybox (Debian package busybox-static)")?;
    let mut order: Vec<String> = Vec::new();
    for module in ["virtio_pci", "9pnet_virtio", "9p", "overlay"] {
        let shown =
            run::output(Command::new("modprobe").arg("-d").arg(root).args(["-S", release, "--show-depends", module]));
        for line in shown.with_context(|| format!("modprobe knows no {module}"))?.lines() {
            // `builtin NAME` needs nothing.
            let Some(path) = line.strip_prefix("insmod ").map(str::trim) else { continue };
            let file = Path::new(path).file_name().context("a module has a name")?.to_string_lossy();
            let name = file.trim_end_matches(".xz").to_owned();
            if order.contains(&name) {
                continue;
            }
            let mut unpack = Command::new(if path.ends_with(".xz") { "xz" } else { "cat" });
            if path.ends_with(".xz") {
                unpack.arg("-dc");
            }
            run::check(unpack.arg(path).stdout(File::create(tree.join("mods").join(&name))?))?;
            order.push(name);
        }
    }
    fs::write(tree.join("mods/order"), order.join("\n") + "\n")?;
    let text = include_str!("first.sh").replace("@MODULES@", &format!("{}/lib/modules/{release}", root.display()));
    let init = tree.join("init");
    let second = folder.join("second.sh").display().to_string();
    fs::write(&init, text.replace("@RELEASE@", release).replace("@SECOND@", &second))?;
    run::check(Command::new("chmod").arg("+x").arg(&init))?;
    let mut cpio = Command::new("sh");
    cpio.args(["-c", "find . | cpio -o -H newc --quiet"]).current_dir(&tree).stdin(Stdio::null());
    run::check(cpio.stdout(File::create(initrd)?))
}
