//! Streams and consumers: what is missing is made, what is there is left.

use std::time::Duration;

use async_nats::jetstream::{self, stream};
use integration_worker::infrastructure::nats::{Topology, TopologyError};

use crate::{
    harness::{Installation, settings},
    support::{
        PATIENCE, eventually,
        nats::{self, NatsServer},
    },
};

const ACK_WAIT: Duration = Duration::from_mins(6);

#[tokio::test]
async fn the_topology_made_twice_is_the_same_and_quiet() {
    let installation = Installation::start_with("", ACK_WAIT).await;
    let again = installation.topology.ensure(&installation.context).await;
    assert_eq!(again.expect("it is there"), []);
}

#[tokio::test]
async fn two_installations_share_one_server_and_the_stream_of_the_erp() {
    let installation = Installation::start_with("", ACK_WAIT).await;
    let other = Topology::new(&settings("site-2.integration", ACK_WAIT));
    let found = other.ensure(&installation.context).await;
    assert_eq!(found.expect("it is there"), []);
    installation.store("sales.order.created", "1").await;
    for consumer in ["integration_erp", "site-2_integration_erp"] {
        eventually(PATIENCE, async || {
            let unsettled = installation.unsettled("ERP_EVENTS", consumer).await;
            (unsettled == 1).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_difference_is_told_and_left() {
    let server = NatsServer::start().await;
    let context = jetstream::new(nats::client(&server.url()).await);
    let existing = stream::Config {
        name: "ERP_EVENTS".to_owned(),
        subjects: vec!["erp.>".to_owned()],
        max_age: Duration::from_hours(1),
        duplicate_window: Duration::from_mins(10),
        max_messages: 1000,
        ..Default::default()
    };
    context.create_stream(&existing).await.expect("a stream");

    let topology = Topology::new(&settings("integration", ACK_WAIT));
    let found = topology.ensure(&context).await.expect("the rest is made");

    let told: Vec<_> = found
        .iter()
        .map(|d| {
            (
                d.of.as_str(),
                d.field,
                d.expected.as_str(),
                d.actual.as_str(),
            )
        })
        .collect();
    let of = "stream ERP_EVENTS";
    assert_eq!(
        told,
        [
            (of, "subjects", r#"["erp.>","sales.>"]"#, r#"["erp.>"]"#),
            (of, "max_age", "604800s", "3600s"),
            (of, "max_msgs", "none", "1000"),
        ]
    );
    let stream = context.get_stream("ERP_EVENTS").await.expect("a stream");
    let config = &stream.cached_info().config;
    assert_eq!((config.max_messages, config.subjects.len()), (1000, 1));
}

#[tokio::test]
async fn a_subject_that_another_stream_has_is_explained() {
    let server = NatsServer::start().await;
    let context = jetstream::new(nats::client(&server.url()).await);
    let other = stream::Config {
        name: "SALES".to_owned(),
        subjects: vec!["sales.order.*".to_owned()],
        ..Default::default()
    };
    context.create_stream(&other).await.expect("a stream");

    let topology = Topology::new(&settings("integration", ACK_WAIT));
    let error = topology.ensure(&context).await.expect_err("they overlap");

    assert!(error.is_final());
    assert!(
        matches!(&error, TopologyError::Overlap { stream, subject, other }
            if stream == "ERP_EVENTS" && subject == "sales.>" && other == "SALES"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_push_consumer_of_our_name_is_explained() {
    let server = NatsServer::start().await;
    let context = jetstream::new(nats::client(&server.url()).await);
    let topology = Topology::new(&settings("integration", ACK_WAIT));
    let stream = context
        .create_stream(&topology.erp)
        .await
        .expect("a stream");
    let push = jetstream::consumer::push::Config {
        durable_name: Some("integration_erp".to_owned()),
        deliver_subject: "elsewhere".to_owned(),
        ..Default::default()
    };
    stream.create_consumer(push).await.expect("a consumer");

    let error = topology.ensure(&context).await.expect_err("it pushes");

    assert!(
        matches!(error, TopologyError::PushConsumer { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_without_jetstream_is_an_error_that_may_pass() {
    let server = NatsServer::start_with("jetstream: disabled").await;
    let context = jetstream::new(nats::client(&server.url()).await);
    let topology = Topology::new(&settings("integration", ACK_WAIT));
    let error = topology.ensure(&context).await.expect_err("no JetStream");
    assert!(!error.is_final(), "{error:?}");
}
