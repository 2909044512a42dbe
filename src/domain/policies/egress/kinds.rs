//! What kind of address it is, by the IANA special-purpose address registries.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A network by its first address and its prefix length.
struct Range<Address> {
    first: Address,
    prefix: u32,
    /// `None`: IANA marks it as globally reachable.
    kind: Option<&'static str>,
}

const fn v4(first: [u8; 4], prefix: u32, kind: &'static str) -> Range<Ipv4Addr> {
    let [a, b, c, d] = first;
    Range {
        first: Ipv4Addr::new(a, b, c, d),
        prefix,
        kind: Some(kind),
    }
}

const fn v6(first: [u16; 8], prefix: u32, kind: Option<&'static str>) -> Range<Ipv6Addr> {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = first;
    Range {
        first: Ipv6Addr::new(s0, s1, s2, s3, s4, s5, s6, s7),
        prefix,
        kind,
    }
}

/// The first row that fits decides; what no row names is global.
const V4: [Range<Ipv4Addr>; 21] = [
    // Clouds tell any process on a machine its secrets here; the second one is a public address.
    v4([169, 254, 169, 254], 32, "metadata"),
    v4([168, 63, 129, 16], 32, "metadata"),
    v4([100, 100, 100, 200], 32, "metadata"),
    v4([192, 0, 0, 192], 32, "metadata"),
    v4([0, 0, 0, 0], 32, "unspecified"),
    v4([0, 0, 0, 0], 8, "this network"),
    v4([10, 0, 0, 0], 8, "private"),
    v4([172, 16, 0, 0], 12, "private"),
    v4([192, 168, 0, 0], 16, "private"),
    v4([100, 64, 0, 0], 10, "shared"),
    v4([127, 0, 0, 0], 8, "loopback"),
    v4([169, 254, 0, 0], 16, "link-local"),
    v4([192, 0, 0, 0], 24, "protocol assignments"),
    v4([192, 0, 2, 0], 24, "documentation"),
    v4([198, 51, 100, 0], 24, "documentation"),
    v4([203, 0, 113, 0], 24, "documentation"),
    v4([192, 88, 99, 0], 24, "6to4 relay"),
    v4([198, 18, 0, 0], 15, "benchmarking"),
    v4([224, 0, 0, 0], 4, "multicast"),
    v4([255, 255, 255, 255], 32, "broadcast"),
    v4([240, 0, 0, 0], 4, "reserved"),
];

/// The first row that fits decides; what no row names is not global.
const V6: [Range<Ipv6Addr>; 29] = [
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128, Some("metadata")),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, Some("metadata")),
    v6([0; 8], 128, Some("unspecified")),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, Some("loopback")),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, Some("local NAT64")),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, Some("discard-only")),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, Some("dummy")),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 1], 128, None),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 2], 128, None),
    v6([0x2001, 1, 0, 0, 0, 0, 0, 3], 128, None),
    v6([0x2001, 3, 0, 0, 0, 0, 0, 0], 32, None),
    v6([0x2001, 4, 0x112, 0, 0, 0, 0, 0], 48, None),
    v6([0x2001, 0x20, 0, 0, 0, 0, 0, 0], 28, None),
    v6([0x2001, 0x30, 0, 0, 0, 0, 0, 0], 28, None),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, Some("Teredo")),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, Some("benchmarking")),
    v6([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, Some("ORCHID")),
    v6(
        [0x2001, 0, 0, 0, 0, 0, 0, 0],
        23,
        Some("protocol assignments"),
    ),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, Some("documentation")),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, Some("6to4")),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Some("documentation")),
    // All that is handed out as global unicast.
    v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, None),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, Some("segment routing")),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Some("private")),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Some("link-local")),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, Some("site-local")),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Some("multicast")),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 32, Some("NAT64")),
    v6([0; 8], 0, Some("reserved")),
];

/// Prefixes of 96 bits that are followed by an IPv4 address: compatible, mapped, translated, NAT64.
const EMBEDDING: [[u16; 6]; 4] = [
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0xffff],
    [0, 0, 0, 0, 0xffff, 0],
    [0x64, 0xff9b, 0, 0, 0, 0],
];

/// The kind of an address that is not global; `None` for a global one.
pub(super) fn of_v4(address: Ipv4Addr) -> Option<&'static str> {
    let bits = address.to_bits();
    let inside = |range: &&Range<Ipv4Addr>| {
        let host_bits = 32 - range.prefix;
        bits >> host_bits == range.first.to_bits() >> host_bits
    };
    V4.iter().find(inside).and_then(|range| range.kind)
}

/// The kind of an address that is not global; `None` for a global one.
pub(super) fn of_v6(address: Ipv6Addr) -> Option<&'static str> {
    let bits = address.to_bits();
    let inside = |range: &&Range<Ipv6Addr>| {
        // The last row has no prefix at all: shifting by all bits would overflow.
        let shift = |bits: u128| bits.checked_shr(128 - range.prefix).unwrap_or(0);
        shift(bits) == shift(range.first.to_bits())
    };
    V6.iter()
        .find(inside)
        .map_or(Some("reserved"), |range| range.kind)
}

/// The IPv4 address that an IPv6 address stands for. `::` and `::1` stand for themselves.
pub(super) fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if address.is_unspecified() || address.is_loopback() {
        return None;
    }
    let v4_bits = u32::try_from(address.to_bits() & u128::from(u32::MAX)).ok()?;
    let inside = |prefix: &[u16; 6]| address.segments().starts_with(prefix);
    EMBEDDING
        .iter()
        .any(inside)
        .then(|| Ipv4Addr::from_bits(v4_bits))
}
