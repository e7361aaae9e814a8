//! A package of any suite of the distribution's mirror, without touching the system: apt works on a private state below
//! the target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A private state in a folder, of one suite.
pub struct Private {
    folder: PathBuf,
    options: Vec<String>,
}

impl Private {
    /// Fetches the suite's package lists.
    pub fn new(folder: &Path, suite: &str, log: &Path) -> Result<Self> {
        let (lists, archives, parts) = (folder.join("lists"), folder.join("archives"), folder.join("sources.d"));
        for path in [lists.join("partial"), archives.join("partial"), parts.clone()] {
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        let sources = folder.join("sources.list");
        let line = format!("deb [signed-by={KEYRING}] {} {suite} main\n", mirror(log)?);
        fs::write(&sources, line).with_context(|| format!("write {}", sources.display()))?;
        let option = |key: &str, path: &Path| format!("{key}={}", path.display());
        let options = vec![
            option("Dir::Etc::sourcelist", &sources),
            option("Dir::Etc::sourceparts", &parts),
            option("Dir::State::lists", &lists),
            option("Dir::Cache::archives", &archives),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // Downloads as this user, not as apt's own, who may not write here.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let private = Self { folder: folder.to_path_buf(), options };
        run::logged(private.command("apt-get").args(["--quiet", "update"]), log)?;
        Ok(private)
    }

    /// Downloads a package (`NAME` or `NAME=VERSION`) into the folder; its file.
    pub fn download(&self, package: &str, log: &Path) -> Result<PathBuf> {
        run::logged(self.command("apt-get").args(["--quiet", "download", package]), log)?;
        fs::read_dir(&self.folder)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .context("apt-get download left no package")
    }

    /// The first package that this one depends on: what a metapackage stands for.
    pub fn stands_for(&self, package: &str) -> Result<String> {
        let text = run::output(self.command("apt-cache").args(["show", package]));
        let text = text.with_context(|| format!("the mirror has no package {package}"))?;
        let first = text.lines().find_map(|line| line.strip_prefix("Depends: ")?.split([' ', ',']).next());
        Ok(first.with_context(|| format!("{package} depends on nothing"))?.to_owned())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

/// The address of the mirror that this machine uses for its own packages.
fn mirror(log: &Path) -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename =
        release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(|name| name.trim_matches('"'));
    let codename = codename.context("/etc/os-release names no VERSION_CODENAME; this way needs Debian")?;
    let find = || -> Option<String> {
        let format = "$(CREATED_BY) $(REPO_URI) $(CODENAME)";
        let targets = run::output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
        targets.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["Packages", uri, name] if name == codename => Some(uri.to_owned()),
            _ => None,
        })
    };
    if let Some(uri) = find() {
        return Ok(uri);
    }
    // Before the first update apt knows of no index.
    run::logged(Command::new("apt-get").args(["--quiet", "update"]), log)?;
    find().with_context(|| format!("apt has no package index for {codename}"))
}
