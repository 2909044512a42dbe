//! Events of which none waits for another: each one is taken or refused by itself.

use std::{collections::HashSet, io};

use async_nats::{
    connection::State,
    jetstream::context::{PublishError, PublishErrorKind},
};
use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    application::ports::{BusError, Refusal},
    domain::interfaces::OutboxRow,
};

use super::{BATCH_TIMEOUT, JetStreamPublisher, WINDOW};

/// What has become of a batch so far.
#[derive(Default)]
struct Outcomes {
    taken: HashSet<Uuid>,
    refused: Vec<Refusal>,
    misses_stream: bool,
}

impl JetStreamPublisher {
    /// Answers those that were refused. Where the connection is away and nothing was taken, that is no
    /// refusal, but an error.
    pub(super) async fn each(&self, rows: &[OutboxRow]) -> Result<Vec<Refusal>, BusError> {
        let mut outcomes = Outcomes::default();
        let in_time = timeout(BATCH_TIMEOUT, self.send_each(rows, &mut outcomes)).await;
        if in_time.is_err() {
            self.refuse_the_rest(rows, &mut outcomes);
        }
        if outcomes.misses_stream {
            self.mend_streams().await;
        }
        let is_away = self.client.connection_state() != State::Connected;
        if is_away && outcomes.taken.is_empty() && !outcomes.refused.is_empty() {
            return Err(BusError {
                what: format!("{} events made of answers", rows.len()),
                source: io::Error::from(io::ErrorKind::NotConnected).into(),
            });
        }
        Ok(outcomes.refused)
    }

    /// An answer that does not come is waited for beside the others.
    async fn send_each(&self, rows: &[OutboxRow], outcomes: &mut Outcomes) {
        let each: Vec<_> = rows.iter().map(|row| self.send(row)).collect();
        let mut sent = stream::iter(each).buffer_unordered(WINDOW);
        while let Some((row, result)) = sent.next().await {
            self.note(row, result, outcomes);
        }
    }

    async fn send<'a>(&self, row: &'a OutboxRow) -> (&'a OutboxRow, Result<(), PublishError>) {
        let message = self.event_message(row);
        let result = match self.context.send_publish(self.subject(row), message).await {
            Ok(sent) => sent.await.map(|_| ()),
            Err(error) => Err(error),
        };
        (row, result)
    }

    fn note(&self, row: &OutboxRow, result: Result<(), PublishError>, outcomes: &mut Outcomes) {
        let Err(error) = result else {
            outcomes.taken.insert(row.id);
            return;
        };
        outcomes.misses_stream |= error.kind() == PublishErrorKind::StreamNotFound;
        outcomes.refused.push(Refusal {
            id: row.id,
            subject: self.subject(row),
            source: error.into(),
        });
    }

    fn refuse_the_rest(&self, rows: &[OutboxRow], outcomes: &mut Outcomes) {
        let known: HashSet<Uuid> = outcomes.refused.iter().map(|refusal| refusal.id).collect();
        for row in rows {
            if !outcomes.taken.contains(&row.id) && !known.contains(&row.id) {
                outcomes.refused.push(Refusal {
                    id: row.id,
                    subject: self.subject(row),
                    source: io::Error::from(io::ErrorKind::TimedOut).into(),
                });
            }
        }
    }
}
