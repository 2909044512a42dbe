//! The rules for names that the configuration and the domain share.

/// Longest tenant name, in bytes.
pub const MAX_TENANT: usize = 64;

/// Whether the text is a tenant's name: `[A-Za-z0-9_.-]{1,64}`.
pub fn is_tenant_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=MAX_TENANT).contains(&text.len()) && text.bytes().all(allowed)
}
