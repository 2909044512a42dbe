//! Doing a command once: the kept reply, and the outcome's event of a durable command.
//!
//! A success commits its reply together with its work. A refusal leaves no work behind: its unit of
//! work is rolled back, and the reply is kept in a second one. Both look for a kept reply first, and a
//! second command with the same key waits there, so that one executes and the other gets its reply.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    application::ports::{Cipher, CipherError},
    domain::{
        interfaces::{CommandKey, StoredReply, UnitOfWork},
        values::{SealedSecrets, Timestamp},
    },
};

use super::{
    CommandHandler, Ports,
    body::Body,
    command::{Answer, Command, Kind},
    dispatch,
    reply::{ErrorCode, Refusal, Reply},
    work::{CommandError, Effects, Work},
};

impl CommandHandler {
    /// Handles a command once. A refusal is an answer; an error is not settled.
    pub(super) async fn attempt(&self, command: &Command) -> Result<Answer, CommandError> {
        let body = match &command.body {
            Ok(body) => body.clone(),
            Err(refusal) => {
                return self
                    .settle(command, refused(refusal), Effects::default())
                    .await;
            }
        };
        match command.kind {
            Kind::Change => self.change(command, body).await,
            Kind::Query => {
                let data = dispatch::query(&self.ports, command, body).await;
                self.settle(command, answer(data)?, Effects::default())
                    .await
            }
            Kind::Outside => self.outside(command, body).await,
        }
    }

    async fn change(&self, command: &Command, body: Body) -> Result<Answer, CommandError> {
        let now = self.ports.clock.now();
        if dispatch::is_dear(command)
            && command.key.is_some()
            && let mut unit = self.ports.store.begin().await?
            && let Some(kept) = kept_reply(&self.ports, command, unit.as_mut()).await?
        {
            return self.repeat(command, kept, unit, now).await;
        }
        // Before the unit of work begins, which holds a connection: nobody waits for a second one.
        let known = match dispatch::beforehand(&self.ports, command, &body).await {
            Err(CommandError::Refused(refusal)) => {
                let refused = refused(&refusal);
                return self.settle(command, refused, Effects::default()).await;
            }
            known => known?,
        };
        let mut unit = self.ports.store.begin().await?;
        if let Some(kept) = kept_reply(&self.ports, command, unit.as_mut()).await? {
            return self.repeat(command, kept, unit, now).await;
        }
        let mut work = Work {
            unit,
            ports: &self.ports,
            command,
            now,
            known,
            effects: Effects::default(),
        };
        match Box::pin(dispatch::change(&mut work, body)).await {
            Ok(data) => {
                let Work { unit, effects, .. } = work;
                let answer = Answer::success(data);
                self.commit(command, answer, unit, effects, now).await
            }
            Err(CommandError::Refused(refusal)) => {
                drop(work);
                self.settle(command, refused(&refusal), Effects::default())
                    .await
            }
            Err(error) => Err(error),
        }
    }

    /// What is left to do outside is done once the reply is committed, and again when it is repeated.
    async fn outside(&self, command: &Command, body: Body) -> Result<Answer, CommandError> {
        let answer = self.done_outside(command, body).await?;
        dispatch::afterwards(&self.ports, command, &answer.reply).await?;
        Ok(answer)
    }

    /// It is done outside of any transaction, so two at once under one key may both do it: two tests
    /// both send their request. Both get the reply of the first that is settled.
    async fn done_outside(&self, command: &Command, body: Body) -> Result<Answer, CommandError> {
        if command.key.is_some() {
            let now = self.ports.clock.now();
            let mut unit = self.ports.store.begin().await?;
            if let Some(kept) = kept_reply(&self.ports, command, unit.as_mut()).await? {
                return self.repeat(command, kept, unit, now).await;
            }
        }
        let data = dispatch::outside(&self.ports, command, body).await;
        let answer = answer(data)?;
        let mut effects = Effects::default();
        let entity_id = command.entity_id(&answer.reply);
        if let (Reply::Success(_), Some(id)) = (&answer.reply, entity_id) {
            let row = command.audit_row(id, self.ports.clock.now());
            effects.audit.push(row);
        }
        self.settle(command, answer, effects).await
    }

