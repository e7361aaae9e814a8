//! The small internet: every AKS name with the kind of CNAME chain and TTL that the real one has, and the servers.

use anyhow::Result;

use crate::servers::Service;
use crate::world::World;

/// A name that the policies allow: its chain of aliases, and the addresses at its end.
#[derive(Debug)]
pub struct Site {
    pub name: &'static str,
    /// Each alias with its TTL in seconds.
    pub chain: &'static [(&'static str, u32)],
    pub ttl: u32,
    pub v4: &'static str,
    pub v6: Option<&'static str>,
}

const fn site(name: &'static str, chain: &'static [(&'static str, u32)], ttl: u32, v4: &'static str) -> Site {
    Site { name, chain, ttl, v4, v6: None }
}

impl Site {
    const fn with_v6(mut self, v6: &'static str) -> Self {
        self.v6 = Some(v6);
        self
    }
}

/// The rows of `aks-required`.
pub const REQUIRED: [Site; 6] = [
    site("demo-1a2b3c.hcp.westeurope.azmk8s.io", &[], 30, "20.50.1.10").with_v6("2603:1020::10"),
    site(
        "aksrepos.azurecr.io",
        &[("wus2.fe.azcr.io", 60), ("wus2-acr-reg.trafficmanager.net", 30), ("r0927.westus2.cloudapp.azure.com", 60)],
        10,
        "20.51.4.21",
    ),
    site(
        "wus2managed42.blob.core.windows.net",
        &[("blob.mwh20prdstr05a.store.core.windows.net", 60)],
        60,
        "20.60.36.4",
    ),
    site(
        "mcr.microsoft.com",
        &[("mcr-microsoft-com.a-0016.a-msedge.net", 60), ("a-0016.a-msedge.net", 5)],
        5,
        "20.70.246.20",
    )
    .with_v6("2620:1ec:bdf::10"),
    site(
        "management.azure.com",
        &[
            ("management.privatelink.azure.com", 20),
            ("arm-frontdoor-prod.trafficmanager.net", 20),
            ("westeurope.management.azure.com", 20),
            ("rpfd-prod-am-01.cloudapp.net", 10),
        ],
        10,
        "40.74.24.70",
    ),
    site(
        "login.microsoftonline.com",
        &[
            ("login.mso.msidentity.com", 30),
            ("ak.privatelink.msidentity.com", 30),
            ("www.tm.a.prd.aadg.trafficmanager.net", 30),
        ],
        15,
        "20.190.160.14",
    ),
];

/// The rows of `aks-optional` that are HTTPS; `*.ubuntu.com` is HTTP.
pub const OPTIONAL: [Site; 7] = [
    site("packages.microsoft.com", &[("csd-apt-weu-d-1.westeurope.cloudapp.azure.com", 30)], 10, "13.80.10.205"),
    site(
        "dc.services.visualstudio.com",
        &[
            ("dc.applicationinsights.microsoft.com", 30),
            ("global.in.ai.privatelink.monitor.azure.com", 30),
            ("dc.trafficmanager.net", 20),
            ("weu-breeziest-in.cloudapp.net", 5),
        ],
        5,
        "40.71.12.244",
    ),
    site(
        "7c1e2a.ods.opinsights.azure.com",
        &[("ods.privatelink.monitor.azure.com", 30), ("weu-ods.trafficmanager.net", 5)],
        5,
        "20.61.98.132",
    ),
    site("westeurope.monitoring.azure.com", &[("weu-mon.westeurope.cloudapp.azure.com", 30)], 10, "20.61.99.17"),
    site(
        "gov-prod-policy-data.trafficmanager.net",
        &[("gov-prod-weu.westeurope.cloudapp.azure.com", 30)],
        10,
        "20.54.201.40",
    ),
    site("apt.dockerproject.org", &[("d2p1v7.cloudfront.net", 60)], 60, "13.224.94.11"),
    site("nvidia.github.io", &[], 30, "185.199.108.153").with_v6("2606:50c0:8000::153"),
];

pub const UBUNTU: Site = site("security.ubuntu.com", &[], 60, "91.189.91.81");

pub const NTP_V4: &str = "91.189.94.4";
pub const NTP_V6: &str = "2620:1ec:123::123";
/// A site that no rule allows.
pub const FORBIDDEN: Site = site("forbidden.example", &[], 60, "203.0.113.66").with_v6("2001:db8:66::66");
/// A host of which only the bare address is known.
pub const BARE_V4: &str = "198.51.100.77";
pub const BARE_V6: &str = "2001:db8:77::77";
/// A public resolver that the node does not trust.
pub const OTHER_DNS_V4: &str = "9.9.9.9";
pub const OTHER_DNS_V6: &str = "2001:db8:9::9";

/// Names near the allowed ones that the policies must not take for them, all at [`FORBIDDEN`]'s addresses.
pub const LOOKALIKES: [&str; 4] =
    ["azmk8s.io", "evilazmk8s.io", "login.microsoftonline.com.forbidden.example", "eastus.azurecr.io"];

/// Builds the world: DNS, servers on every address at the ports that the rows try, and a pod behind the node.
pub fn build() -> Result<World> {
    let world = World::with_pod()?;
    for site in REQUIRED.iter().chain(&OPTIONAL).chain([&UBUNTU, &FORBIDDEN]) {
        publish(&world, site);
    }
    for name in LOOKALIKES {
        world.dns.set_text(name, 60, &[FORBIDDEN.v4]);
    }
    // Whatever is asked below this name is answered: a tunnel's server reads the question.
    world.dns.set_text("*.tunnel.forbidden.example", 0, &[FORBIDDEN.v4]);
    for at in [OTHER_DNS_V4, OTHER_DNS_V6] {
        let other = world.other_dns(at)?;
        other.set_text(REQUIRED[3].name, 60, &[REQUIRED[3].v4]);
        other.set_text(FORBIDDEN.name, 60, &[FORBIDDEN.v4]);
    }
    for (service, port) in [
        (Service::Https, 443),
        (Service::Https, 8443),
        (Service::Http, 80),
        (Service::Http, 8080),
        (Service::TcpBanner, 9000),
        (Service::TcpBanner, 22),
        (Service::TcpBanner, 853),
    ] {
        world.serve_everywhere(service, port)?;
    }
    for at in [NTP_V4, NTP_V6] {
        world.serve(Service::Ntp, &socket(at, 123))?;
    }
    for (address, port) in [
        (BARE_V4, 4444),
        (BARE_V6, 4444),
        (BARE_V4, 7777),
        (BARE_V4, 7778),
        (NTP_V4, 124),
        (REQUIRED[3].v4, 443),
        (REQUIRED[0].v4, 9000),
    ] {
        world.serve(Service::UdpEcho, &socket(address, port))?;
    }
    Ok(world)
}

fn publish(world: &World, site: &Site) {
    let mut owner = site.name;
    for (alias, ttl) in site.chain {
        world.dns.cname(owner, *ttl, alias);
        owner = alias;
    }
    let addresses: Vec<&str> = [Some(site.v4), site.v6].into_iter().flatten().collect();
    world.dns.set_text(owner, site.ttl, &addresses);
}

/// `ADDR:PORT`, with brackets where the family wants them.
pub fn socket(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}
