//! A store with one integration, and webhooks in it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use integration_worker::{
    application::{
        ports::{Cipher, CipherError, Clock},
        registry::{Registry, Snapshot},
    },
    domain::{
        entities::{
            EntityMeta, Integration, IntegrationStatus, IntegrationType, SigningSecret, Webhook,
            WebhookStatus,
        },
        events::EventMeta,
        interfaces::{Inserted, RegistryChange, UnitOfWork, UnitOfWorkFactory as _},
        values::{
            EventPattern, IntegrationId, SealedSecrets, SecretConfig, TenantId, Timestamp,
            WebhookId,
        },
    },
    infrastructure::{
        clock::SystemClock,
        crypto::{RingCipher, generate_key_line},
        expression::Cel,
        sqlite::SqliteStore,
    },
};
use uuid::Uuid;

pub(crate) struct Fixture {
    pub(crate) store: SqliteStore,
    cipher: Arc<LosingCipher>,
    /// Whether the cipher knows its key.
    pub(crate) key_is_there: Arc<AtomicBool>,
    integration: Integration,
    _folder: Option<tempfile::TempDir>,
}

/// A cipher that loses its key at times.
struct LosingCipher {
    inner: RingCipher,
    key_is_there: Arc<AtomicBool>,
}

impl Cipher for LosingCipher {
    fn seal(&self, plain: &[u8], context: &str) -> Result<SealedSecrets, CipherError> {
        self.inner.seal(plain, context)
    }

    fn open(&self, sealed: &SealedSecrets, context: &str) -> Result<Vec<u8>, CipherError> {
        if !self.key_is_there.load(Ordering::SeqCst) {
            return Err(CipherError::UnknownKey(sealed.key_id.clone()));
        }
        self.inner.open(sealed, context)
    }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Self::at(&folder.path().join("store.db")).await;
        Self {
            _folder: Some(folder),
            ..fixture
        }
    }

    /// In this file.
    pub(crate) async fn at(file: &std::path::Path) -> Self {
        let store = SqliteStore::open(file).await.unwrap();
        store.migrate().await.unwrap();
        let line = generate_key_line("k1", &SystemClock::new());
        let key_is_there = Arc::new(AtomicBool::new(true));
        let fixture = Self {
            store,
            cipher: Arc::new(LosingCipher {
                inner: RingCipher::from_text(&line).unwrap(),
                key_is_there: Arc::clone(&key_is_there),
            }),
            key_is_there,
            integration: Integration {
                id: IntegrationId(Uuid::from_u128(1)),
                meta: meta("integration"),
                kind: IntegrationType::Api,
                status: IntegrationStatus::Active,
                config: no_config(),
            },
            _folder: None,
        };
        let mut work = fixture.begin().await;
        let inserted = work.insert_integration(&fixture.integration).await.unwrap();
        assert_eq!(inserted, Inserted::Yes);
        work.commit().await.unwrap();
        fixture
    }

    /// The registry of one more worker.
    pub(crate) fn registry(&self) -> Registry {
        let cipher: Arc<dyn Cipher> = Arc::<LosingCipher>::clone(&self.cipher);
        Registry::new(Arc::new(self.store.clone()), cipher, Arc::new(Cel))
    }

    pub(crate) async fn begin(&self) -> Box<dyn UnitOfWork> {
        self.store.begin().await.unwrap()
    }

    pub(crate) fn webhook(&self, number: u128, events: &[&str]) -> Webhook {
        let id = WebhookId(Uuid::from_u128(number));
        let config = serde_json::json!({"url": "https://example.com/hook"});
        Webhook {
            id,
            integration_id: self.integration.id,
            meta: meta(&format!("webhook {number}")),
            events: patterns(events),
            status: WebhookStatus::Pending,
            config: SecretConfig {
                shown: config.as_object().unwrap().clone(),
                sealed: None,
            },
            secrets: vec![SigningSecret {
                sealed: self.cipher.seal(&[7; 32], &id.to_string()).unwrap(),
                created_at: now(),
                expires_at: None,
            }],
        }
    }

    pub(crate) async fn insert(&self, work: &mut dyn UnitOfWork, webhook: &Webhook) -> bool {
        work.insert_webhook(webhook).await.unwrap() == Inserted::Yes
    }

    /// Creates a webhook; answered means committed.
    pub(crate) async fn create(&self, number: u128, events: &[&str]) -> Webhook {
        let webhook = self.webhook(number, events);
        let mut work = self.begin().await;
        assert!(self.insert(work.as_mut(), &webhook).await);
        commit(work, RegistryChange::Webhook(webhook.id)).await;
        webhook
    }

    /// Writes a changed webhook, one version on.
    pub(crate) async fn update(&self, mut webhook: Webhook) -> Webhook {
        webhook.meta.version += 1;
        let mut work = self.begin().await;
        assert_eq!(work.update_webhook(&webhook).await.unwrap(), Inserted::Yes);
        commit(work, RegistryChange::Webhook(webhook.id)).await;
        webhook
    }

    pub(crate) async fn delete(&self, id: WebhookId) {
        let mut work = self.begin().await;
        work.delete_webhook(id, now()).await.unwrap();
        commit(work, RegistryChange::Webhook(id)).await;
    }

    pub(crate) async fn set_integration(&self, status: IntegrationStatus) {
        let (tenant, id) = (&self.integration.meta.tenant, self.integration.id);
        let mut work = self.begin().await;
        let mut integration = work.integration(tenant, id).await.unwrap().unwrap();
        integration.status = status;
        integration.meta.version += 1;
        assert_eq!(
            work.update_integration(&integration).await.unwrap(),
            Inserted::Yes
        );
        commit(work, RegistryChange::Integration(id)).await;
    }
}

pub(crate) fn patterns(texts: &[&str]) -> Vec<EventPattern> {
    let texts = texts.iter();
    texts
        .map(|text| EventPattern::try_new(text).unwrap())
        .collect()
}

async fn commit(mut work: Box<dyn UnitOfWork>, change: RegistryChange) {
    work.registry_changed(&[change]).await.unwrap();
    work.commit().await.unwrap();
}

fn now() -> Timestamp {
    SystemClock::new().now()
}

fn tenant() -> TenantId {
    TenantId::try_new("nord").unwrap()
}

fn meta(name: &str) -> EntityMeta {
    EntityMeta {
        tenant: tenant(),
        name: name.to_owned(),
        description: None,
        tags: Vec::new(),
        version: 1,
        created_at: now(),
        updated_at: now(),
        created_by: "test".to_owned(),
        updated_by: "test".to_owned(),
    }
}

fn no_config() -> SecretConfig {
    SecretConfig {
        shown: serde_json::Map::new(),
        sealed: None,
    }
}

pub(crate) fn event(event_type: &str) -> EventMeta {
    EventMeta {
        made_by: None,
        id: "e".to_owned(),
        event_type: event_type.to_owned(),
        source: "/erp".to_owned(),
        subject: event_type.to_owned(),
        time: now(),
        tenant: tenant(),
        correlation_id: None,
        trace: None,
        content_type: None,
        source_sequence: None,
    }
}

pub(crate) fn matches(snapshot: &Snapshot, webhook: WebhookId, event_type: &str) -> bool {
    let found = snapshot.matches(&event(event_type));
    found.iter().any(|found| found.id == webhook)
}
