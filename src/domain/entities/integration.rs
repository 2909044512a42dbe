//! An integration: an external system with its credentials.

use crate::domain::{
    events::{Change, IntegrationChange},
    values::{IntegrationId, SecretConfig, Timestamp},
};

use super::{EntityMeta, InvalidTransition};

/// What kind of system it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntegrationType {
    /// An HTTP API.
    Api,
    /// A receiver of webhooks.
    Webhook,
    /// A place of files.
    File,
    /// A database.
    Database,
    /// A message queue.
    MessageQueue,
}

impl IntegrationType {
    /// All kinds, in the order of the contract.
    pub const ALL: [Self; 5] = [
        Self::Api,
        Self::Webhook,
        Self::File,
        Self::Database,
        Self::MessageQueue,
    ];

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Webhook => "webhook",
            Self::File => "file",
            Self::Database => "database",
            Self::MessageQueue => "message-queue",
        }
    }

    /// Reads the name on the wire.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// Where an integration stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IntegrationStatus {
    /// New; its webhooks run.
    Pending,
    /// In use.
    Active,
    /// Turned off by a user; its webhooks match nothing.
    Inactive,
    /// Marked as faulty; its webhooks match nothing.
    Error {
        /// What is wrong.
        error: String,
    },
}

impl IntegrationStatus {
    /// The name on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Error { .. } => "error",
        }
    }

    /// Whether webhooks and jobs of the integration run.
    pub fn runs(&self) -> bool {
        matches!(self, Self::Pending | Self::Active)
    }
}

/// An external system.
#[derive(Debug, Clone, PartialEq)]
pub struct Integration {
    /// Its id.
    pub id: IntegrationId,
    /// Name, version, history.
    pub meta: EntityMeta,
    /// What it is.
    pub kind: IntegrationType,
    /// Where it stands.
    pub status: IntegrationStatus,
    /// How to reach it; credentials sealed.
    pub config: SecretConfig,
}

impl Integration {
    /// A new integration: `pending`.
    pub fn create(
        id: IntegrationId,
        meta: EntityMeta,
        kind: IntegrationType,
        config: SecretConfig,
    ) -> (Self, IntegrationChange) {
        let change = IntegrationChange {
            id,
            version: meta.version,
            change: Change::Created,
        };
        let status = IntegrationStatus::Pending;
        let new = Self {
            id,
            meta,
            kind,
            status,
            config,
        };
        (new, change)
    }

    /// `pending`, `inactive` → `active`; nothing to do when it is active.
    ///
    /// # Errors
    /// Refused from `error`.
    pub fn activate(
        &mut self,
        actor: &str,
        now: Timestamp,
    ) -> Result<Option<IntegrationChange>, InvalidTransition> {
        match self.status {
            IntegrationStatus::Active => Ok(None),
            IntegrationStatus::Error { .. } => Err(InvalidTransition {
                entity: "integration",
                state: "error",
                remedy: "deactivate it first",
            }),
            IntegrationStatus::Pending | IntegrationStatus::Inactive => Ok(Some(self.move_to(
                IntegrationStatus::Active,
                Change::Activated,
                actor,
                now,
            ))),
        }
    }

    /// Any state → `inactive`; nothing to do when it is inactive.
    #[must_use]
    pub fn deactivate(&mut self, actor: &str, now: Timestamp) -> Option<IntegrationChange> {
        if self.status == IntegrationStatus::Inactive {
            return None;
        }
        Some(self.move_to(IntegrationStatus::Inactive, Change::Deactivated, actor, now))
    }

    /// Any state → `error`; nothing to do when it is marked with this very error.
    #[must_use]
    pub fn mark_error(
        &mut self,
        error: String,
        actor: &str,
        now: Timestamp,
    ) -> Option<IntegrationChange> {
        let status = IntegrationStatus::Error { error };
        if self.status == status {
            return None;
        }
        Some(self.move_to(status, Change::Failed, actor, now))
    }

    /// Counts a change that is no transition (`updated`, `credentials_rotated`).
    pub fn changed(&mut self, change: Change, actor: &str, now: Timestamp) -> IntegrationChange {
        self.meta.touch(actor, now);
        IntegrationChange {
            id: self.id,
            version: self.meta.version,
            change,
        }
    }

    fn move_to(
        &mut self,
        status: IntegrationStatus,
        change: Change,
        actor: &str,
        now: Timestamp,
    ) -> IntegrationChange {
        self.status = status;
        self.changed(change, actor, now)
    }
}
