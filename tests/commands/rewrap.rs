//! All that is sealed is sealed anew under another key, and the former one can be dropped.

use integration_worker::{
    application::rewrap::{Rewrapped, rewrap},
    infrastructure::crypto::{RingCipher, generate_key_line},
};
use serde_json::json;

use crate::world::{World, id};

#[tokio::test]
async fn after_a_rewrap_the_former_key_is_not_needed() {
    without_the_former_key(World::new().await).await;
}

#[tokio::test]
async fn after_a_rewrap_the_former_key_is_not_needed_on_postgres() {
    without_the_former_key(World::on_postgres().await).await;
}

async fn without_the_former_key(mut world: World) {
    let line = |id: &str| generate_key_line(id, world.clock.as_ref());
    let (k1, k2) = (line("k1"), line("k2"));
    world.with_keys(&k1);
    let body = json!({
        "name": "a", "type": "api", "config": { "credentials": { "apiKey": "secret" } },
    });
    let created = world.call("integration.create", &body).key("k").ok().await;
    let hook = world.webhook(&id(&created), "a").await;
    let hook = json!({ "id": id(&hook) });
    world.ok("webhook.rotate_secret", hook.clone()).await;
    let needed = async || world.store.key_ids().await.unwrap();
    assert_eq!(needed().await, ["k1"]);

    // Without the former key nothing opens, and nothing is changed.
    let alone = RingCipher::from_text(&k2).unwrap();
    let done = rewrap(&*world.store, &alone, "k2").await.unwrap();
    assert_eq!(done.rows(), 0);
    assert_eq!(done.unopened.values().sum::<u64>(), 4, "{done:?}");
    assert!(done.unopened.keys().all(|reason| reason.contains("\"k1\"")));
    assert_eq!(needed().await, ["k1"]);

    let both = RingCipher::from_text(&format!("{k2}\n{k1}")).unwrap();
    let done = rewrap(&*world.store, &both, "k2").await.unwrap();
    let expected = Rewrapped {
        integrations: 1,
        signing_secrets: 2,
        replies: 1,
        ..Rewrapped::default()
    };
    assert_eq!(done, expected);
    assert_eq!(needed().await, ["k2"]);
    let again = rewrap(&*world.store, &both, "k2").await.unwrap();
    assert_eq!(again, Rewrapped::default());

    world.with_keys(&k2);
    let repeated = world.call("integration.create", &body).key("k").ok().await;
    assert_eq!(repeated, created, "the kept reply opens");
    let kept = json!({ "id": id(&created), "config": { "more": true } });
    let updated = world.ok("integration.update", kept).await;
    assert_eq!(
        updated["config"]["credentials"], created["config"]["credentials"],
        "the credentials open"
    );
    world.ok("webhook.test", hook).await;
    let request = world.endpoints.requests.lock().unwrap().pop().unwrap();
    let signatures = request.headers["webhook-signature"].to_str().unwrap();
    assert_eq!(signatures.split(' ').count(), 2);
}

#[tokio::test]
async fn more_than_a_batch_is_sealed_anew() {
    let mut world = World::new().await;
    let line = |id: &str| generate_key_line(id, world.clock.as_ref());
    let (k1, k2) = (line("k1"), line("k2"));
    world.with_keys(&k1);
    for n in 0..101 {
        let body = json!({ "name": format!("i{n}"), "type": "api" });
        let call = world.call("integration.create", &body);
        call.key(&n.to_string()).ok().await;
    }
    let both = RingCipher::from_text(&format!("{k2}\n{k1}")).unwrap();
    let done = rewrap(&*world.store, &both, "k2").await.unwrap();
    assert_eq!((done.replies, done.rows(), done.left), (101, 101, 0));
    assert_eq!(world.store.key_ids().await.unwrap(), ["k2"]);
}
