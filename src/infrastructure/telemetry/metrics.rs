//! Metrics in Prometheus's text form, rendered on demand.

use std::{fmt, time::Duration};

use metrics::gauge;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::shared::{
    lifecycle::Group,
    metrics::{BUILD_INFO, describe},
};

/// Upper bounds of the histograms, in seconds: from a read of the registry to the longest attempt.
const BUCKETS: [f64; 18] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0, 300.0,
];

/// How often the samples that nobody fetched are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Metrics cannot be recorded.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded")]
pub struct MetricsError(#[from] BuildError);

/// All metrics of the process.
#[derive(Clone)]
pub struct MetricsRecorder(PrometheusHandle);

impl MetricsRecorder {
    /// Begins to record the metrics of the process.
    ///
    /// # Errors
    /// [`MetricsError`]; the second call fails.
    pub fn install(database: &'static str) -> Result<Self, MetricsError> {
        let handle = builder()?.install_recorder()?;
        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "database" => database).set(1.0);
        Ok(Self(handle))
    }

    /// All metrics, as Prometheus reads them.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of histograms that nobody fetches bounded, until the group stops.
    pub fn spawn_upkeep(&self, group: &Group) {
        let handle = self.0.clone();
        let stopping = group.stopping();
        group.spawn_loop("metrics upkeep", async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
                handle.run_upkeep();
            }
        });
    }
}

impl fmt::Debug for MetricsRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsRecorder").finish_non_exhaustive()
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
}

#[cfg(test)]
mod tests {
    use metrics::{counter, histogram, with_local_recorder};

    use crate::shared::metrics::{ATTEMPT_SECONDS, EVENTS, PARKED_OLDEST};

    use super::*;

    #[test]
    fn seconds_have_buckets_and_everything_has_its_help_text() {
        let recorder = builder().unwrap().build_recorder();
        let recorded = MetricsRecorder(recorder.handle());
        with_local_recorder(&recorder, || {
            describe();
            counter!(EVENTS, "result" => "accepted").increment(2);
            histogram!(ATTEMPT_SECONDS, "lane" => "fast").record(0.02);
            gauge!(PARKED_OLDEST).set(3.0);
        });
        let text = recorded.render();
        for line in [
            "# HELP integration_events_total ",
            "# TYPE integration_events_total counter",
            "integration_events_total{result=\"accepted\"} 2",
            "# TYPE integration_delivery_attempt_duration_seconds histogram",
            "integration_delivery_attempt_duration_seconds_bucket{lane=\"fast\",le=\"0.01\"} 0",
            "integration_delivery_attempt_duration_seconds_bucket{lane=\"fast\",le=\"0.025\"} 1",
            "integration_deliveries_oldest_due_seconds 3",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn every_metric_stands_on_its_page() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let page = std::fs::read_to_string(root.join("docs/metrics.md")).unwrap();
        let source = include_str!("../../shared/metrics.rs");
        let names: Vec<&str> = source
            .split('"')
            .filter(|text| text.starts_with("integration_"))
            .collect();
        assert!(names.len() > 15);
        for name in names {
            assert!(page.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
