//! OAuth 2: tokens over one store, as several workers get and use them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::TimeDelta;
use futures_util::future::join_all;
use http::{HeaderMap, Method};
use integration_worker::{
    application::{
        oauth::{ClientCredentials, Given, Grant, TokenParts, TokenSender},
        ports::{Clock, HttpAnswer, HttpSender, OutboundRequest, SendError, TokenFault},
    },
    domain::values::{Timestamp, WebhookId},
    infrastructure::crypto::{RingCipher, generate_key_line},
    shared::lifecycle::{Alarm, Group},
};
use serde_json::json;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    support::{PATIENCE, eventually},
    world::{World, id},
};

/// The clock of all workers.
struct Time(Mutex<Timestamp>);

impl Clock for Time {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
    fn new_id(&self) -> Uuid {
        Uuid::nil()
    }
    fn random(&self) -> f64 {
        0.5
    }
    fn secret_bytes(&self, length: usize) -> Vec<u8> {
        vec![0; length]
    }
}

/// An endpoint and its token endpoint, which gives out `token-1`, `token-2` and so on.
struct Partner {
    state: Mutex<State>,
    /// As many token requests are answered as this gives permits for.
    answering: Semaphore,
}

#[derive(Default)]
struct State {
    asked: usize,
    /// The endpoint takes this one and those after it.
    takes_from: usize,
    shown: Vec<String>,
    fails: Option<Result<HttpAnswer, SendError>>,
}

fn answer(status: u16, body: &str) -> HttpAnswer {
    HttpAnswer {
        status,
        retry_after: None,
        body: body.to_owned(),
        whole: Some(Ok(Bytes::copy_from_slice(body.as_bytes()))),
    }
}

#[async_trait]
impl HttpSender for Partner {
    async fn send(&self, request: OutboundRequest) -> Result<HttpAnswer, SendError> {
        let authorization = request.headers["authorization"].to_str().unwrap();
        if request.uri.host() == Some("id.example.com") {
            let number = {
                let mut state = self.state.lock().unwrap();
                state.asked += 1;
                state.asked
            };
            self.answering.acquire().await.unwrap().forget();
            if let Some(failure) = self.state.lock().unwrap().fails.clone() {
                return failure;
            }
            let token = json!({
                "access_token": format!("token-{number}"), "token_type": "Bearer", "expires_in": 100,
            });
            return Ok(answer(200, &token.to_string()));
        }
        let mut state = self.state.lock().unwrap();
        let token = authorization.strip_prefix("Bearer ").unwrap().to_owned();
        let number: usize = token.strip_prefix("token-").unwrap().parse().unwrap();
        state.shown.push(token);
        let taken = number >= state.takes_from;
        Ok(answer(if taken { 200 } else { 401 }, ""))
    }
}

struct Site {
    world: World,
    partner: Arc<Partner>,
    time: Arc<Time>,
    webhook: WebhookId,
    group: Group,
    keys: String,
}

/// A worker: its sender, and its compiled webhook.
struct Worker {
    sender: TokenSender,
    grant: Arc<Grant>,
}

impl Worker {
    async fn send(&self) -> Result<u16, SendError> {
        self.send_within(PATIENCE).await
    }

    async fn send_within(&self, timeout: Duration) -> Result<u16, SendError> {
        let request = OutboundRequest {
            uri: "https://receiver.example.com/hook".parse().unwrap(),
            method: Method::POST,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{}"),
            timeout,
            whole_up_to: None,
            identity: None,
            grant: Some(Arc::clone(&self.grant)),
        };
        self.sender.send(request).await.map(|answer| answer.status)
    }
}

impl Site {
    async fn new(world: World) -> Self {
        let integration = world.integration().await;
        let webhook = id(&world.webhook(&integration, "w").await);
        let keys = generate_key_line("k1", world.clock.as_ref());
        Self {
            partner: Arc::new(Partner {
                state: Mutex::default(),
                answering: Semaphore::new(1000),
            }),
            time: Arc::new(Time(Mutex::new(world.clock.now()))),
            webhook: WebhookId(webhook.parse().unwrap()),
            group: Group::new("test", &Alarm::default()),
            keys,
            world,
        }
    }

