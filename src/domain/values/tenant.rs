//! The tenant: whose data something is.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::shared::naming::{MAX_TENANT, is_tenant_name};

/// A tenant's name: `[A-Za-z0-9_.-]{1,64}`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

/// The text is no tenant name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a tenant is 1 to 64 letters, digits, '_', '.' or '-'")]
pub struct TenantError;

impl TenantId {
    /// Longest tenant name, in bytes.
    pub const MAX_LEN: usize = MAX_TENANT;

    /// Checks and wraps a tenant name.
    ///
    /// # Errors
    /// [`TenantError`] when it is empty, too long, or holds another character.
    pub fn try_new(text: &str) -> Result<Self, TenantError> {
        if !is_tenant_name(text) {
            return Err(TenantError);
        }
        Ok(Self(Arc::from(text)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for TenantId {
    type Error = TenantError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::try_new(&text)
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.0.as_ref().to_owned()
    }
}
