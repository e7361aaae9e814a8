//! The rows: what is tried, from where, and what must come of it.

use std::net::IpAddr;

use anyhow::Result;

use super::clients::Client;
use super::internet::{
    BARE_V4, BARE_V6, FORBIDDEN, LOOKALIKES, NTP_V4, NTP_V6, OPTIONAL, OTHER_DNS_V4, OTHER_DNS_V6, REQUIRED, Site,
    UBUNTU, socket,
};
use crate::world::{DNS_V4, World};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Node,
    Pod,
}

/// What in the world would show that the row got through.
#[derive(Debug)]
pub enum Watch {
    To {
        address: IpAddr,
        protocol: u8,
        port: Option<u16>,
    },
    /// A DNS question about this name, to any resolver.
    Question(String),
}

#[derive(Debug)]
pub struct Row {
    pub section: &'static str,
    pub destination: String,
    /// What was tried, in at most 22 characters.
    pub tried: &'static str,
    pub from: From,
    pub allowed: bool,
    pub client: Client,
    pub watch: Vec<Watch>,
}

#[derive(Default)]
struct Rows {
    section: &'static str,
    allowed: bool,
    rows: Vec<Row>,
}

impl Rows {
    fn start(&mut self, section: &'static str, allowed: bool) {
        (self.section, self.allowed) = (section, allowed);
    }

    fn add(&mut self, destination: impl Into<String>, tried: &'static str, client: Client, watch: Vec<Watch>) {
        let (destination, section, allowed) = (destination.into(), self.section, self.allowed);
        self.rows.push(Row { section, destination, tried, from: From::Node, allowed, client, watch });
    }

    fn in_pod(&mut self) {
        if let Some(row) = self.rows.last_mut() {
            row.from = From::Pod;
        }
    }
}

fn to(address: &str, protocol: u8, port: impl Into<Option<u16>>) -> Watch {
    Watch::To { address: address.parse().expect("an address of the demo"), protocol, port: port.into() }
}

fn curl(url: impl Into<String>, extra: &[&str]) -> Client {
    Client::Curl { url: url.into(), extra: extra.iter().map(ToString::to_string).collect() }
}

fn https(site: &Site) -> (String, Client, Vec<Watch>) {
    (site.name.to_owned(), curl(format!("https://{}/", site.name), &["-4"]), vec![to(site.v4, TCP, 443)])
}

/// Every row, in the order in which it runs.
pub fn rows(world: &World) -> Result<Vec<Row>> {
    let mut rows = Rows::default();
    rows.start("aks-required", true);
    required(&mut rows);
    rows.start("aks-optional", true);
    optional(&mut rows);
    rows.start("forbidden: other destinations", false);
    other_destinations(&mut rows);
    rows.start("forbidden: other ports and protocols of allowed ones", false);
    other_ports(&mut rows);
    rows.start("forbidden: DNS as a way out", false);
    dns_ways(&mut rows);
    rows.start("forbidden: below the sockets, and from a pod", false);
    below_sockets(&mut rows, world)?;
    Ok(rows.rows)
}

fn required(rows: &mut Rows) {
    for site in &REQUIRED {
        let (name, client, watch) = https(site);
        rows.add(name, "curl https", client, watch);
    }
    let api = &REQUIRED[0];
    let tunnel = Client::PythonTcp { host: api.name.into(), port: 9000, family: 4 };
    rows.add(api.name, "python3 tcp 9000", tunnel, vec![to(api.v4, TCP, 9000)]);
    let go = Client::GoTcp { host: api.name.into(), port: 9000 };
    rows.add(api.name, "Go-style, tcp 9000", go, vec![to(api.v4, TCP, 9000)]);
    // Python takes whichever family the resolver's order gives.
    let either = [Some(api.v4), api.v6].into_iter().flatten().map(|address| to(address, TCP, 443)).collect();
    rows.add(api.name, "python3 https", Client::PythonHttps { host: api.name.into() }, either);
    for site in [api, &REQUIRED[3]] {
        let v6 = site.v6.expect("these have IPv6");
        let client = curl(format!("https://{}/", site.name), &["-6"]);
        rows.add(site.name, "curl https, IPv6", client, vec![to(v6, TCP, 443)]);
    }
    let (name, client, watch) = https(&REQUIRED[3]);
    rows.add(name, "curl https, in a pod", client, watch);
    rows.in_pod();
}

