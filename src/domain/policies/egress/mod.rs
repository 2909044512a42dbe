//! Which addresses a delivery may go to.

mod kinds;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

/// Why an address is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the address {address} is not public ({kind}); EGRESS_ALLOW_CIDRS can allow it")]
pub struct RefusedAddress {
    /// The address as it would be connected to.
    pub address: IpAddr,
    /// `loopback`, `private`, `link-local`, …
    pub kind: &'static str,
}

/// Only global addresses, and those that the operator allows.
#[derive(Debug, Clone, Default)]
pub struct EgressPolicy {
    allowed: Vec<IpNet>,
}

impl EgressPolicy {
    /// A policy that also allows these networks.
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Checks the address of a connection. An IPv4 address inside an IPv6 one (mapped, compatible,
    /// translated, NAT64) is judged as what it is: by the rules and the allowed networks of IPv4.
    ///
    /// # Errors
    /// [`RefusedAddress`] when it is neither global nor allowed.
    pub fn check(&self, address: IpAddr) -> Result<(), RefusedAddress> {
        let embedded = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => kinds::embedded_v4(v6),
        };
        if self.allows(address, embedded) {
            return Ok(());
        }
        let kind = match (embedded, address) {
            (Some(v4), _) | (None, IpAddr::V4(v4)) => kinds::of_v4(v4),
            (None, IpAddr::V6(v6)) => kinds::of_v6(v6),
        };
        kind.map_or(Ok(()), |kind| Err(RefusedAddress { address, kind }))
    }

    fn allows(&self, address: IpAddr, embedded: Option<Ipv4Addr>) -> bool {
        let embedded = embedded.map(IpAddr::V4);
        self.allowed.iter().any(|net| {
            net.contains(&address) || embedded.as_ref().is_some_and(|v4| net.contains(v4))
        })
    }
}

/// Checks the host of a URL when it is a literal address, in any notation that a URL parser knows;
/// a name is checked when it is connected to.
///
/// # Errors
/// [`RefusedAddress`] when the literal is refused.
pub fn check_literal_host(
    policy: &EgressPolicy,
    host: &url::Host<&str>,
) -> Result<(), RefusedAddress> {
    match host {
        url::Host::Domain(_) => Ok(()),
        url::Host::Ipv4(address) => policy.check(IpAddr::V4(*address)),
        url::Host::Ipv6(address) => policy.check(IpAddr::V6(*address)),
    }
}