    fn worker(&self) -> Worker {
        self.worker_with("secret", &self.keys)
    }

    fn worker_with(&self, secret: &str, keys: &str) -> Worker {
        let parts = TokenParts {
            store: Arc::clone(&self.world.store),
            cipher: Arc::new(RingCipher::from_text(keys).unwrap()),
            clock: Arc::<Time>::clone(&self.time),
            group: self.group.clone(),
        };
        let credentials = ClientCredentials::new(Given {
            token_url: "https://id.example.com/token",
            client_id: "erp",
            client_secret: secret,
            scope: None,
        });
        Worker {
            sender: TokenSender::new(Arc::<Partner>::clone(&self.partner), parts),
            grant: Arc::new(Grant::new(self.webhook, credentials.unwrap())),
        }
    }

    fn pass(&self, seconds: i64) {
        *self.time.0.lock().unwrap() += TimeDelta::seconds(seconds);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.partner.state.lock().unwrap()
    }

    fn asked(&self) -> usize {
        self.state().asked
    }

    fn shown(&self) -> Vec<String> {
        std::mem::take(&mut self.state().shown)
    }
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() {
                super::$name(super::Site::new(super::World::new().await).await).await;
            })*
        }
        mod postgres {
            $(#[tokio::test] async fn $name() {
                super::$name(super::Site::new(super::World::on_postgres().await).await).await;
            })*
        }
    };
}

on_both!(
    a_token_is_got_once_for_all_requests_of_all_workers,
    past_half_of_its_life_a_token_is_used_while_one_worker_replaces_it,
    a_token_that_could_not_be_replaced_is_used_until_it_expires,
    a_token_that_the_endpoint_does_not_take_is_replaced_once,
    an_endpoint_that_takes_no_token_has_its_answer_told,
    a_failed_token_request_is_counted_by_one_of_those_who_wait_for_it,
    a_token_that_takes_longer_than_the_attempt_serves_the_next_one,
    nothing_is_sent_when_no_time_is_left,
    a_failure_that_comes_after_the_attempt_is_counted_by_the_next_one,
    a_token_that_was_given_up_a_moment_ago_is_no_failure_of_its_endpoint,
    a_token_endpoint_at_a_refused_address_is_no_failure_of_the_partner,
    other_credentials_get_a_token_of_their_own,
    a_kept_token_whose_key_is_gone_is_got_anew,
    the_key_of_a_kept_token_is_not_needed,
    a_worker_that_was_killed_meanwhile_holds_the_others_up_for_a_while_only,
);

async fn a_token_is_got_once_for_all_requests_of_all_workers(site: Site) {
    let (a, b) = (site.worker(), site.worker());
    let all = join_all((0..20).map(|n| if n % 2 == 0 { a.send() } else { b.send() }));
    assert!(all.await.into_iter().all(|sent| sent == Ok(200)));
    assert_eq!(site.asked(), 1);
    assert!(site.shown().iter().all(|token| token == "token-1"));
    // One that starts later, too.
    assert_eq!(site.worker().send().await, Ok(200));
    assert_eq!(site.asked(), 1);
    assert!(!site.world.stored_anywhere("token-1"), "it is sealed");
    // It expires.
    site.pass(100);
    assert_eq!(a.send().await, Ok(200));
    assert_eq!(b.send().await, Ok(200));
    assert_eq!(site.asked(), 2);
}

async fn past_half_of_its_life_a_token_is_used_while_one_worker_replaces_it(site: Site) {
    let (a, b) = (site.worker(), site.worker());
    a.send().await.unwrap();
    b.send().await.unwrap();
    site.pass(49);
    a.send().await.unwrap();
    assert_eq!(site.asked(), 1);
    site.pass(1);
    site.partner
        .answering
        .forget_permits(site.partner.answering.available_permits());
    site.shown();
    for worker in [&a, &b, &a, &b] {
        assert_eq!(worker.send().await, Ok(200), "nobody waits for the new one");
    }
    assert_eq!(site.shown(), ["token-1"; 4]);
    eventually(PATIENCE, async || (site.asked() == 2).then_some(())).await;
    site.partner.answering.add_permits(1000);
    for worker in [&a, &b] {
        eventually(PATIENCE, async || {
            worker.send().await.unwrap();
            site.shown().contains(&"token-2".to_owned()).then_some(())
        })
        .await;
    }
    assert_eq!(site.asked(), 2);
}