fn optional(rows: &mut Rows) {
    rows.add(UBUNTU.name, "curl http", curl(format!("http://{}/", UBUNTU.name), &["-4"]), vec![to(UBUNTU.v4, TCP, 80)]);
    for site in &OPTIONAL {
        let (name, client, watch) = https(site);
        rows.add(name, "curl https", client, watch);
    }
    for address in [NTP_V4, NTP_V6] {
        rows.add(address, "NTP client, udp 123", Client::Ntp { to: socket(address, 123) }, vec![to(address, UDP, 123)]);
    }
    let question = vec![Watch::Question(REQUIRED[5].name.into())];
    let dig = Client::Dig { args: vec![REQUIRED[5].name.into()] };
    rows.add(REQUIRED[5].name, "dig, trusted resolver", dig, question);
}

fn other_destinations(rows: &mut Rows) {
    let (v4, v6) = (FORBIDDEN.v4, FORBIDDEN.v6.expect("it has IPv6"));
    let everywhere = |name: &str| vec![Watch::Question(name.into()), to(v4, TCP, None), to(v6, TCP, None)];
    for (scheme, tried) in [("https", "curl https"), ("http", "curl http")] {
        let client = curl(format!("{scheme}://{}/", FORBIDDEN.name), &[]);
        rows.add(FORBIDDEN.name, tried, client, everywhere(FORBIDDEN.name));
    }
    let python = Client::PythonHttps { host: FORBIDDEN.name.into() };
    rows.add(FORBIDDEN.name, "python3 https", python, everywhere(FORBIDDEN.name));
    let go = Client::GoTcp { host: FORBIDDEN.name.into(), port: 9000 };
    rows.add(FORBIDDEN.name, "Go-style, tcp 9000", go, everywhere(FORBIDDEN.name));
    for (name, tried) in LOOKALIKES.iter().zip([
        "curl, wildcard's apex",
        "curl, suffix no label",
        "curl, name as prefix",
        "curl, sibling name",
    ]) {
        rows.add(*name, tried, curl(format!("https://{name}/"), &["-4"]), everywhere(name));
    }
    for address in [BARE_V4, BARE_V6] {
        let client = curl(format!("https://{}/", socket(address, 443)), &["-k"]);
        rows.add(address, "curl https, by address", client, vec![to(address, TCP, 443)]);
    }
    let spoof = format!("{}:443:{v4}", REQUIRED[3].name);
    let client = curl(format!("https://{}/", REQUIRED[3].name), &["--resolve", &spoof]);
    rows.add(v4, "curl, forged name", client, vec![to(v4, TCP, 443)]);
    let ssh = Client::PythonTcp { host: BARE_V4.into(), port: 22, family: 4 };
    rows.add(BARE_V4, "python3 tcp 22", ssh, vec![to(BARE_V4, TCP, 22)]);
    for address in [BARE_V4, BARE_V6] {
        rows.add(address, "UDP 4444", Client::Udp { to: socket(address, 4444) }, vec![to(address, UDP, 4444)]);
    }
    rows.add(v4, "ping", Client::Ping { to: v4.into() }, vec![to(v4, ICMP, None)]);
    rows.add(v6, "ping, IPv6", Client::Ping { to: v6.into() }, vec![to(v6, ICMPV6, None)]);
}

