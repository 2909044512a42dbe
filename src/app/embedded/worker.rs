//! The worker of `dev` and `demo`: the same as that of `run`, in this process.

use std::{fs::File, future::Future, net::SocketAddr, path::Path, pin::Pin, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    app::{error::RunError, warn_of_unsupported, worker},
    infrastructure::telemetry::{
        MetricsRecorder, install_panic_hook, start_logging, start_logging_to,
    },
    presentation::ops::OpsServer,
    shared::{
        config::Config,
        lifecycle::{Alarm, Group},
    },
};

/// How long what runs beside the worker may take to end.
const FAREWELL: Duration = Duration::from_secs(2);

/// A worker that is bound and does not run yet, and a group for what runs beside it.
#[derive(Debug)]
pub(crate) struct Worker {
    config: Config,
    metrics: MetricsRecorder,
    ops: OpsServer,
    group: Group,
    alarm: Alarm,
}

impl Worker {
    /// Starts the log (on standard error, or in a file) and the metrics, and binds the ops server.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub(crate) async fn start(config: Config, log: Option<&Path>) -> Result<Self, RunError> {
        match log {
            None => start_logging(&config.log).map_err(telemetry)?,
            Some(path) => {
                let file = File::create(path).map_err(telemetry)?;
                start_logging_to(&config.log, file).map_err(telemetry)?;
            }
        }
        install_panic_hook();
        warn_of_unsupported(&config);
        let kind = config.database.location.kind();
        let metrics = MetricsRecorder::install(kind).map_err(telemetry)?;
        let ops = OpsServer::bind(config.ops_addr).await?;
        let alarm = Alarm::default();
        Ok(Self {
            config,
            metrics,
            ops,
            group: Group::new("beside the worker", &alarm),
            alarm,
        })
    }

    /// Where its ops server listens.
    pub(crate) fn ops(&self) -> SocketAddr {
        self.ops.address()
    }

    /// For what runs beside it, and ends after it.
    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Runs it until `beside` is done, which answers something, or until `shutdown` (`None`).
    ///
    /// # Errors
    /// Why the worker does not run.
    pub(crate) async fn run_beside<T>(
        self,
        shutdown: CancellationToken,
        beside: Pin<Box<dyn Future<Output = T> + '_>>,
    ) -> Result<Option<T>, RunError> {
        let Self {
            config,
            metrics,
            ops,
            group,
            alarm,
        } = self;
        let stop = shutdown.child_token();
        let ended = CancellationToken::new();
        let running = async {
            let result = worker::run_on(ops, config, metrics, stop.clone()).await;
            ended.cancel();
            result
        };
        let watching = async {
            let done = tokio::select! {
                done = beside => Some(done),
                () = stop.cancelled() => None,
                () = ended.cancelled() => None,
                () = alarm.rung() => None,
            };
            stop.cancel();
            done
        };
        let (result, done) = tokio::join!(Box::pin(running), watching);
        group.shut_down(FAREWELL).await;
        result?;
        if alarm.is_rung() {
            return Err(RunError::Crashed);
        }
        Ok(done)
    }
}

fn telemetry<E: std::error::Error + Send + Sync + 'static>(error: E) -> RunError {
    RunError::Telemetry(Box::new(error))
}
