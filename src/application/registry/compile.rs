//! Makes of a stored webhook what the data plane needs: settings read, secrets opened.

use std::{collections::HashSet, fmt, sync::Arc};

use crate::{
    application::{
        endpoint::{Authentication, Endpoint, SigningKey},
        endpoints::Bound,
        ports::{Cipher, CipherError, Expression, Expressions, Scope},
        registry::{CompiledWebhook, LaneRule},
        response::ResponseRule,
        webhook_settings::{Unauthenticated, authentication, compiled, webhook_settings},
    },
    domain::{
        entities::{Ordering, SigningSecret, Webhook, WebhookSettings, WebhookStatus},
        policies::{RetryPolicy, SignatureKey},
        values::{Faults, SealedSecrets, WebhookId},
    },
};

/// Compiles the webhooks of one pass; a key that was missing once is not asked for again.
pub(super) struct Compiler<'a> {
    cipher: &'a dyn Cipher,
    expressions: &'a dyn Expressions,
    missing_keys: HashSet<String>,
}

/// A compiled webhook, and what was wrong with it.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) webhook: CompiledWebhook,
    /// Why it cannot be used, or signs with fewer secrets than it should. Holds no secret.
    pub(super) problem: Option<String>,
    /// Whether the key ring lacks a key that it needs.
    pub(super) lacks_key: bool,
}

/// What there is to sign with.
#[derive(Default)]
struct Keys {
    usable: Vec<SigningKey>,
    /// Why the current one cannot be used.
    current: Option<CipherError>,
    /// Why a former one, which signs on for a while, cannot be used.
    former: Option<CipherError>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(cipher: &'a dyn Cipher, expressions: &'a dyn Expressions) -> Self {
        Self {
            cipher,
            expressions,
            missing_keys: HashSet::new(),
        }
    }

    pub(super) fn compile(&mut self, webhook: &Webhook) -> Compiled {
        // An address that is refused today is a failed attempt, not a webhook that cannot be used.
        let settings = webhook_settings(&webhook.config.shown, None);
        let retry = settings.as_ref().map_or_else(
            |_| RetryPolicy::default(),
            |settings| settings.retry.clone(),
        );
        let batch = settings.as_ref().ok().and_then(|settings| settings.batch);
        let limits = settings.as_ref().ok();
        let is_rate_limited = limits.is_some_and(|settings| settings.rate_limit.is_some());
        let bound = Bound {
            version: webhook.meta.version,
            max: limits.and_then(|settings| settings.max_in_flight),
        };
        let ordering = match &settings {
            Ok(settings) => self.lane_rule(settings.ordering.as_ref()),
            Err(_) => Ok(None),
        };
        let keys = self.keys(webhook);
        let authentication = self.authentication(webhook);
        let sealed = match &authentication {
            Err(Unauthenticated::Sealed(error)) => Some(error),
            _ => None,
        };
        let lacks_key = [keys.current.as_ref(), keys.former.as_ref(), sealed]
            .into_iter()
            .flatten()
            .any(|error| matches!(error, CipherError::UnknownKey(_)));
        let endpoint = match (settings, &keys.current) {
            (Err(faults), _) => Err(in_one_line(faults)),
            (_, Some(error)) => Err(format!("its signing secret cannot be opened: {error}")),
            (Ok(_), None) if keys.usable.is_empty() => Err("it has no signing secret".to_owned()),
            (Ok(settings), None) => {
                authentication
                    .map_err(unauthenticated)
                    .and_then(|authentication| {
                        self.endpoint(webhook.id, settings, keys.usable, authentication)
                    })
            }
        };
        // Without its rule nothing goes out; with it what waits has its place at least.
        let (endpoint, ordering) = match ordering {
            Ok(ordering) => (endpoint, ordering),
            Err(problem) => (Err(problem), None),
        };
        // A webhook that cannot be used matches all that its patterns do, and keeps it waiting.
        let (endpoint, filter) = match endpoint {
            Ok((endpoint, filter)) => (Ok(endpoint), filter),
            Err(problem) => (Err(problem), None),
        };
        let problem = endpoint.as_ref().err().cloned().or_else(|| {
            let error = keys.former.as_ref()?;
            Some(format!("a former signing secret cannot be opened: {error}"))
        });
        Compiled {
            webhook: CompiledWebhook {
                id: webhook.id,
                tenant: webhook.meta.tenant.clone(),
                integration_id: webhook.integration_id,
                is_pending: webhook.status == WebhookStatus::Pending,
                is_disabled: matches!(webhook.status, WebhookStatus::Error { .. }),
                retry,
                filter,
                ordering,
                batch,
                is_rate_limited,
                bound,
                endpoint,
            },
            problem,
            lacks_key,
        }
    }

