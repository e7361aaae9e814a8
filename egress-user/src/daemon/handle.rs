//! What the control socket asks of a running policy: `apply`, `confirm`, `rollback`.

use std::{sync::Arc, time::Duration};

use super::{Active, Changer, Ready};
use crate::{
    api::{ApplyRequest, Change, ChangeError, Changed},
    datapath::Error,
    policy::Diff,
    resolve::system::SystemResolvers,
};

/// The longest time that a policy may wait for its confirmation.
const CONFIRM_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn conflict(message: impl Into<String>, hint: &str) -> ChangeError {
    ChangeError::Conflict { message: message.into(), hint: hint.to_owned() }
}

/// A policy that a client sent is wrong, or does not fit; a policy on trial is in the way.
fn failed(error: Error) -> ChangeError {
    match error {
        Error::Unconfirmed => conflict(
            "a policy is on trial",
            "`egress confirm` keeps it, `egress rollback` ends it; then apply the next one",
        ),
        Error::NothingPending => {
            conflict("no policy waits for a confirmation", "`egress status` shows what is in force")
        }
        error => ChangeError::Wrong(error.to_string()),
    }
}

/// One handle for the control socket: [`Change`] needs the `Arc` for the thread that watches a deadline.
pub struct Handle(pub Arc<Changer>);

/// What a client wants in force, and what that changes.
struct Plan {
    ready: Ready,
    active: Arc<Active>,
    diff: Diff,
}

impl Handle {
    fn plan(&self, request: &ApplyRequest, system: Option<&SystemResolvers>) -> Result<Plan, ChangeError> {
        let Changer { core, base, .. } = &*self.0;
        let ready = base.compile(&request.texts, system).map_err(|error| {
            if !request.dry_run {
                core.refused(&error.to_string());
            }
            ChangeError::Wrong(error.to_string())
        })?;
        let active = core.active();
        let diff = Diff::new(&active.policy, &ready.policy);
        Ok(Plan { ready, active, diff })
    }
}

impl Change for Handle {
    fn apply(&self, request: &ApplyRequest) -> Result<Changed, ChangeError> {
        let changer = &self.0;
        let wait = request.confirm_seconds.map(Duration::from_secs);
        if wait.is_some_and(|wait| wait < Duration::from_secs(2) || wait > CONFIRM_MAX) {
            return Err(ChangeError::Wrong("a confirmation takes from 2s to 24h".to_owned()));
        }
        // Before others must wait: to compile a large policy takes seconds, which `confirm` may not have.
        let mut system = changer.settled().system.clone();
        let mut plan = self.plan(request, system.as_ref())?;
        if request.dry_run {
            let Plan { ready, active, diff } = plan;
            let (warnings, cut) = (changer.cuts(&diff, &ready.policy), changer.cut(&diff, &ready.policy));
            return Ok(Changed { generation: active.installed.generation, diff, warnings, cut, ..Changed::default() });
        }
        let mut state = changer.settled();
        if state.system != system || !Arc::ptr_eq(&plan.active, &changer.core.active()) {
            // Somebody changed what it was compiled for.
            system.clone_from(&state.system);
            plan = self.plan(request, system.as_ref())?;
        }
        if state.trial {
            return Err(failed(Error::Unconfirmed));
        }
        let Plan { ready, diff, .. } = plan;
        let mut warnings = changer.cuts(&diff, &ready.policy);
        warnings.extend(changer.put(&mut state, ready, true, wait).map_err(failed)?);
        let generation = changer.core.active().installed.generation;
        Ok(Changed { applied: true, generation, diff, warnings, confirm_seconds: request.confirm_seconds, cut: None })
    }

    fn confirm(&self) -> Result<Changed, ChangeError> {
        let changer = &self.0;
        let mut state = changer.settled();
        let generation = changer.core.confirm().map_err(failed)?;
        state.trial = false;
        // The later word than theirs.
        if let Some(Ok(files)) = state.missed.take() {
            state.over = Some(files);
        }
        changer.refresh(&mut state);
        let stored = changer.stored(&state);
        let warnings = changer.keep(&mut state, stored);
        Ok(Changed { applied: true, generation, warnings: warnings.into_iter().collect(), ..Changed::default() })
    }

    fn roll_back(&self) -> Result<Changed, ChangeError> {
        let changer = &self.0;
        let mut state = changer.settled();
        let before = changer.core.active();
        let mut warnings = Vec::new();
        if state.trial {
            changer.core.with_datapath(|datapath| datapath.roll_back()).map_err(failed)?;
            changer.went_back(&mut state, "rolled back");
        } else {
            let Some((texts, applied)) = state.before.clone() else {
                return Err(conflict("there is no policy to go back to", "`egress apply P` puts another one in force"));
            };
            let ready = changer
                .base
                .compile(&texts, state.system.as_ref())
                .map_err(|error| ChangeError::Wrong(error.to_string()))?;
            warnings = changer.put(&mut state, ready, applied, None).map_err(failed)?;
        }
        let active = changer.core.active();
        let diff = Diff::new(&before.policy, &active.policy);
        let generation = active.installed.generation;
        Ok(Changed { applied: true, generation, diff, warnings, ..Changed::default() })
    }
}
