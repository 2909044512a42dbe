//! Commands and queries over NATS: the durable path and the request–reply service, one handler.

mod command_id;
mod commands;
mod service;

use std::{any::Any, panic::AssertUnwindSafe, time::Duration};

use async_trait::async_trait;
use futures_util::FutureExt;
use metrics::{counter, histogram};

use crate::{
    application::commands::{CommandHandler, Handled, Incoming, Reply},
    shared::metrics::{COMMAND_SECONDS, COMMANDS},
};

pub use commands::{DurableCommands, DurableSettings};
pub use service::{Connect, RequestService, ServiceError, ServiceSettings};

/// What commands and queries are handed to.
#[async_trait]
pub trait HandleCommand: Send + Sync {
    /// All that there are, as (entity, action).
    fn actions(&self) -> &'static [(&'static str, &'static str)];
    /// Handles one of them.
    async fn handle(&self, incoming: Incoming) -> Handled;
}

#[async_trait]
impl HandleCommand for CommandHandler {
    fn actions(&self) -> &'static [(&'static str, &'static str)] {
        Self::ACTIONS
    }

    async fn handle(&self, incoming: Incoming) -> Handled {
        Self::handle(self, incoming).await
    }
}

/// Handles one, and survives a panic: `Err` holds its text then, where it has one.
async fn handle_safely(handler: &dyn HandleCommand, incoming: Incoming) -> Result<Handled, String> {
    // A panic unwinds before anything is committed or after it, never in between: the handler
    // changes nothing but the database, in transactions.
    let handled = AssertUnwindSafe(handler.handle(incoming)).catch_unwind();
    handled.await.map_err(|panic| panic_text(&*panic))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no text".to_owned())
}

/// How it went, as the metrics' label says it.
fn result_of(reply: &Reply) -> &'static str {
    match reply {
        Reply::Success(_) => "success",
        Reply::Failure(refusal) => refusal.code.as_str(),
    }
}

fn measure(action: String, path: &'static str, result: &'static str, took: Duration) {
    counter!(COMMANDS, "action" => action, "path" => path, "result" => result).increment(1);
    histogram!(COMMAND_SECONDS, "path" => path).record(took);
}