async fn a_token_that_could_not_be_replaced_is_used_until_it_expires(site: Site) {
    let worker = site.worker();
    worker.send().await.unwrap();
    site.state().fails = Some(Ok(answer(503, "")));
    site.pass(99);
    for _ in 0..10 {
        assert_eq!(worker.send().await, Ok(200));
    }
    eventually(PATIENCE, async || (site.asked() == 2).then_some(())).await;
    site.pass(1);
    let failed = worker.send().await.unwrap_err();
    assert!(failed.to_string().contains("HTTP 503"), "{failed}");
}

async fn a_token_that_the_endpoint_does_not_take_is_replaced_once(site: Site) {
    let (a, b) = (site.worker(), site.worker());
    a.send().await.unwrap();
    b.send().await.unwrap();
    site.state().takes_from = 2;
    let all = join_all((0..10).map(|n| if n % 2 == 0 { a.send() } else { b.send() }));
    assert_eq!(all.await, vec![Ok(200); 10]);
    assert_eq!(site.asked(), 2);
}

async fn an_endpoint_that_takes_no_token_has_its_answer_told(site: Site) {
    let worker = site.worker();
    site.state().takes_from = usize::MAX;
    for _ in 0..5 {
        assert_eq!(worker.send().await, Ok(401));
    }
    assert_eq!(site.asked(), 2, "one more than without");
    assert_eq!(site.shown().len(), 6, "one request was sent again");
}

fn fault(error: &SendError) -> TokenFault {
    match error {
        SendError::Token { fault, .. } => *fault,
        other => panic!("{other}"),
    }
}

async fn a_failed_token_request_is_counted_by_one_of_those_who_wait_for_it(site: Site) {
    let worker = site.worker();
    let body = r#"{"error":"invalid_client","error_description":"secret"}"#;
    site.state().fails = Some(Ok(answer(401, body)));
    let all = join_all((0..10).map(|_| worker.send())).await;
    let expected = "cannot get a token: HTTP 401 from the token endpoint (invalid_client)";
    let mut counted = 0;
    for failed in all {
        let failed = failed.unwrap_err();
        assert_eq!(failed.to_string(), expected);
        counted += usize::from(fault(&failed) == TokenFault::Partner);
    }
    assert_eq!((site.asked(), counted), (1, 1));
    let failed = worker.send().await.unwrap_err();
    assert_eq!(
        fault(&failed),
        TokenFault::None,
        "it stands, and is counted"
    );
    assert_eq!(site.shown(), [""; 0], "nothing is sent without a token");
    // What is wrong here says nothing about the partner.
    let lookup = SendError::Lookup("no name server".to_owned());
    site.state().fails = Some(Err(lookup));
    eventually(PATIENCE, async || {
        let failed = worker.send().await.unwrap_err();
        let is_lookup = failed.to_string().contains("no name server");
        assert!(!is_lookup || fault(&failed) == TokenFault::None);
        is_lookup.then_some(())
    })
    .await;
    site.state().fails = None;
    eventually(PATIENCE, async || worker.send().await.ok()).await;
}

/// Of a worker whose attempt has ended before the token endpoint answers.
async fn asked_in_vain(site: &Site) -> Worker {
    let worker = site.worker();
    let permits = site.partner.answering.available_permits();
    site.partner.answering.forget_permits(permits);
    let failed = worker.send_within(Duration::from_millis(50)).await;
    assert_eq!(fault(&failed.unwrap_err()), TokenFault::None);
    eventually(PATIENCE, async || (site.asked() == 1).then_some(())).await;
    assert_eq!(site.shown(), [""; 0]);
    worker
}

