//! The connection is made and kept in the background.

use std::sync::Arc;

use integration_worker::infrastructure::nats::connect;

use crate::{
    harness::{TestClock, connect_to, nats_settings},
    support::{PATIENCE, nats::NatsServer},
};

async fn until(connection: &integration_worker::infrastructure::nats::Connection, wanted: bool) {
    let mut connected = connection.connected.clone();
    let waiting = connected.wait_for(|connected| *connected == wanted);
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.expect("in time").expect("the client lives");
}

#[tokio::test]
async fn a_server_that_comes_late_and_goes_is_followed() {
    let mut server = NatsServer::start().await;
    server.stop().await;
    let connection = connect_to(&server.url()).await;
    assert!(!*connection.connected.borrow());
    server.restart().await;
    until(&connection, true).await;
    server.stop().await;
    until(&connection, false).await;
    server.restart().await;
    until(&connection, true).await;
    connection.client.flush().await.expect("it is connected");
}

#[tokio::test]
async fn the_password_in_the_url_logs_in_and_is_not_told() {
    let server = NatsServer::start_with(
        "authorization { users = [ { user: worker, password: \"hunter@2\" } ] }",
    )
    .await;
    let with_password = |password: &str| {
        let at = format!("nats://worker:{password}@");
        nats_settings(&server.url().replace("nats://", &at))
    };
    let good = with_password("hunter%402");
    assert!(!format!("{good:?}").contains("hunter"), "{good:?}");
    let connection = connect(&good, Arc::new(TestClock::default()))
        .await
        .expect("the settings are fine");
    until(&connection, true).await;

    let wrong = connect(&with_password("wrong"), Arc::new(TestClock::default()))
        .await
        .expect("a refusal is no fault of the settings");
    connection.client.flush().await.expect("it is connected");
    assert!(!*wrong.connected.borrow());
}
