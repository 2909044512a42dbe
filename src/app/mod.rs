//! The composition root: the one place that sees all layers.

mod error;
mod keys;
mod nats;
mod signals;
mod store;
mod worker;

use std::{io::Write as _, process::ExitCode, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    infrastructure::telemetry::{MetricsRecorder, install_panic_hook, start_logging},
    shared::{config::Config, error_chain::Chain},
};

use error::RunError;
use signals::Signals;

/// How long blocking work may hold the end of the process up.
const GOODBYE: Duration = Duration::from_millis(500);

/// Runs the command and answers the exit code.
pub fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&RunError::Telemetry(Box::new(error))),
    };
    let result = runtime.block_on(run());
    runtime.shutdown_timeout(GOODBYE);
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &RunError) -> ExitCode {
    // Nobody is left to be told that standard error is closed.
    drop(writeln!(
        std::io::stderr(),
        "integration-worker: {}",
        Chain(error)
    ));
    ExitCode::from(error.exit_code())
}

async fn run() -> Result<(), RunError> {
    let config = Config::from_env()?;
    start_logging(&config.log).map_err(|error| RunError::Telemetry(Box::new(error)))?;
    install_panic_hook();
    let metrics = MetricsRecorder::install(config.database.location.kind())
        .map_err(|error| RunError::Telemetry(Box::new(error)))?;
    let signals = Signals::install().map_err(|error| RunError::Telemetry(Box::new(error)))?;
    let shutdown = CancellationToken::new();
    tokio::select! {
        result = worker::run(config, metrics, shutdown.clone()) => result,
        () = signals.watch(shutdown) => Err(RunError::Interrupted),
    }
}