async fn a_token_that_takes_longer_than_the_attempt_serves_the_next_one(site: Site) {
    let worker = asked_in_vain(&site).await;
    site.partner.answering.add_permits(1);
    assert_eq!(worker.send().await, Ok(200));
    assert_eq!(
        (site.asked(), site.shown()),
        (1, vec!["token-1".to_owned()])
    );
}

async fn nothing_is_sent_when_no_time_is_left(site: Site) {
    let worker = site.worker();
    assert_eq!(worker.send().await, Ok(200));
    site.shown();
    let failed = worker.send_within(Duration::ZERO).await.unwrap_err();
    assert_eq!(fault(&failed), TokenFault::None);
    assert_eq!(site.shown(), [""; 0]);
}

async fn a_failure_that_comes_after_the_attempt_is_counted_by_the_next_one(site: Site) {
    let worker = asked_in_vain(&site).await;
    site.state().fails = Some(Ok(answer(503, "")));
    site.partner.answering.add_permits(1);
    let failed = worker.send().await.unwrap_err();
    assert_eq!(fault(&failed), TokenFault::Partner);
    let failed = worker.send().await.unwrap_err();
    assert_eq!(fault(&failed), TokenFault::None);
    assert_eq!(site.asked(), 1);
}

async fn a_token_that_was_given_up_a_moment_ago_is_no_failure_of_its_endpoint(site: Site) {
    let worker = site.worker();
    site.state().takes_from = usize::MAX;
    for _ in 0..2 {
        assert_eq!(worker.send().await, Ok(401));
    }
    assert_eq!(site.asked(), 2);
    site.pass(100);
    assert_eq!(worker.send().await, Ok(401));
    assert_eq!(site.asked(), 3, "one that has expired is replaced at once");
}

async fn a_token_endpoint_at_a_refused_address_is_no_failure_of_the_partner(site: Site) {
    let worker = site.worker();
    site.state().fails = Some(Err(SendError::Refused("the address is private".to_owned())));
    let failed = worker.send().await.unwrap_err();
    assert_eq!(fault(&failed), TokenFault::Address);
}

async fn other_credentials_get_a_token_of_their_own(site: Site) {
    site.worker().send().await.unwrap();
    let changed = site.worker_with("another secret", &site.keys);
    assert_eq!(changed.send().await, Ok(200));
    assert_eq!(site.shown(), ["token-1", "token-2"]);
}

async fn a_kept_token_whose_key_is_gone_is_got_anew(site: Site) {
    site.worker().send().await.unwrap();
    let other = generate_key_line("k2", site.world.clock.as_ref());
    assert_eq!(site.worker_with("secret", &other).send().await, Ok(200));
    assert_eq!(site.shown(), ["token-1", "token-2"]);
}

async fn the_key_of_a_kept_token_is_not_needed(site: Site) {
    let needed = async || site.world.store.key_ids().await.unwrap();
    let before = needed().await;
    let other = generate_key_line("tokens", site.world.clock.as_ref());
    let worker = site.worker_with("secret", &other);
    assert_eq!(worker.send().await, Ok(200));
    let kept = site.world.store.token_state(site.webhook).await.unwrap();
    assert_eq!(kept.token.unwrap().sealed.key_id, "tokens");
    assert_eq!(needed().await, before);
}

async fn a_worker_that_was_killed_meanwhile_holds_the_others_up_for_a_while_only(site: Site) {
    let now = site.time.now();
    let until = now + TimeDelta::seconds(15);
    let claimed = site.world.store.claim_token(site.webhook, 0, now, until);
    assert!(claimed.await.unwrap().is_some());
    let worker = site.worker();
    let failed = worker.send_within(Duration::from_millis(300)).await;
    let failed = failed.unwrap_err();
    assert_eq!(fault(&failed), TokenFault::None, "{failed}");
    assert_eq!(site.asked(), 0);
    site.pass(15);
    eventually(PATIENCE, async || worker.send().await.ok()).await;
    assert_eq!(site.asked(), 1);
}
