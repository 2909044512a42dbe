//! What the ops server tells.

use std::net::SocketAddr;

use crate::app::embedded::ops_client;

use super::missed::{Missed, check, in_time};

/// The body of a `GET` that is answered with 200.
pub(super) async fn get(ops: SocketAddr, path: &str) -> Result<String, Missed> {
    let answer = ops_client::get(ops, path).await;
    let (status, body) = answer.map_err(|error| Missed(format!("GET {path}: {error}")))?;
    check(
        status == 200,
        format!("GET {path}: {status}: {}", body.trim()),
    )?;
    Ok(body)
}

/// Waits until the worker is ready.
pub(super) async fn wait_ready(ops: SocketAddr) -> Result<(), Missed> {
    in_time("a worker that is ready", async {
        ops_client::wait_ready(ops).await;
        Ok(())
    })
    .await
}

/// The value of a metric, its labels as they are written.
pub(super) fn value_of(metrics: &str, name: &str) -> Option<f64> {
    let mut lines = metrics.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let metrics = "# TYPE a counter\na_total{x=\"1\"} 3\na_total{x=\"2\"} 0.5\n";
        assert_eq!(value_of(metrics, "a_total{x=\"1\"}"), Some(3.0));
        assert_eq!(value_of(metrics, "a_total{x=\"2\"}"), Some(0.5));
        assert_eq!(value_of(metrics, "a_total"), None);
        assert_eq!(value_of(metrics, "b"), None);
    }
}
