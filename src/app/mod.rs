//! The composition root: the one place that sees all layers.

mod client;
mod demo;
mod dependencies;
mod dev;
mod doctor;
mod embedded;
mod error;
mod key_files;
mod keys;
mod lag;
mod lock;
mod migrate;
mod nats;
mod signals;
mod store;
mod worker;

use std::{io, process::ExitCode, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    infrastructure::telemetry::{MetricsRecorder, install_panic_hook, start_logging},
    presentation::cli::{Cli, Command, Exit, Output},
    shared::{
        config::{Config, LogConfig},
        error_chain::Chain,
    },
};

use client::{Question, ask};
use error::RunError;
use signals::{Hangup, Signals};

/// How long blocking work may hold the end of the process up.
const GOODBYE: Duration = Duration::from_millis(500);

/// Runs the command and answers the exit code.
pub fn main(cli: &Cli) -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut output = Output::new(&mut out, &mut err);
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| RunError::Telemetry(Box::new(error)))
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(&cli.command, &mut output));
            runtime.shutdown_timeout(GOODBYE);
            result
        });
    let exit = result.unwrap_or_else(|error| {
        output.remark(format_args!("integration-worker: {}", Chain(&error)));
        error.exit()
    });
    let exit = told(exit, &mut output);
    ExitCode::from(exit as u8)
}

/// A result that did not reach its reader is none.
fn told(exit: Exit, output: &mut Output<'_>) -> Exit {
    let Some(loss) = output.loss().map(ToString::to_string) else {
        return exit;
    };
    output.remark(format_args!(
        "integration-worker: standard output cannot be written: {loss}"
    ));
    if exit == Exit::Done {
        Exit::Failed
    } else {
        exit
    }
}

async fn dispatch(command: &Command, output: &mut Output<'_>) -> Result<Exit, RunError> {
    match command {
        Command::Run => run().await.map(|()| Exit::Done),
        Command::Dev(options) => {
            let dev = |shutdown| dev::run(options.data.as_deref(), shutdown);
            until_signal(Hangup::Stop, dev).await.map(|()| Exit::Done)
        }
        Command::Demo => {
            let seen = until_signal(Hangup::Stop, demo::run).await?;
            Ok(if seen { Exit::Done } else { Exit::Failed })
        }
        Command::Migrate => migrate::migrate(output).await,
        Command::Doctor(options) => Ok(doctor::doctor(options.json, output).await),
        Command::Keys(command) => key_files::run(command, output).await,
        Command::Integration(request) => {
            ask(Question::Entity("integration", request), output).await
        }
        Command::Webhook(request) => ask(Question::Entity("webhook", request), output).await,
        Command::Deadletter(request) => ask(Question::Entity("deadletter", request), output).await,
        Command::Delivery(request) => {
            ask(Question::Entity("delivery", &request.whole()), output).await
        }
        Command::Status(options) => ask(Question::Status(options), output).await,
        Command::Events(command) => ask(Question::Events(command), output).await,
    }
}

/// Says once what was asked for and is not done.
fn warn_of_unsupported(config: &Config) {
    if let Some(warning) = config.unsupported() {
        tracing::warn!("{warning}");
    }
}

/// From now on the process tells what it does, panics included, in its log.
fn start_telling(config: &LogConfig) -> Result<(), RunError> {
    start_logging(config).map_err(|error| RunError::Telemetry(Box::new(error)))?;
    install_panic_hook();
    Ok(())
}

async fn run() -> Result<(), RunError> {
    let config = Config::from_env()?;
    start_telling(&config.log)?;
    warn_of_unsupported(&config);
    let metrics = MetricsRecorder::install(config.database.location.kind())
        .map_err(|error| RunError::Telemetry(Box::new(error)))?;
    let work = |shutdown| worker::run(config, metrics, shutdown);
    until_signal(Hangup::Reload, work).await
}

/// The first signal cancels the token that the work is given, the second one ends it at once.
async fn until_signal<T, W>(
    hangup: Hangup,
    work: impl FnOnce(CancellationToken) -> W,
) -> Result<T, RunError>
where
    W: Future<Output = Result<T, RunError>>,
{
    let signals = Signals::install(hangup).map_err(|error| RunError::Telemetry(Box::new(error)))?;
    let shutdown = CancellationToken::new();
    tokio::select! {
        result = Box::pin(work(shutdown.clone())) => result,
        () = signals.watch(shutdown) => Err(RunError::Interrupted),
    }
}
