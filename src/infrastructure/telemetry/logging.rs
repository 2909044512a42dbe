//! Log lines on standard error: readable ones, or one JSON object a line.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    panic::{self, PanicHookInfo},
    sync::Arc,
};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    fmt::{self, MakeWriter},
    util::SubscriberInitExt as _,
};

use crate::shared::config::{LogConfig, LogFormat};

/// Crates whose everyday lines nobody wants; a directive of `RUST_LOG` for the same crate wins.
const QUIET: &str = "async_nats=warn,h2=warn,hyper=warn,hyper_util=warn,rustls=warn,sqlx=warn";

/// The log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The configuration checked it, so this is a defect.
    #[error("the log filter cannot be read")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// There is one already.
    #[error("the log is started already")]
    Started(#[from] tracing_subscriber::util::TryInitError),
}

/// Sends all log lines of the process to standard error.
///
/// # Errors
/// [`LoggingError`]; the second call fails.
pub fn start_logging(config: &LogConfig) -> Result<(), LoggingError> {
    let colours = io::stderr().is_terminal();
    subscriber(config, colours, io::stderr)?.try_init()?;
    Ok(())
}

/// Sends all log lines of the process to a file, without colours.
///
/// # Errors
/// [`LoggingError`]; the second call fails.
pub fn start_logging_to(config: &LogConfig, file: File) -> Result<(), LoggingError> {
    subscriber(config, false, Arc::new(file))?.try_init()?;
    Ok(())
}

fn subscriber<W>(
    config: &LogConfig,
    colours: bool,
    writer: W,
) -> Result<Box<dyn Subscriber + Send + Sync>, LoggingError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(format!("{QUIET},{}", config.filter))?;
    let builder = fmt::Subscriber::builder()
        .with_env_filter(filter)
        // A line that cannot be written would be told on standard error, and to panic if that is gone.
        .log_internal_errors(false)
        .with_writer(writer);
    Ok(match config.format {
        LogFormat::Text => Box::new(builder.with_ansi(colours).finish()),
        LogFormat::Json => Box::new(
            builder
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .finish(),
        ),
    })
}

/// Makes a panic one log line with its place. The task that panicked ends; whether the process does
/// is for its group to say. What was formatted into the message is left out: it may hold a secret.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(log_panic));
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    let thread = std::thread::current();
    tracing::error!(
        location = place.unwrap_or_default(),
        thread = thread.name().unwrap_or_default(),
        // A text of the program itself.
        text = info.payload().downcast_ref::<&'static str>(),
        "a task panicked"
    );
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut lines = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
            lines.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Lines {
        fn of(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
            let lines = Self::default();
            let config = LogConfig {
                format,
                filter: filter.to_owned(),
            };
            let writer = lines.clone();
            let subscriber = subscriber(&config, false, move || writer.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, log);
            let bytes = lines.0.lock().unwrap().clone();
            String::from_utf8(bytes).unwrap()
        }
    }

    #[test]
    fn json_is_one_object_a_line_with_its_fields_at_the_top() {
        let text = Lines::of(LogFormat::Json, "info", || {
            tracing::info!(ops_addr = "127.0.0.1:1", "one\ntwo");
            tracing::debug!("not shown");
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["ops_addr"], "127.0.0.1:1");
        assert_eq!(line["message"], "one\ntwo");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn noisy_crates_are_quiet_unless_they_are_asked_for() {
        let log = || {
            tracing::info!(target: "async_nats::connector", "noise");
            tracing::info!(target: "sqlx::query", "noise");
            tracing::info!("shown");
        };
        let text = Lines::of(LogFormat::Text, "debug", log);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}'));
        let text = Lines::of(LogFormat::Text, "info,sqlx=debug", log);
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_panic_is_one_line_with_its_place_and_without_what_was_formatted_into_it() {
        let secret = "c4n4ry";
        let text = Lines::of(LogFormat::Json, "info", || {
            let former = panic::take_hook();
            install_panic_hook();
            let caught = panic::catch_unwind(|| panic!("it holds {secret}"));
            panic::set_hook(former);
            assert!(caught.is_err());
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("logging.rs:"), "{text}");
        assert!(!text.contains(secret), "{text}");
    }
}