    /// Commits what a finished command leaves behind, when it leaves anything.
    async fn settle(
        &self,
        command: &Command,
        answer: Answer,
        effects: Effects,
    ) -> Result<Answer, CommandError> {
        let idle = command.key.is_none() && !command.durable && effects.audit.is_empty();
        if idle || is_retryable(&answer.reply) {
            return Ok(answer);
        }
        let now = self.ports.clock.now();
        let mut unit = self.ports.store.begin().await?;
        if let Some(kept) = kept_reply(&self.ports, command, unit.as_mut()).await? {
            return self.repeat(command, kept, unit, now).await;
        }
        self.commit(command, answer, unit, effects, now).await
    }

    /// Tells the outcome of a durable command that failed by a fault of ours; nothing is kept.
    pub(super) async fn tell(
        &self,
        command: &Command,
        answer: &Answer,
    ) -> Result<(), CommandError> {
        let now = self.ports.clock.now();
        let mut unit = self.ports.store.begin().await?;
        unit.add_events(&[command.outcome(answer, now)]).await?;
        unit.commit().await?;
        self.ports.wakers.outbox.notify_one();
        Ok(())
    }

    /// Answers with the kept reply, and tells it again: the first telling may be what was lost.
    async fn repeat(
        &self,
        command: &Command,
        kept: Answer,
        unit: Box<dyn UnitOfWork>,
        now: Timestamp,
    ) -> Result<Answer, CommandError> {
        if !command.durable {
            return Ok(kept);
        }
        let mut unit = unit;
        unit.add_events(&[command.outcome(&kept, now)]).await?;
        unit.commit().await?;
        self.ports.wakers.outbox.notify_one();
        Ok(kept)
    }

    async fn commit(
        &self,
        command: &Command,
        answer: Answer,
        mut unit: Box<dyn UnitOfWork>,
        effects: Effects,
        now: Timestamp,
    ) -> Result<Answer, CommandError> {
        let Effects {
            mut events,
            audit,
            registry,
            parked,
            replays,
        } = effects;
        if command.durable {
            events.push(command.outcome(&answer, now));
        }
        if !events.is_empty() {
            unit.add_events(&events).await?;
        }
        if !audit.is_empty() {
            unit.add_audit(&audit).await?;
        }
        if let Some(key) = &command.key {
            let kept = Kept {
                reply: answer.reply.clone(),
                body_hash: command.body_hash.clone(),
            };
            let (key_id, reply) = seal(&self.ports, key, &kept)?;
            let stored = StoredReply {
                key_id: Some(key_id),
                reply,
                created_at: now,
            };
            unit.keep_reply(key, &stored).await?;
        }
        if !registry.is_empty() {
            unit.registry_changed(&registry).await?;
        }
        unit.commit().await?;
        if !events.is_empty() {
            self.ports.wakers.outbox.notify_one();
        }
        if parked {
            self.ports.wakers.parked.notify_one();
            self.ports.wakers.lanes.notify_one();
            self.ports.wakers.batches.notify_one();
        }
        if replays {
            self.ports.wakers.replays.notify_one();
        }
        Ok(answer)
    }
}

fn refused(refusal: &Refusal) -> Answer {
    Answer::failure(refusal.clone())
}

fn answer(outcome: Result<Value, CommandError>) -> Result<Answer, CommandError> {
    match outcome {
        Ok(data) => Ok(Answer::success(data)),
        Err(CommandError::Refused(refusal)) => Ok(Answer::failure(refusal)),
        Err(error) => Err(error),
    }
}

