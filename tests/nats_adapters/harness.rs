//! A server with the worker's topology, and how tests look into it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{self, Context, consumer::DeliverPolicy};
use futures_util::StreamExt;
use integration_worker::{
    application::ports::Clock,
    domain::values::Timestamp,
    infrastructure::nats::{
        Connection, JetStreamPublisher, NatsAuth, NatsSettings, NatsTls, SubjectPrefix, Topology,
        TopologySettings, connect,
    },
    presentation::nats::Connect,
};
use uuid::Uuid;

use crate::support::{PATIENCE, nats::NatsServer};

/// What is lost on the way comes again after this.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(2);

/// Time stands still; ids count.
#[derive(Debug, Default)]
pub(crate) struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        chrono::DateTime::from_timestamp_millis(1_790_230_470_084).expect("a time")
    }
    fn new_id(&self) -> Uuid {
        Uuid::from_u64_pair(7, self.0.fetch_add(1, Ordering::Relaxed))
    }
    fn random(&self) -> f64 {
        0.5
    }
    fn secret_bytes(&self, length: usize) -> Vec<u8> {
        vec![0; length]
    }
}

pub(crate) struct Installation {
    pub(crate) server: NatsServer,
    pub(crate) connection: Connection,
    pub(crate) context: Context,
    pub(crate) prefix: SubjectPrefix,
    pub(crate) topology: Arc<Topology>,
}

impl Installation {
    pub(crate) async fn start() -> Self {
        Self::start_with("", ACK_WAIT).await
    }

    pub(crate) async fn start_with(server: &str, ack_wait: Duration) -> Self {
        let server = NatsServer::start_with(server).await;
        let connection = connect_to(&server.url()).await;
        connection.established().await;
        let topology_settings = settings("integration", ack_wait);
        let mut topology = Topology::new(&topology_settings);
        topology.commands_consumer.config.ack_wait = ack_wait;
        let topology = Arc::new(topology);
        let context = jetstream::new(connection.client.clone());
        topology.ensure(&context).await.expect("the topology");
        Self {
            server,
            connection,
            context,
            prefix: topology_settings.prefix,
            topology,
        }
    }

    /// Makes further connections.
    pub(crate) fn connect_again(&self) -> Connect {
        let url = self.server.url();
        Box::new(move || {
            let url = url.clone();
            Box::pin(async move { Ok(connect_to(&url).await.client) })
        })
    }

    pub(crate) fn publisher(&self) -> JetStreamPublisher {
        self.publisher_of_responses("erp.")
    }

    /// It publishes what is made of answers on this and the type.
    pub(crate) fn publisher_of_responses(&self, subject: &str) -> JetStreamPublisher {
        let (connection, prefix) = (&self.connection, self.prefix.clone());
        JetStreamPublisher::new(connection, prefix, subject.to_owned(), &self.topology)
    }

    /// Publishes and waits for the acknowledgement; tries again while the server is away.
    pub(crate) async fn store(&self, subject: &str, body: &str) {
        store(&self.context, subject, body).await;
    }

    /// Everything that a stream holds, oldest first.
    pub(crate) async fn messages(&self, stream: &str) -> Vec<async_nats::Message> {
        let mut stream = self.context.get_stream(stream).await.expect("the stream");
        let count = stream.info().await.expect("its info").state.messages;
        let config = jetstream::consumer::pull::OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.expect("a consumer");
        let messages = consumer.messages().await.expect("its messages");
        let count = usize::try_from(count).expect("a few");
        let all = messages
            .take(count)
            .map(|message| message.expect("a message").message)
            .collect();
        tokio::time::timeout(PATIENCE, all).await.expect("in time")
    }

    /// How many messages of the durable consumer are not settled, delivered or not.
    pub(crate) async fn unsettled(&self, stream: &str, consumer: &str) -> u64 {
        let consumer: jetstream::consumer::PullConsumer = self
            .context
            .get_consumer_from_stream(consumer, stream)
            .await
            .expect("the consumer");
        let info = consumer.cached_info();
        info.num_pending + info.num_ack_pending as u64
    }
}

pub(crate) async fn store(context: &Context, subject: &str, body: &str) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{subject}-{body}"));
    crate::support::eventually(PATIENCE, async || {
        let body = body.to_owned().into();
        let sent = context.publish_with_headers(subject.to_owned(), headers.clone(), body);
        sent.await.ok()?.await.ok()
    })
    .await;
}

pub(crate) fn settings(prefix: &str, ack_wait: Duration) -> TopologySettings {
    TopologySettings {
        prefix: SubjectPrefix::try_new(prefix).expect("a prefix"),
        erp_stream: "ERP_EVENTS".to_owned(),
        erp_subjects: vec!["erp.>".to_owned(), "sales.>".to_owned()],
        erp_ack_wait: ack_wait,
        erp_max_ack_pending: TopologySettings::ERP_MAX_ACK_PENDING,
    }
}

pub(crate) fn nats_settings(url: &str) -> NatsSettings {
    NatsSettings {
        servers: vec![url.to_owned()],
        auth: NatsAuth::None,
        tls: NatsTls::default(),
        client_name: "test".to_owned(),
    }
}

pub(crate) async fn connect_to(url: &str) -> Connection {
    let settings = nats_settings(url);
    connect(&settings, Arc::new(TestClock::default()))
        .await
        .expect("the settings are fine")
}