    fn endpoint(
        &self,
        webhook: WebhookId,
        settings: WebhookSettings,
        keys: Vec<SigningKey>,
        authentication: Option<Authentication>,
    ) -> Result<(Endpoint, Option<Arc<dyn Expression>>), String> {
        let event = |name, text: &Option<String>| {
            compiled(self.expressions, name, text.as_deref(), Scope::Event)
        };
        let filter = event("filter", &settings.filter)?;
        let transform = event("transform", &settings.transform)?;
        let response = settings.response.as_ref();
        let response = response.map(|response| {
            let (name, data) = ("response.data", response.data.as_deref());
            let data = compiled(self.expressions, name, data, Scope::Answer)?;
            Ok::<_, String>(ResponseRule::new(response.event.clone(), data))
        });
        let response = response.transpose()?;
        let endpoint =
            Endpoint::compile(settings, keys)?.with_authentication(webhook, authentication)?;
        let endpoint = endpoint.with_transform(transform);
        Ok((endpoint.with_response(response), filter))
    }

    fn authentication(
        &mut self,
        webhook: &Webhook,
    ) -> Result<Option<Authentication>, Unauthenticated> {
        let context = webhook.id.to_string();
        authentication(&webhook.config, |sealed| self.unseal(sealed, &context))
    }

    fn lane_rule(&self, ordering: Option<&Ordering>) -> Result<Option<LaneRule>, String> {
        let key = ordering.map(|ordering| ordering.key.as_str());
        let key = compiled(self.expressions, "ordering key", key, Scope::Event)?;
        Ok(key.zip(ordering).map(|(key, ordering)| LaneRule {
            key,
            on_exhausted: ordering.on_exhausted,
        }))
    }

    /// A former secret that does not open is left out: the current one is what receivers must know.
    fn keys(&mut self, webhook: &Webhook) -> Keys {
        let context = webhook.id.to_string();
        let mut keys = Keys::default();
        for secret in &webhook.secrets {
            match self.open(secret, &context) {
                Ok(key) => keys.usable.push(key),
                Err(error) if secret.expires_at.is_none() => keys.current = Some(error),
                Err(error) => keys.former = Some(error),
            }
        }
        keys
    }

    fn open(&mut self, secret: &SigningSecret, context: &str) -> Result<SigningKey, CipherError> {
        let plain = self.unseal(&secret.sealed, context)?;
        Ok(SigningKey {
            key: SignatureKey::from_plain(&plain),
            expires_at: secret.expires_at,
        })
    }

    fn unseal(&mut self, sealed: &SealedSecrets, context: &str) -> Result<Vec<u8>, CipherError> {
        let key_id = &sealed.key_id;
        if self.missing_keys.contains(key_id) {
            return Err(CipherError::UnknownKey(key_id.clone()));
        }
        let plain = self.cipher.open(sealed, context);
        if let Err(CipherError::UnknownKey(_)) = plain {
            self.missing_keys.insert(key_id.clone());
        }
        plain
    }
}

impl fmt::Debug for Compiler<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler").finish_non_exhaustive()
    }
}

fn unauthenticated(problem: Unauthenticated) -> String {
    match problem {
        Unauthenticated::Sealed(_) => problem.to_string(),
        Unauthenticated::Faulty(faults) => in_one_line(faults),
    }
}

fn in_one_line(faults: Faults) -> String {
    let faults = faults.into_vec().into_iter();
    let lines: Vec<_> = faults
        .map(|fault| format!("{}: {}", fault.path, fault.message))
        .collect();
    lines.join("; ")
}