fn is_retryable(reply: &Reply) -> bool {
    matches!(reply, Reply::Failure(refusal) if refusal.code.is_retryable())
}

/// The reply that stands under the command's key: the kept one, or a refusal when it was kept for
/// another body.
async fn kept_reply(
    ports: &Ports,
    command: &Command,
    unit: &mut dyn UnitOfWork,
) -> Result<Option<Answer>, CommandError> {
    let Some(key) = &command.key else {
        return Ok(None);
    };
    let Some(stored) = unit.reply(key).await? else {
        return Ok(None);
    };
    let kept = open(ports, key, &stored.reply)?;
    if kept.body_hash != command.body_hash {
        return Ok(Some(Answer {
            reply: Reply::Failure(Refusal::at(
                ErrorCode::Conflict,
                "Idempotency-Key",
                "the key was used before, with another body",
            )),
            key_misused: true,
        }));
    }
    Ok(Some(Answer::from(kept.reply)))
}

/// A reply, and the hash of the body that it answers.
struct Kept {
    reply: Reply,
    body_hash: String,
}

/// A reply may hold a secret, so each is sealed, bound to its command. So is the hash of the body: from
/// a bare one whoever reads the table could find out weak credentials by guessing. The id of the
/// encryption key stands before them, and is answered besides; where the key is missing, the command has
/// to wait, and nothing can be said about its body.
fn seal(ports: &Ports, key: &CommandKey, kept: &Kept) -> Result<(String, Vec<u8>), CipherError> {
    let plain = json!({ "bodyHash": kept.body_hash, "reply": kept.reply.to_json() }).to_string();
    seal_plain(&*ports.cipher, key, plain.as_bytes())
}

fn seal_plain(
    cipher: &dyn Cipher,
    key: &CommandKey,
    plain: &[u8],
) -> Result<(String, Vec<u8>), CipherError> {
    let sealed = cipher.seal(plain, &seal_context(key))?;
    let kept = json!({ "keyId": sealed.key_id, "sealed": STANDARD.encode(&sealed.bytes) });
    Ok((sealed.key_id, kept.to_string().into_bytes()))
}

/// Seals a kept reply anew, under the key that encrypts now; answers the key's id and the reply.
pub(in crate::application) fn reseal(
    cipher: &dyn Cipher,
    key: &CommandKey,
    kept: &[u8],
) -> Result<(String, Vec<u8>), CipherError> {
    let plain = open_plain(cipher, key, kept)?;
    seal_plain(cipher, key, &plain)
}

fn open_plain(cipher: &dyn Cipher, key: &CommandKey, kept: &[u8]) -> Result<Vec<u8>, CipherError> {
    let sealed = serde_json::from_slice::<Value>(kept).ok();
    let sealed = sealed.and_then(|kept| {
        Some(SealedSecrets {
            key_id: kept.get("keyId")?.as_str()?.to_owned(),
            bytes: STANDARD.decode(kept.get("sealed")?.as_str()?).ok()?,
        })
    });
    cipher.open(&sealed.ok_or(CipherError::Broken)?, &seal_context(key))
}

fn open(ports: &Ports, key: &CommandKey, kept: &[u8]) -> Result<Kept, CipherError> {
    let plain = open_plain(&*ports.cipher, key, kept)?;
    let mut plain: Value = serde_json::from_slice(&plain).map_err(|_| CipherError::Broken)?;
    let mut taken = |field| plain.get_mut(field).map(Value::take);
    let reply = taken("reply").and_then(Reply::from_json);
    let body_hash = taken("bodyHash").and_then(|hash| hash.as_str().map(str::to_owned));
    let (Some(reply), Some(body_hash)) = (reply, body_hash) else {
        return Err(CipherError::Broken);
    };
    Ok(Kept { reply, body_hash })
}

fn seal_context(key: &CommandKey) -> String {
    format!("reply:{}:{}:{}", key.tenant, key.action, key.key)
}
