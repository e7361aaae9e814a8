//! Files: everything may be read, what the daemon keeps up may be written, nothing run.
//!
//! Reading is not narrowed: policies may be anywhere, and a folder that is swapped for another (as Kubernetes does) would
//! be out of reach of a rule made for the first. Without CAP_DAC_OVERRIDE the file's mode counts for the daemon too.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::{PrivilegeError, Writable};

/// The newest whose rights are named here (kernel 6.12); an older kernel restricts what it knows.
const NEWEST: ABI = ABI::V6;

pub(super) fn restrict(writable: &Writable) -> Result<(), PrivilegeError> {
    let failed = |error: io::Error| PrivilegeError::Landlock(error.to_string());
    let root = open(Path::new("/")).map_err(failed)?;
    let dirs: Vec<_> = writable.iter().map(|dir| open(dir)).collect::<Result<_, _>>().map_err(failed)?;
    match apply(root, dirs) {
        Ok(RulesetStatus::NotEnforced) => {
            tracing::info!("this kernel has no Landlock: files are restricted by their modes alone");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(PrivilegeError::Landlock(error.to_string())),
    }
}

/// What is not there is left out; that it could not be opened, as where descriptors are short, must not take the right to it away.
fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn apply(root: Option<File>, dirs: Vec<Option<File>>) -> Result<RulesetStatus, landlock::RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::Signal)?
        .create()?;
    for (dir, access) in
        root.map(|root| (root, read)).into_iter().chain(dirs.into_iter().flatten().map(|dir| (dir, write)))
    {
        rules = rules.add_rule(PathBeneath::new(dir, access))?;
    }
    Ok(rules.restrict_self()?.ruleset)
}
