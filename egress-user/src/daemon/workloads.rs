//! The host sides of workloads' veths, found by rtnetlink and governed as they come and go.

use std::{
    collections::{BTreeSet, HashMap},
    io,
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    new_connection,
    packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::{Core, state::lock, uplinks::is_gone};
use crate::datapath::{Error, WORKLOAD_HOOK, WORKLOAD_PIN, Workload, remove_clsact_of};

/// A link of this network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    name: String,
    pub(super) index: u32,
    kind: Kind,
    /// The bridge, bond or the like that it is part of.
    controller: Option<u32>,
    /// Of a veth across namespaces: the other end's namespace, as this one numbers them, and index there.
    pub(super) inside: Option<(i32, u32)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// A veth whose other end is in another network namespace.
    VethAcross,
    Bridge,
    #[default]
    Other,
}

/// The links of this network namespace. Must be called within a Tokio runtime.
///
/// # Errors
/// When the netlink socket cannot be opened, or the kernel's answer cannot be read.
pub async fn links() -> io::Result<Vec<Link>> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let messages: Result<Vec<LinkMessage>, _> = handle.link().get().execute().try_collect().await;
    connection.abort();
    Ok(messages.map_err(io::Error::other)?.iter().map(read).collect())
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, ..Link::default() };
    let (mut veth, mut across, mut peer) = (false, None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkNetNsId(namespace) => across = Some(*namespace),
            LinkAttribute::Link(index) => peer = *index,
            LinkAttribute::LinkInfo(infos) => {
                veth |= infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
                    link.kind = Kind::Bridge;
                }
            }
            _ => {}
        }
    }
    if veth && across.is_some() {
        link.kind = Kind::VethAcross;
        link.inside = across.map(|namespace| (namespace, peer));
    }
    link
}

/// Those that lead to workloads: veths into other network namespaces that are not uplinks.
fn workloads(links: &[Link], uplinks: &BTreeSet<String>) -> Vec<Workload> {
    let bridges: HashMap<u32, &Link> =
        links.iter().filter(|link| link.kind == Kind::Bridge).map(|link| (link.index, link)).collect();
    let leads_out = |bridge: u32| {
        bridges.get(&bridge).is_some_and(|bridge| uplinks.contains(&bridge.name))
            || links.iter().any(|link| link.controller == Some(bridge) && uplinks.contains(&link.name))
    };
    links
        .iter()
        .filter(|link| link.kind == Kind::VethAcross && !uplinks.contains(&link.name))
        .map(|link| {
            let bridge = link.controller.filter(|index| bridges.contains_key(index));
            Workload {
                name: link.name.clone(),
                index: link.index,
                bridge,
                bridge_leads_out: bridge.is_some_and(leads_out),
            }
        })
        .collect()
}

impl Core {
    /// Attaches to the workloads' veths among `links` that are not attached to yet, and lets go of those that are gone or
    /// became uplinks. Gives the names of the new ones.
    ///
    /// # Errors
    /// That the table of workloads could not be written, or the first veth that could not be attached to; the rest is tried all the same.
    pub fn govern_workloads(&self, links: &[Link]) -> Result<Vec<String>, Error> {
        let result = self.try_workloads(links);
        let problem = |error| format!("a workload's veth is not governed as it should be: {error}");
        lock(&self.ungoverned).workloads = result.as_ref().err().map(problem);
        result
    }

    /// The links could not be listed: what came is not governed.
    pub fn cannot_list_links(&self, error: &io::Error) {
        lock(&self.ungoverned).workloads = Some(format!("workloads' veths that come are not governed: {error}"));
    }

    fn try_workloads(&self, links: &[Link]) -> Result<Vec<String>, Error> {
        let mut attached = lock(&self.attached);
        let uplinks = attached.iter().filter(|point| point.hook.starts_with("uplink_")).map(|point| &point.target);
        let wanted = workloads(links, &uplinks.cloned().collect());
        let mut datapath = lock(&self.datapath);
        // What is not in the table counts as bound for the outside; its veth is governed all the same (docs/limits.md).
        let mut first = datapath.set_workloads(&wanted);
        datapath.keep_only_veths(|index| wanted.iter().any(|workload| workload.index == index))?;
        let mut gone = Vec::new();
        attached.retain(|point| {
            if point.hook != WORKLOAD_HOOK {
                return true;
            }
            let found = wanted.iter().find(|workload| workload.name == point.target);
            let keep = found.is_some_and(|workload| workload.index == point.interface && point.present());
            if !keep {
                gone.push(point.interface);
                if point.link.is_none() {
                    remove_clsact_of(&point.target, WORKLOAD_HOOK);
                }
            }
            keep
        });
        gone.into_iter().try_for_each(|index| datapath.set_veth(index, false))?;
        let known: BTreeSet<String> =
            attached.iter().filter(|point| point.hook == WORKLOAD_HOOK).map(|point| point.target.clone()).collect();
        let mut added = Vec::new();
        for workload in wanted.iter().filter(|workload| !known.contains(&workload.name)) {
            match datapath.attach_workload(workload, self.pins.as_ref()) {
                Ok(point) => {
                    attached.push(point);
                    datapath.set_veth(workload.index, true)?;
                    added.push(workload.name.clone());
                }
                // It went between the look and the attaching.
                Err(_) if is_gone(workload.index) => {}
                Err(error) => {
                    datapath.set_veth(workload.index, false)?;
                    first = first.and(Err(error));
                }
            }
        }
        if let Some(pins) = &self.pins {
            let ours: BTreeSet<String> = wanted.iter().map(Workload::pin).collect();
            for (name, _) in pins.links()? {
                if name.starts_with(WORKLOAD_PIN) && !ours.contains(&name) {
                    pins.detach(&name)?;
                }
            }
        }
        self.veths_changed.notify_one();
        first.map(|()| added)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Kind, controller: Option<u32>) -> Link {
        Link { name: name.to_owned(), index, kind, controller, inside: None }
    }

    #[test]
    fn workloads_are_veths_across_namespaces_that_are_no_uplinks() {
        let links = [
            link(1, "lo", Kind::Other, None),
            link(2, "eth0", Kind::Other, Some(3)),
            link(3, "br0", Kind::Bridge, None),
            link(4, "docker0", Kind::Bridge, None),
            link(5, "up0", Kind::VethAcross, None),
            link(6, "vpod", Kind::VethAcross, None),
            link(7, "vdocker", Kind::VethAcross, Some(4)),
            link(8, "vlan", Kind::VethAcross, Some(3)),
            link(9, "vbond", Kind::VethAcross, Some(1)),
        ];
        let found = |uplinks: &[&str]| {
            workloads(&links, &uplinks.iter().map(ToString::to_string).collect())
                .into_iter()
                .map(|workload| (workload.name, workload.bridge, workload.bridge_leads_out))
                .collect::<Vec<_>>()
        };
        let expected = [
            ("vpod".to_owned(), None, false),
            ("vdocker".to_owned(), Some(4), false),
            ("vlan".to_owned(), Some(3), true),
            ("vbond".to_owned(), None, false),
        ];
        assert_eq!(found(&["up0", "eth0"]), expected, "by the bridge's port");
        assert_eq!(found(&["up0", "br0"]), expected, "by the bridge itself");
    }
}
