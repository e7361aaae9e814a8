//! Files: everything may be read, what the daemon keeps up may be written, nothing run.
//!
//! Reading is not narrowed: policies may be anywhere, and a folder that is swapped for another (as Kubernetes does) would
//! be out of reach of a rule made for the first. Without CAP_DAC_OVERRIDE the file's mode counts for the daemon too.

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};

use super::{PrivilegeError, Writable};

/// The newest whose rights are named here (kernel 6.12); an older kernel restricts what it knows.
const NEWEST: ABI = ABI::V6;

pub(super) fn restrict(writable: &Writable) -> Result<(), PrivilegeError> {
    match apply(writable) {
        Ok(RulesetStatus::NotEnforced) => {
            tracing::info!("this kernel has no Landlock: files are restricted by their modes alone");
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(PrivilegeError::Landlock(error.to_string())),
    }
}

fn apply(writable: &Writable) -> Result<RulesetStatus, landlock::RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::Signal)?
        .create()?;
    if let Ok(root) = PathFd::new("/") {
        rules = rules.add_rule(PathBeneath::new(root, read))?;
    }
    for path in writable {
        if let Ok(dir) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(dir, write))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
