//! The embedded policies: valid, without warnings, and complete.

use super::super::{Context, Sources, embedded::ALL, load};

fn sources(names: &[&str], region: Option<&str>) -> Sources {
    Sources {
        policies: names.iter().map(Into::into).collect(),
        set: region.map(|region| ("region".to_owned(), region.to_owned())).into_iter().collect(),
        ..Sources::default()
    }
}

#[test]
fn all_load_without_warnings() {
    for policy in ALL {
        let loaded = load(&sources(&[policy.name], None)).unwrap_or_else(|error| panic!("{}: {error}", policy.name));
        let warnings: Vec<_> = loaded.warnings.iter().map(|warning| &warning.title).collect();
        assert!(warnings.is_empty(), "{}: {warnings:?}", policy.name);
        for rule in &loaded.compiled.rules {
            assert!(rule.why.is_some(), "{}: `{}` says no why", policy.name, rule.name);
        }
        assert!(!policy.text.lines().any(|line| line.len() > 120), "{} has a line over 120", policy.name);
    }
}

#[test]
fn the_pairs_merge() {
    for pair in [["aks-required", "aks-optional"], ["aks-current", "aks-current-optional"]] {
        assert!(load(&sources(&pair, None)).is_ok(), "{pair:?}");
    }
}

/// Every row of the tables that the policies were written from.
#[test]
fn every_row_is_allowed() {
    let old = ["aks-required", "aks-optional"];
    let new = ["aks-current", "aks-current-optional"];
    let rows: &[(&[&str], &[&str])] = &[
        (
            &old,
            &[
                "x.hcp.westeurope.azmk8s.io:443",
                "x.hcp.westeurope.azmk8s.io:9000",
                "aksrepos.azurecr.io:443",
                "account.blob.core.windows.net:443",
                "mcr.microsoft.com:443",
                "management.azure.com:443",
                "login.microsoftonline.com:443",
                "192.0.2.1:123/udp",
                "archive.ubuntu.com:80",
                "packages.microsoft.com:443",
                "dc.services.visualstudio.com:443",
                "x.opinsights.azure.com:443",
                "x.monitoring.azure.com:443",
                "gov-prod-policy-data.trafficmanager.net:443",
                "apt.dockerproject.org:443",
                "nvidia.github.io:443",
            ],
        ),
        (
            &new,
            &[
                "x.hcp.westeurope.azmk8s.io:443",
                "x.hcp.westeurope.azmk8s.io:9000",
                "x.hcp.westeurope.azmk8s.io:1194/udp",
                "mcr.microsoft.com:443",
                "a.data.mcr.microsoft.com:443",
                "mcr-0001.mcr-msedge.net:443",
                "management.azure.com:443",
                "login.microsoftonline.com:443",
                "packages.microsoft.com:443",
                "acs-mirror.azureedge.net:443",
                "packages.aks.azure.com:443",
                "ntp.ubuntu.com:123/udp",
                "168.63.129.16:53/udp",
                "168.63.129.16:53/tcp",
                "168.63.129.16:80",
                "168.63.129.16:32526",
                "169.254.169.254:80",
                "security.ubuntu.com:80",
                "azure.archive.ubuntu.com:80",
                "changelogs.ubuntu.com:80",
                "snapshot.ubuntu.com:443",
                "nvidia.github.io:443",
                "us.download.nvidia.com:443",
                "download.docker.com:443",
                "w.ods.opinsights.azure.com:443",
                "w.oms.opinsights.azure.com:443",
                "dc.services.visualstudio.com:443",
                "x.monitoring.azure.com:443",
                "westeurope.ingest.monitor.azure.com:443",
                "westeurope.handler.control.monitor.azure.com:443",
                "data.policy.core.windows.net:443",
                "store.policy.core.windows.net:443",
                "v.vault.azure.net:443",
                "md-1.blob.storage.azure.net:443",
                "umsa1.blob.core.windows.net:443",
            ],
        ),
    ];
    for (policies, destinations) in rows {
        for region in [None, Some("westeurope")] {
            // The old list has no placeholder.
            if region.is_some() && policies[0] == "aks-required" {
                continue;
            }
            let compiled = load(&sources(policies, region)).unwrap().compiled;
            // What Azure gives a node to ask: port 53 is its resolvers' alone, whatever a rule says.
            let resolvers = ["168.63.129.16:53".parse().unwrap()];
            let context = Context { resolvers: &resolvers, ..Context::default() };
            for destination in *destinations {
                let explanation = compiled.decide_with(&destination.parse().unwrap(), &context);
                assert!(explanation.allowed, "{policies:?} {region:?}: {explanation:?}");
            }
            for destination in
                ["example.com:443", "azmk8s.io:443", "mcr.microsoft.com:80", "192.0.2.1:443", "8.8.8.8:53/udp"]
            {
                let explanation = compiled.decide(&destination.parse().unwrap());
                assert!(!explanation.allowed, "{policies:?} {region:?}: {explanation:?}");
            }
        }
    }
}

#[test]
fn a_region_narrows() {
    let compiled = load(&sources(&["aks-current"], Some("westeurope"))).unwrap().compiled;
    assert!(!compiled.decide(&"x.hcp.eastus.azmk8s.io".parse().unwrap()).allowed);
    let error = load(&sources(&["deny-all"], Some("x"))).expect_err("no placeholder").to_string();
    assert!(error.contains("no policy uses `${region}`"), "{error}");
}
