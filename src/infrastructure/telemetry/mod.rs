//! What the worker tells about itself: log lines and metrics.

mod logging;
mod metrics;

pub use logging::{LoggingError, install_panic_hook, start_logging, start_logging_to};
pub use metrics::{MetricsError, MetricsRecorder};
