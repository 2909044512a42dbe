//! Ordered deliveries of a source stream that is no more: it was lost with its server and made anew, or
//! another one took its place (`ERP_STREAM`), and counts from one again. Their turns are beyond everything
//! that is settled, perhaps for ever, although nothing that has not come yet belongs in front of them.
//! So they are put ahead of all that the stream brings now, in the order that they had.
//!
//! They are told by turns that the stream has not given out: first the highest turns are read and then the
//! stream is asked, so what is recorded meanwhile is never taken for one of them.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        interfaces::{Store, StoreError},
        values::DeliveryId,
    },
    shared::{error_chain::Chain, lifecycle::Group, metrics::LOOP_FAULTS},
};

use super::{
    ports::{BusError, SourceFloor},
    upkeep::pause,
    wakers::Wakers,
};

/// How often they are looked for.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Deliveries that one transaction puts ahead at most.
const BATCH: u32 = 1_000;

/// The ports of that.
pub struct FormerStreams {
    /// Where deliveries wait.
    pub store: Arc<dyn Store>,
    /// The stream that there is now.
    pub source: Arc<dyn SourceFloor>,
    /// Rung when lanes may go on.
    pub wakers: Arc<Wakers>,
}

impl std::fmt::Debug for FormerStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FormerStreams").finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl FormerStreams {
    /// Looks for them now and then, until `group` is stopping.
    pub fn start(self, group: &Group) {
        group.spawn_loop("former streams", self.run(group.stopping()));
    }

    async fn run(self, stopping: CancellationToken) {
        loop {
            if let Err(error) = self.look(&stopping).await {
                counter!(LOOP_FAULTS, "loop" => "former streams").increment(1);
                tracing::debug!(error = %Chain(&error), "the turns of a former stream are not known");
            }
            if !pause(&stopping, LOOK_EVERY).await {
                return;
            }
        }
    }

    async fn look(&self, stopping: &CancellationToken) -> Result<(), Fault> {
        while !stopping.is_cancelled() {
            let highest = self.store.highest_turns(BATCH).await?;
            if highest.is_empty() {
                return Ok(());
            }
            let last = self.source.last().await?;
            let former = highest.iter().filter(|(_, turn)| *turn > last);
            let former: Vec<DeliveryId> = former.map(|(id, _)| *id).collect();
            if former.is_empty() {
                return Ok(());
            }
            let count = self.store.put_ahead(&former).await?;
            if count == 0 {
                return Ok(());
            }
            tracing::warn!(
                deliveries = count,
                last,
                "ordered deliveries are of a former source stream and go ahead of the present one's"
            );
            self.wakers.lanes.notify_one();
        }
        Ok(())
    }
}
