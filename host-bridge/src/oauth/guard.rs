//! Which addresses OAuth requests may go to: discovery follows what a server says, and a server may lie (O11 to O13).
//!
//! | the server's own URL is | http | https to loopback | https to private addresses | https elsewhere |
//! |---|---|---|---|---|
//! | somewhere public | no | no | no | yes |
//! | on this machine's loopback | to loopback | yes | no | yes |
//! | a private address, as a literal, or `--allow-private-network` | no | no | yes | yes |
//!
//! What a name resolves to opens nothing: whoever answers for a name could open the private network with one answer.
//! The address that is checked is the one that is connected to. The metadata services of clouds are refused always.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// What a server's own URL allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guard {
    local: bool,
    private: bool,
}

/// Why a request is not sent there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Forbidden {
    #[error("must use HTTPS")]
    Plain,
    #[error("is at an address that is not allowed for OAuth (private, loopback or reserved)")]
    Address,
    #[error("is not a URL that OAuth may use")]
    Form,
}

impl Guard {
    /// By the URL that a person gave, and whether they said that private addresses are meant.
    pub(crate) fn of(server: Option<&Url>, private: bool) -> Self {
        let literal = server.and_then(literal).is_some_and(|ip| kind(ip) == Kind::Private);
        Self { local: server.is_some_and(is_local), private: private || literal }
    }

    pub(crate) fn allows_private(self) -> bool {
        self.private
    }

    /// Is this a URL to send to at all? Its name is judged when it is resolved.
    pub(crate) fn check_url(self, url: &Url) -> Result<(), Forbidden> {
        if url.host().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err(Forbidden::Form);
        }
        match url.scheme() {
            "https" => {}
            "http" if self.local && is_local(url) => {}
            "http" => return Err(Forbidden::Plain),
            _ => return Err(Forbidden::Form),
        }
        literal(url).map_or(Ok(()), |ip| self.check_address(ip))
    }

    /// May this address be connected to?
    pub(crate) fn check_address(self, ip: IpAddr) -> Result<(), Forbidden> {
        match kind(ip) {
            Kind::Public => Ok(()),
            Kind::Loopback if self.local => Ok(()),
            Kind::Private if self.private => Ok(()),
            Kind::Loopback | Kind::Private | Kind::Never => Err(Forbidden::Address),
        }
    }
}

/// The address that the URL names by itself.
fn literal(url: &Url) -> Option<IpAddr> {
    match url.host() {
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
        Some(Host::Domain(_)) | None => None,
    }
}

/// Does the URL name this machine's loopback?
pub(crate) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(ip)) => ip == Ipv4Addr::LOCALHOST,
        Some(Host::Ipv6(ip)) => ip == Ipv6Addr::LOCALHOST,
        None => false,
    }
}

/// What kind of address is this?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Public,
    Loopback,
    Private,
    Never,
}

/// What gives credentials to whoever asks from inside a cloud's machine or container.
const METADATA_V4: [Ipv4Addr; 6] = [
    // AWS, Azure, Google, Oracle, DigitalOcean and most others.
    Ipv4Addr::new(169, 254, 169, 254),
    // Containers of AWS: task roles (ECS), pod identities (EKS).
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    // Tencent.
    Ipv4Addr::new(169, 254, 0, 23),
    // Alibaba: within the addresses of carriers.
    Ipv4Addr::new(100, 100, 100, 200),
    // Azure's host: a public address that leads to the machine's own.
    Ipv4Addr::new(168, 63, 129, 16),
];
/// The same over IPv6: AWS (machines, pod identities), Google, Oracle and OpenStack, Scaleway.
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

fn kind(ip: IpAddr) -> Kind {
    match ip.to_canonical() {
        IpAddr::V4(ip) => kind_v4(ip),
        IpAddr::V6(ip) => kind_v6(ip),
    }
}

