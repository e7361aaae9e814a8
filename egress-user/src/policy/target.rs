//! `to` items: names, wildcards, addresses, prefixes and `any`; and the command line's `DEST`.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    compiled::Proto,
    name::{ItemError, NamePattern, excerpt},
    ports::Ports,
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Every address of both families.
    Any,
    /// Host bits are zero; a single address is a prefix of full length; never IPv4-mapped.
    Net(IpNet),
    Name(NamePattern),
}

impl Target {
    pub fn parse(text: &str) -> Result<Self, ItemError> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("any") {
            return Ok(Self::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Net(IpNet::from(address.to_canonical())));
        }
        if let Some((address, length)) = text.split_once('/')
            && let Ok(address) = address.parse::<IpAddr>()
        {
            return prefix(text, address, length).map(Self::Net);
        }
        if let Some((first, last)) = text.split_once('-')
            && first.parse::<IpAddr>().is_ok()
            && last.parse::<IpAddr>().is_ok()
        {
            return Err(ItemError::new(
                format!("`{text}` is a range of addresses"),
                "write prefixes that cover it, like `192.0.2.0/28`, or each address by itself",
            ));
        }
        if let Some((address, _)) = text.split_once('%')
            && address.parse::<IpAddr>().is_ok()
        {
            return Err(ItemError::new(
                format!("`{text}` has a zone"),
                format!("write `{address}` alone: rules hold on every interface"),
            ));
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.split(']').next())
            && inner.parse::<IpAddr>().is_ok()
        {
            return Err(ItemError::new(
                format!("`{text}` has brackets"),
                format!("write `{inner}`, and its port below `ports`"),
            ));
        }
        if let Some((host, port)) = text.rsplit_once(':')
            && !host.contains(':')
            && !port.is_empty()
            && port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(ItemError::new(
                format!("`{}` has a port", excerpt(text)),
                format!("write `{}` here, and the port below `ports: [{port}/tcp]`", excerpt(host)),
            ));
        }
        NamePattern::parse(text).map(Self::Name)
    }
}

fn prefix(text: &str, address: IpAddr, length: &str) -> Result<IpNet, ItemError> {
    let most = if address.is_ipv4() { 32 } else { 128 };
    if let (IpAddr::V4(_), Ok(IpAddr::V4(mask))) = (address, length.parse::<IpAddr>()) {
        let ones = mask.to_bits().leading_ones();
        return Err(ItemError::new(
            format!("`{text}` has a netmask"),
            if ones == mask.to_bits().count_ones() {
                format!("write its length: `{address}/{ones}`")
            } else {
                "write the length of a prefix, like `192.0.2.0/24`".to_owned()
            },
        ));
    }
    let length = length.parse::<u8>().ok().filter(|length| *length <= most).ok_or_else(|| {
        let family = if most == 32 { "IPv4" } else { "IPv6" };
        ItemError::new(
            format!("`{}` is not the length of an {family} prefix", excerpt(length)),
            format!("write a number from 0 to {most}, like `{address}/{most}` for the one address"),
        )
    })?;
    // The length is in range, so these cannot fail.
    let net = match address {
        IpAddr::V4(address) => Ipv4Net::new(address, length).map(IpNet::V4),
        IpAddr::V6(address) => Ipv6Net::new(address, length).map(IpNet::V6),
    }
    .map_err(|_| ItemError::new(format!("`{text}` is not a prefix"), "write one like `192.0.2.0/24`"))?;
    if net.trunc() != net {
        return Err(ItemError::new(
            format!("`{text}` has host bits set"),
            format!("write the network, `{}`, or `{address}` for the one address", net.trunc()),
        ));
    }
    Ok(unmap(net))
}

/// `::ffff:a.b.c.d/96+n` is the IPv4 prefix `a.b.c.d/n`: sockets of both families send the same packets to it.
fn unmap(net: IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(v4, v6.prefix_len() - 96)
    {
        return IpNet::V4(v4);
    }
    net
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}", net.addr())
            }
            Self::Net(net) => write!(f, "{net}"),
            Self::Name(pattern) => write!(f, "{pattern}"),
        }
    }
}

/// `HOST[:PORT][/PROTO]` as the command line takes it, cut into a target and the ports, if any were written.
///
/// HOST is a `to` item; an IPv6 address or prefix with a port stands in brackets. `:443` means TCP; `:any` every
/// protocol; `/icmp` and `/udp` without a port all of that protocol.
pub fn parse_destination(text: &str) -> Result<(Target, Option<Ports>), ItemError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ItemError::new(
            "an empty destination",
            "write one like `github.com`, `github.com:22` or `192.0.2.1:123/udp`",
        ));
    }
    if let Some((inner, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let target = Target::parse(inner)?;
        return match rest.strip_prefix(':').or_else(|| rest.strip_prefix('/')) {
            None if rest.is_empty() => Ok((target, None)),
            Some(ports) => Ok((target, Some(destination_ports(ports)?))),
            None => Err(ItemError::new(format!("`{}` after the bracket", excerpt(rest)), "write `[2001:db8::1]:443`")),
        };
    }
    // A bare address or prefix, IPv6 included, has no port.
    if text.parse::<IpAddr>().is_ok()
        || text
            .split_once('/')
            .is_some_and(|(host, length)| host.parse::<IpAddr>().is_ok() && length.bytes().all(|b| b.is_ascii_digit()))
    {
        return Ok((Target::parse(text)?, None));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let port = match scheme {
            _ if host.contains(':') => "",
            "http" => ":80",
            _ => ":443",
        };
        return Err(ItemError::new(
            format!("`{}` is a URL", excerpt(text)),
            format!("write the host and its port alone: `{host}{port}`"),
        ));
    }
    if let Some((host, ports)) = text.rsplit_once(':') {
        // `2001:db8::1:443` cannot be told from an address; one that ends in a protocol can, but is asked to be clear.
        if host.contains(':') && !host.contains('/') {
            return Err(ItemError::new(
                format!("`{}` is not an address", excerpt(text)),
                "an IPv6 address with a port stands in brackets, like `[2001:db8::1]:443`",
            ));
        }
        return Ok((Target::parse(host)?, Some(destination_ports(ports)?)));
    }
    if let Some((host, proto)) = text.rsplit_once('/')
        && proto.bytes().all(|b| b.is_ascii_alphanumeric())
        && !proto.bytes().all(|b| b.is_ascii_digit())
    {
        return Ok((Target::parse(host)?, Some(destination_ports(proto)?)));
    }
    Ok((Target::parse(text)?, None))
}

fn destination_ports(text: &str) -> Result<Ports, ItemError> {
    let whole = |proto| Ok(Ports { proto, from: 0, to: u16::MAX });
    match text.to_ascii_lowercase().as_str() {
        "tcp" => whole(Proto::Tcp),
        "udp" => whole(Proto::Udp),
        "icmp" | "icmpv6" => whole(Proto::Icmp),
        ports if !ports.is_empty() && ports.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
            Ports::parse(&format!("{ports}/tcp"))
        }
        ports => Ports::parse(ports),
    }
}
