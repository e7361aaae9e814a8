//! From the command line's words, or a policy's text, to what may be installed.

use std::sync::Arc;

use super::{Believe, resolvers};
use crate::{
    api::Texts,
    datapath::{Settings, netns_cookie},
    memory,
    policy::{self, Compiled, DomainName, PolicyError, Resolvers, Sources},
    resolve::{self, system::SystemResolvers},
};

/// What the command line of `egress run` says of every policy.
#[derive(Clone, Debug)]
pub struct Base {
    /// Files, directories, embedded names, `--allow`, `--set`, `--mode` and `--resolver`.
    pub sources: Sources,
    /// Where answers can be believed.
    pub believe: Believe,
    /// The governed cgroup's depth and id.
    pub cgroup: (Option<u32>, u64),
}

/// A policy that may be installed.
pub struct Ready {
    /// Its text.
    pub texts: Texts,
    /// It.
    pub policy: Compiled,
    /// What a generation of it needs besides.
    pub settings: Settings,
}

/// Why a policy is not [`Ready`].
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("{}", policy::render_all(&.0.diagnostics, &.0.files, false))]
    Policy(#[from] PolicyError),
    #[error("{0}: give one with `--resolver ADDR` or `dns.resolvers`")]
    NoResolver(&'static str),
}

impl Base {
    /// Reads the files that the command line names.
    pub fn read(&self, system: Option<&SystemResolvers>) -> Result<(Ready, policy::Loaded), NotReady> {
        let sources = Sources { internal: search_domains(system), ..self.sources.clone() };
        let loaded = memory::apart(|| policy::load(&sources))?;
        let files = loaded.files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        let texts = Texts { files, allow: sources.allow, set: sources.set };
        let settings = settings(&loaded.compiled, system, self.believe, self.cgroup)?;
        Ok((Ready { texts, policy: loaded.compiled.clone(), settings }, loaded))
    }

    /// What the files say now, without a look at what it means.
    pub fn texts(&self) -> Result<Texts, NotReady> {
        let mut files = policy::read_texts(&self.sources.policies).0?;
        files.extend(self.sources.texts.iter().cloned());
        Ok(Texts { files, allow: self.sources.allow.clone(), set: self.sources.set.clone() })
    }

    /// Compiles a policy that came as text.
    pub fn compile(&self, texts: &Texts, system: Option<&SystemResolvers>) -> Result<Ready, NotReady> {
        let sources = Sources {
            policies: Vec::new(),
            texts: texts.files.clone(),
            allow: texts.allow.clone(),
            set: texts.set.clone(),
            internal: search_domains(system),
            ..self.sources.clone()
        };
        let policy = memory::apart(|| policy::load(&sources))?.compiled.clone();
        let settings = settings(&policy, system, self.believe, self.cgroup)?;
        Ok(Ready { texts: texts.clone(), policy, settings })
    }
}

/// What a generation needs besides its policy. `cgroup` is the level and the id of the governed one.
///
/// # Errors
/// No resolver is named anywhere.
pub fn settings(
    policy: &Compiled,
    system: Option<&SystemResolvers>,
    believe: Believe,
    cgroup: (Option<u32>, u64),
) -> Result<Settings, NotReady> {
    let resolvers = resolvers(policy, system, believe);
    if resolvers.is_empty() {
        return Err(NotReady::NoResolver(match policy.dns.resolvers {
            Resolvers::System => "/etc/resolv.conf names no resolver",
            Resolvers::Addresses(_) => "the policy names no resolver",
        }));
    }
    let (cgroup_level, cgroup_id) = cgroup;
    Ok(Settings { resolvers, cgroup_level, cgroup_id, teaching_netns: netns_cookie() })
}

/// The host's search domains, as names that may be asked.
pub fn search_domains(system: Option<&SystemResolvers>) -> Vec<DomainName> {
    system.into_iter().flat_map(|system| &system.search).filter_map(|name| DomainName::parse(name).ok()).collect()
}

/// The resolvers to ask, which is all that are trusted.
pub fn asked(settings: &Settings) -> Vec<std::net::SocketAddr> {
    settings.resolvers.iter().map(|resolver| resolver.address).collect()
}

/// How names are kept under a policy.
pub fn resolve_settings(policy: &Compiled) -> resolve::Settings {
    resolve::Settings {
        min_ttl: policy.dns.min_ttl,
        grace: policy.dns.grace,
        max_stale: policy.dns.max_stale,
        ..resolve::Settings::default()
    }
}

/// Which names may have private addresses under a policy.
pub fn allow_private(policy: &Compiled) -> resolve::AllowPrivate {
    let patterns = policy.dns.allow_private.clone();
    Arc::new(move |name| {
        DomainName::parse(name).is_ok_and(|name| patterns.iter().any(|pattern| pattern.matches(&name)))
    })
}
