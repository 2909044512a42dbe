//! What all registry entities carry.

use crate::domain::values::{TenantId, Timestamp};

/// Name, version and history of a registry entity.
#[derive(Debug, Clone, PartialEq)]
pub struct EntityMeta {
    /// Whose it is.
    pub tenant: TenantId,
    /// 1–255 characters, unique among its siblings.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Labels, for filters.
    pub tags: Vec<String>,
    /// 1 at creation; grows by one with every change, and is the `aggregateversion` of its event.
    pub version: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Who changed it last.
    pub updated_by: String,
}

/// How users call a registry entity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// 1–255 characters, unique among its siblings.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Labels, for filters.
    pub tags: Vec<String>,
}

impl EntityMeta {
    /// The first version of a new entity.
    pub fn new(tenant: TenantId, labels: Labels, actor: &str, now: Timestamp) -> Self {
        Self {
            tenant,
            name: labels.name,
            description: labels.description,
            tags: labels.tags,
            version: 1,
            created_at: now,
            updated_at: now,
            created_by: actor.to_owned(),
            updated_by: actor.to_owned(),
        }
    }

    /// Counts one change.
    pub fn touch(&mut self, actor: &str, now: Timestamp) {
        self.version += 1;
        self.updated_at = now;
        actor.clone_into(&mut self.updated_by);
    }
}

/// The entity's state forbids the action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{entity} is {state}: {remedy}")]
pub struct InvalidTransition {
    /// `integration`, `webhook` or `delivery`.
    pub entity: &'static str,
    /// The state it is in.
    pub state: &'static str,
    /// What would be allowed.
    pub remedy: &'static str,
}
