//! What this machine could do at best: a loop that signs and sends, and nothing else.

use std::time::Duration;

use integration_worker::domain::policies::{SignatureKey, signature};
use reqwest::Client;
use tokio::{task::JoinSet, time::Instant};

use crate::world::{EVENT_BYTES, float};

/// As many as the worker sends to one endpoint at a time.
const TASKS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);

/// Requests per second of signed bodies to this URL, over one client whose connections are kept.
pub(crate) async fn requests_per_second(url: &str, length: Duration) -> f64 {
    let client = Client::builder().no_proxy().build().expect("a client");
    let key = SignatureKey::from_plain(&[7; 32]);
    let start = Instant::now() + WARM_UP;
    let end = start + length;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (client, key, url) = (client.clone(), key.clone(), url.to_owned());
        tasks.spawn(async move {
            let body = bytes::Bytes::from(vec![b'n'; EVENT_BYTES]);
            let (mut sent, mut counted) = (0_u64, 0_u64);
            while Instant::now() < end {
                sent += 1;
                let id = format!("0193c0de-{task:04x}-7000-8000-{sent:012x}");
                let timestamp = 1_793_606_400;
                let answer = client
                    .post(&url)
                    .header("content-type", "application/json")
                    .header("user-agent", "bench")
                    .header("webhook-id", id.as_str())
                    .header("webhook-timestamp", timestamp)
                    .header(
                        "webhook-signature",
                        signature([&key], &id, timestamp, &body),
                    )
                    .body(body.clone())
                    .send()
                    .await
                    .expect("the sink answers");
                assert_eq!(answer.status(), 200);
                drop(answer.bytes().await.expect("the sink ends its answer"));
                let now = Instant::now();
                counted += u64::from(now >= start && now < end);
            }
            counted
        });
    }
    let counted: u64 = tasks.join_all().await.iter().sum();
    float(counted) / length.as_secs_f64()
}