fn kind_v4(ip: Ipv4Addr) -> Kind {
    let [a, b, c, d] = ip.octets();
    match (a, b, c, d) {
        (127, ..) => Kind::Loopback,
        _ if METADATA_V4.contains(&ip) => Kind::Never,
        (10, ..) | (192, 168, ..) | (169, 254, ..) => Kind::Private,
        (172, 16..=31, ..) | (100, 64..=127, ..) => Kind::Private,
        // "This network", protocol assignments, documentation, benchmarks, 6to4 relays, multicast, reserved.
        (0 | 224..=255, ..)
        | (192, 0, 0 | 2, _)
        | (192, 88, 99, _)
        | (198, 18 | 19, ..)
        | (198, 51, 100, _)
        | (203, 0, 113, _) => Kind::Never,
        _ => Kind::Public,
    }
}

fn kind_v6(ip: Ipv6Addr) -> Kind {
    let segments = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        match kind_v4(Ipv4Addr::new(a, b, c, d)) {
            Kind::Public => Kind::Public,
            _ => Kind::Never,
        }
    };
    match segments {
        _ if ip == Ipv6Addr::LOCALHOST => Kind::Loopback,
        _ if METADATA_V6.contains(&ip) => Kind::Never,
        // Translated addresses lead where the IPv4 address does.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, ..] => Kind::Never,
        [0x2002, high, low, ..] => embedded(high, low),
        [first, ..] if first & 0xfe00 == 0xfc00 || first & 0xffc0 == 0xfe80 => Kind::Private,
        // Unspecified, discard, Teredo, documentation, site-local, multicast, and all that is not global unicast.
        [0x2001, 0..=0x01ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Kind::Never,
        [first, ..] if first & 0xe000 == 0x2000 => Kind::Public,
        _ => Kind::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn public() -> Guard {
        Guard::of(Url::parse("https://mcp.example.com/mcp").ok().as_ref(), false)
    }

    fn local() -> Guard {
        Guard::of(Url::parse("http://localhost:3000/mcp").ok().as_ref(), false)
    }

    fn allowed(guard: Guard, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| guard.check_url(&url).is_ok())
    }

    // Every spelling that the URL type takes is the same address.
    #[test_case("https://127.0.0.1/")]
    #[test_case("https://127.1/"; "short")]
    #[test_case("https://2130706433/"; "decimal")]
    #[test_case("https://0x7f000001/"; "hexadecimal")]
    #[test_case("https://0177.0.0.1/"; "octal")]
    #[test_case("https://127.0.0.1./"; "final dot")]
    #[test_case("https://[::1]/"; "v6")]
    #[test_case("https://[::ffff:127.0.0.1]/"; "mapped")]
    #[test_case("https://[::ffff:7f00:1]/"; "mapped in hexadecimal")]
    #[test_case("https://[64:ff9b::7f00:1]/"; "translated")]
    #[test_case("https://[2002:7f00:1::]/"; "6to4")]
    #[test_case("https://127.9.9.9/"; "the rest of 127")]
    #[test_case("https://0.0.0.0/"; "unspecified")]
    #[test_case("https://[::]/"; "unspecified v6")]
    #[test_case("https://10.0.0.1/")]
    #[test_case("https://172.31.255.255/")]
    #[test_case("https://192.168.1.1/")]
    #[test_case("https://100.64.0.1/")]
    #[test_case("https://169.254.169.254/"; "metadata")]
    #[test_case("https://[fd00:ec2::254]/"; "metadata v6")]
    #[test_case("https://[fe80::1]/")]
    #[test_case("https://[fc00::1]/")]
    #[test_case("https://[ff02::1]/")]
    #[test_case("https://224.0.0.1/")]
    #[test_case("https://255.255.255.255/")]
    #[test_case("https://[64:ff9b:1::a00:1]/"; "local translation")]
    #[test_case("http://example.com/"; "plain")]
    #[test_case("ftp://example.com/"; "another scheme")]
    #[test_case("https://u:p@example.com/"; "user")]
    fn o12_refused_for_a_public_server(url: &str) {
        assert!(!allowed(public(), url));
    }

    #[test_case("https://8.8.8.8/")]
    #[test_case("https://[2606:4700::1111]/")]
    #[test_case("https://auth.example.com/token")]
    #[test_case("https://[64:ff9b::808:808]/"; "translated")]
    fn o12_allowed_for_a_public_server(url: &str) {
        assert!(allowed(public(), url));
    }

    #[test_case(local(), "http://127.0.0.1:9/token" => true; "loopback for a local server")]
    #[test_case(local(), "https://localhost/token" => true; "https on loopback for a local server")]
    #[test_case(local(), "https://10.0.0.1/token" => false; "nothing else private for a local server")]
    #[test_case(local(), "http://example.com/token" => false; "plain elsewhere for a local server")]
    #[test_case(local(), "http://127.0.0.2/token" => false; "plain to another loopback")]
    #[test_case(Guard::of(None, true), "https://10.0.0.1/token" => true; "private where it is allowed")]
    #[test_case(Guard::of(None, true), "https://127.0.0.1/token" => false; "never loopback there")]
    fn o13(guard: Guard, url: &str) -> bool {
        allowed(guard, url)
    }

    #[test_case("https://10.1.2.3/mcp" => true; "a private literal")]
    #[test_case("https://[fd12::1]/mcp" => true; "a private literal v6")]
    #[test_case("https://[::ffff:10.1.2.3]/mcp" => true; "a private literal mapped")]
    #[test_case("https://intranet.example/mcp" => false; "a name, whatever it resolves to")]
    #[test_case("https://8.8.8.8/mcp" => false; "a public literal")]
    #[test_case("https://localhost/mcp" => false; "a local server")]
    #[test_case("https://169.254.169.254/mcp" => false; "a metadata service")]
    fn o13_private_is_what_was_written(server: &str) -> bool {
        let guard = Guard::of(Url::parse(server).ok().as_ref(), false);
        assert_eq!(guard.allows_private(), allowed(guard, "https://192.168.0.1/token"));
        guard.allows_private()
    }

    // Whatever was allowed, and however it is written.
    #[test_case("169.254.169.254")]
    #[test_case("169.254.170.2")]
    #[test_case("169.254.170.23")]
    #[test_case("169.254.0.23")]
    #[test_case("100.100.100.200")]
    #[test_case("168.63.129.16")]
    fn o13_metadata_services(ip: &str) {
        let ip: Ipv4Addr = ip.parse().unwrap();
        let [a, b, c, d] = ip.octets();
        let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        let forms = [
            ip.to_string(),
            u32::from(ip).to_string(),
            format!("{:#x}", u32::from(ip)),
            format!("[::ffff:{ip}]"),
            format!("[::{ip}]"),
            format!("[64:ff9b::{high:x}:{low:x}]"),
            format!("[64:ff9b:1::{high:x}:{low:x}]"),
            format!("[2002:{high:x}:{low:x}::1]"),
        ];
        for guard in [
            public(),
            local(),
            Guard::of(None, true),
            Guard::of(Url::parse("https://10.0.0.1/").ok().as_ref(), true),
        ] {
            for form in &forms {
                assert!(!allowed(guard, &format!("https://{form}/latest")), "{form} {guard:?}");
            }
            assert!(
                guard.check_address(IpAddr::V4(ip)).is_err()
                    && guard.check_address(IpAddr::V6(ip.to_ipv6_mapped())).is_err()
            );
        }
    }

    #[test_case("fd00:ec2::254")]
    #[test_case("fd00:ec2::23")]
    #[test_case("fd20:ce::254")]
    #[test_case("fe80::a9fe:a9fe")]
    #[test_case("fd00:42::42")]
    fn o13_metadata_services_v6(ip: &str) {
        for guard in [public(), local(), Guard::of(None, true)] {
            assert!(guard.check_address(ip.parse().unwrap()).is_err());
            assert!(!allowed(guard, &format!("https://[{ip}]/")));
        }
    }
}