fn other_ports(rows: &mut Rows) {
    let (api, mcr) = (&REQUIRED[0], &REQUIRED[3]);
    for (site, scheme, port, tried) in [
        (mcr, "http", 80, "curl http, port 80"),
        (mcr, "https", 8443, "curl https, port 8443"),
        (&UBUNTU, "https", 443, "curl https, only 80 is"),
    ] {
        let client = curl(format!("{scheme}://{}:{port}/", site.name), &["-4"]);
        rows.add(site.name, tried, client, vec![to(site.v4, TCP, port)]);
    }
    let v6 = mcr.v6.expect("it has IPv6");
    let client = curl(format!("http://{}/", socket(v6, 80)), &[]);
    rows.add(v6, "curl http, its address", client, vec![to(v6, TCP, 80)]);
    let tunnel = Client::PythonTcp { host: mcr.name.into(), port: 9000, family: 4 };
    rows.add(mcr.name, "python3 tcp 9000", tunnel, vec![to(mcr.v4, TCP, 9000)]);
    rows.add(mcr.v4, "UDP 443 (QUIC)", Client::Udp { to: socket(mcr.v4, 443) }, vec![to(mcr.v4, UDP, 443)]);
    rows.add(api.v4, "UDP 9000", Client::Udp { to: socket(api.v4, 9000) }, vec![to(api.v4, UDP, 9000)]);
    rows.add(NTP_V4, "UDP 124, beside NTP", Client::Udp { to: socket(NTP_V4, 124) }, vec![to(NTP_V4, UDP, 124)]);
    rows.add(mcr.v4, "ping, allowed address", Client::Ping { to: mcr.v4.into() }, vec![to(mcr.v4, ICMP, None)]);
}

fn dns_ways(rows: &mut Rows) {
    let mcr = REQUIRED[3].name;
    let dig = |args: &[&str]| Client::Dig { args: args.iter().map(ToString::to_string).collect() };
    for (address, extra, protocol, tried) in [
        (OTHER_DNS_V4, "+notcp", UDP, "dig, other resolver"),
        (OTHER_DNS_V6, "+notcp", UDP, "dig, other resolver"),
        (OTHER_DNS_V4, "+tcp", TCP, "dig +tcp, other server"),
    ] {
        rows.add(address, tried, dig(&[mcr, extra, &format!("@{address}")]), vec![to(address, protocol, 53)]);
    }
    let tunnel = |label: &str| format!("{label}.tunnel.forbidden.example");
    let question = |name: &str| vec![Watch::Question(name.into())];
    let name = tunnel("c2vjcmv0lwtleq");
    rows.add("*.tunnel.forbidden.example", "dig, data in labels", dig(&[&name]), question(&name));
    let name = tunnel("dhjhbnnwb3j0");
    rows.add("*.tunnel.forbidden.example", "dig +tcp, labels' data", dig(&[&name, "+tcp"]), question(&name));
    let dot = Client::PythonTcp { host: DNS_V4.into(), port: 853, family: 4 };
    rows.add(DNS_V4, "python3 tcp 853 (DoT)", dot, vec![to(DNS_V4, TCP, 853)]);
    let doh = curl(format!("https://{OTHER_DNS_V4}/dns-query"), &["-k"]);
    rows.add(OTHER_DNS_V4, "curl https (DoH)", doh, vec![to(OTHER_DNS_V4, TCP, 443)]);
}

fn below_sockets(rows: &mut Rows, world: &World) -> Result<()> {
    let gateway = world.world_ns.mac("wup0")?;
    rows.add(
        BARE_V4,
        "raw socket, UDP 7777",
        Client::RawUdp { to: BARE_V4.parse()?, port: 7777 },
        vec![to(BARE_V4, UDP, 7777)],
    );
    let packet = Client::PacketUdp { to: BARE_V4.parse()?, port: 7778, gateway };
    rows.add(BARE_V4, "AF_PACKET, UDP 7778", packet, vec![to(BARE_V4, UDP, 7778)]);
    let client = curl(format!("http://{}/", socket(BARE_V4, 8080)), &[]);
    rows.add(BARE_V4, "curl http, in a pod", client, vec![to(BARE_V4, TCP, 8080)]);
    rows.in_pod();
    rows.add(BARE_V6, "ping, in a pod", Client::Ping { to: BARE_V6.into() }, vec![to(BARE_V6, ICMPV6, None)]);
    rows.in_pod();
    Ok(())
}
