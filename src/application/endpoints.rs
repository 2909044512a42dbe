//! The attempts under way at each endpoint of this worker: who may go now, who waits a moment, and who
//! is moved aside. Both lanes share the slots.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::domain::{
    policies::{Answer, EndpointLoad, PATIENCE, STALL, Verdict, Window, admit},
    values::WebhookId,
};

/// The slots of all endpoints.
#[derive(Debug, Clone)]
pub struct Endpoints {
    states: Arc<Mutex<HashMap<WebhookId, State>>>,
    max_in_flight: u32,
}

/// How many attempts a webhook allows at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bound {
    /// The webhook's version that says so. Who still works with a former one changes nothing.
    pub version: i64,
    /// `None` is as many as at any endpoint.
    pub max: Option<u32>,
}

#[derive(Debug)]
struct State {
    /// The version of the webhook that gave the bound.
    version: i64,
    /// As it was given: the window has it brought within its bounds.
    max: u32,
    window: Window,
    in_flight: u32,
    waiting: VecDeque<oneshot::Sender<()>>,
    latency: Duration,
    progress: Instant,
}

/// The right to make one attempt; given back when it is dropped.
#[derive(Debug)]
pub struct Slot {
    endpoints: Endpoints,
    webhook: WebhookId,
    started: Instant,
    answer: Option<Answer>,
}

impl Slot {
    /// The request begins now; what was waited for before is not the endpoint's doing.
    pub fn begin(&mut self) {
        self.started = Instant::now();
    }

    /// Gives the slot back with what the endpoint answered.
    pub fn finish(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.endpoints
            .leave(self.webhook, self.started, self.answer);
    }
}

impl Endpoints {
    /// No attempts under way; at most `max_in_flight` at one endpoint.
    pub fn new(max_in_flight: u32) -> Self {
        Self {
            states: Arc::default(),
            max_in_flight,
        }
    }

    /// A slot at once or after a short wait; `None` when the endpoint does not keep up. `bound` is the
    /// webhook's own, in place of that of all endpoints.
    pub async fn enter(&self, webhook: WebhookId, bound: Bound) -> Option<Slot> {
        let turn = {
            let mut states = self.lock();
            let state = self.state(&mut states, webhook, bound);
            match admit(state.load()) {
                Verdict::Attempt => {
                    state.begin();
                    None
                }
                Verdict::Park => return None,
                Verdict::Wait => Some(state.line_up()),
            }
        };
        self.take_turn(webhook, turn, PATIENCE * 2).await
    }

    /// A slot as soon as there is one, within `patience`; for whoever holds a lease and may wait.
    pub async fn enter_within(
        &self,
        webhook: WebhookId,
        bound: Bound,
        patience: Duration,
    ) -> Option<Slot> {
        let turn = {
            let mut states = self.lock();
            let state = self.state(&mut states, webhook, bound);
            if admit(state.load()) == Verdict::Attempt {
                state.begin();
                None
            } else {
                Some(state.line_up())
            }
        };
        self.take_turn(webhook, turn, patience).await
    }

    async fn take_turn(
        &self,
        webhook: WebhookId,
        turn: Option<oneshot::Receiver<()>>,
        patience: Duration,
    ) -> Option<Slot> {
        if let Some(mut turn) = turn {
            // Whoever ends an attempt has already counted the next one in.
            if tokio::time::timeout(patience, &mut turn).await.is_err() {
                turn.close();
                // The turn may have come between the timeout and the closing.
                turn.try_recv().ok()?;
            }
        }
        Some(Slot {
            endpoints: self.clone(),
            webhook,
            started: Instant::now(),
            answer: None,
        })
    }

    /// Whether the endpoint has shown that it does not keep up.
    pub fn is_behind(&self, webhook: WebhookId) -> bool {
        let states = self.lock();
        states
            .get(&webhook)
            .is_some_and(|state| state.window.is_behind() || state.load().is_stalled())
    }

    /// Whether no less can be asked of the endpoint than is: one request at a time.
    pub fn is_slowest(&self, webhook: WebhookId) -> bool {
        let states = self.lock();
        states
            .get(&webhook)
            .is_some_and(|state| state.window.size() <= 1)
    }

    /// Whether somebody waits for a slot at the endpoint, or would have to.
    pub fn is_waited_for(&self, webhook: WebhookId) -> bool {
        let states = self.lock();
        states.get(&webhook).is_some_and(|state| {
            !state.waiting.is_empty() || state.in_flight >= state.window.size()
        })
    }

    /// Endpoints that have enough to do for now: not worth claiming for.
    pub fn saturated(&self) -> Vec<WebhookId> {
        let states = self.lock();
        let full = states.iter().filter(|(_, state)| state.is_saturated());
        full.map(|(id, _)| *id).collect()
    }

    /// Attempts under way.
    pub fn in_flight(&self) -> u32 {
        self.lock().values().map(|state| state.in_flight).sum()
    }

    /// Forgets endpoints that are idle, were last used before `idle_for` ago, and kept up.
    pub fn forget_idle(&self, idle_for: Duration) {
        self.lock().retain(|_, state| {
            state.in_flight > 0 || state.window.is_behind() || state.progress.elapsed() < idle_for
        });
    }

    fn state<'a>(
        &self,
        states: &'a mut HashMap<WebhookId, State>,
        webhook: WebhookId,
        bound: Bound,
    ) -> &'a mut State {
        let max = bound.max.unwrap_or(self.max_in_flight);
        let state = states.entry(webhook).or_insert_with(|| State::new(max));
        if bound.version >= state.version {
            state.version = bound.version;
            state.bound(max);
        }
        state
    }

    fn leave(&self, webhook: WebhookId, started: Instant, answer: Option<Answer>) {
        if let Some(state) = self.lock().get_mut(&webhook) {
            state.end(started.elapsed(), answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WebhookId, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(max_in_flight: u32) -> Self {
        Self {
            version: i64::MIN,
            max: max_in_flight,
            window: Window::new(max_in_flight),
            in_flight: 0,
            waiting: VecDeque::new(),
            latency: Duration::ZERO,
            progress: Instant::now(),
        }
    }

    /// Who waits may go where there is more room now.
    fn bound(&mut self, max: u32) {
        if self.max != max {
            self.max = max;
            self.window = self.window.bounded(max);
            self.call_next();
        }
    }

    fn load(&self) -> EndpointLoad {
        EndpointLoad {
            window: self.window.size(),
            in_flight: self.in_flight,
            waiting: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            latency: self.latency,
            since_progress: self.progress.elapsed(),
        }
    }

    /// Whether it stalls, or is full with a line that will keep it busy; one that does not keep up needs
    /// no line for that.
    fn is_saturated(&self) -> bool {
        let load = self.load();
        let is_full = load.in_flight >= load.window;
        load.is_stalled() || is_full && (self.window.is_behind() || load.waiting >= load.window)
    }

    /// A place in the line; the end of an attempt calls the next one.
    fn line_up(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.push_back(sender);
        receiver
    }

    fn begin(&mut self) {
        if self.in_flight == 0 {
            self.progress = Instant::now();
        }
        self.in_flight += 1;
    }

    fn end(&mut self, took: Duration, answer: Option<Answer>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(answer) = answer {
            self.progress = Instant::now();
            if answer.keeps_up() {
                self.latency = (self.latency * 7 + took) / 8;
                // A late answer is no sign of strength.
                if took < STALL {
                    self.window = self.window.kept_up();
                }
            } else {
                self.window = self.window.fell_behind();
            }
        }
        self.call_next();
    }

    fn call_next(&mut self) {
        while self.in_flight < self.window.size() {
            let Some(next) = self.waiting.pop_front() else {
                break;
            };
            // One that gave up waiting is skipped.
            if next.send(()).is_ok() {
                self.begin();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Answer = Answer::Status(200, None);

    fn webhook() -> WebhookId {
        WebhookId(uuid::Uuid::nil())
    }

    #[tokio::test]
    async fn a_full_endpoint_is_waited_for_and_one_with_a_free_slot_is_not() {
        let endpoints = Endpoints::new(1);
        assert!(!endpoints.is_waited_for(webhook()));
        let slot = endpoints.enter(webhook(), Bound::default()).await.unwrap();
        assert!(endpoints.is_waited_for(webhook()));
        slot.finish(OK);
        assert!(!endpoints.is_waited_for(webhook()));
    }

    #[tokio::test]
    async fn a_full_endpoint_hands_its_slot_to_the_next_in_line() {
        let endpoints = Endpoints::new(1);
        let first = endpoints.enter(webhook(), Bound::default()).await.unwrap();
        let (second, ()) = tokio::join!(endpoints.enter(webhook(), Bound::default()), async {
            first.finish(OK);
        });
        assert!(second.is_some());
        assert_eq!(endpoints.in_flight(), 1);
        drop(second);
        assert_eq!(endpoints.in_flight(), 0);
    }

    #[tokio::test]
    async fn a_bound_of_its_own_holds_and_another_one_applies_at_once() {
        let endpoints = Endpoints::new(64);
        let at_once = Duration::ZERO;
        let enter = async |bound| endpoints.enter_within(webhook(), bound, at_once).await;
        let of = |version, max| Bound { version, max };
        let first = enter(of(1, Some(2))).await.unwrap();
        let second = enter(of(1, Some(2))).await.unwrap();
        assert!(enter(of(1, Some(2))).await.is_none());
        let third = enter(of(2, Some(3))).await.unwrap();
        assert!(enter(of(3, Some(1))).await.is_none());
        drop((first, second));
        assert!(enter(of(3, Some(1))).await.is_none(), "one is under way");
        drop(third);
        let _one = enter(of(3, Some(1))).await.unwrap();
        for former in [Some(2), None] {
            let more = enter(of(2, former)).await;
            assert!(more.is_none(), "a former version's bound is over");
        }
        let without = enter(of(4, None)).await;
        assert!(without.is_some(), "as many as anywhere");
    }

    #[tokio::test]
    async fn who_waits_too_long_is_moved_aside_and_leaves_no_slot_behind() {
        let endpoints = Endpoints::new(1);
        let held = endpoints.enter(webhook(), Bound::default()).await.unwrap();
        assert!(endpoints.enter(webhook(), Bound::default()).await.is_none());
        held.finish(OK);
        assert_eq!(endpoints.in_flight(), 0);
        assert!(endpoints.enter(webhook(), Bound::default()).await.is_some());
    }

    #[tokio::test]
    async fn an_endpoint_that_is_slow_by_nature_keeps_its_window() {
        let endpoints = Endpoints::new(64);
        let mut slot = endpoints.enter(webhook(), Bound::default()).await.unwrap();
        slot.started = Instant::now().checked_sub(STALL * 2).unwrap();
        slot.finish(OK);
        assert!(!endpoints.is_behind(webhook()));
        let mut slot = endpoints.enter(webhook(), Bound::default()).await.unwrap();
        slot.begin();
        assert!(slot.started.elapsed() < STALL);
    }

    #[tokio::test]
    async fn silence_shrinks_the_window_to_one_and_saturates_the_endpoint() {
        let endpoints = Endpoints::new(64);
        for _ in 0..8 {
            endpoints
                .enter(webhook(), Bound::default())
                .await
                .unwrap()
                .finish(Answer::None);
        }
        assert!(endpoints.saturated().is_empty());
        let _slot = endpoints.enter(webhook(), Bound::default()).await.unwrap();
        assert_eq!(endpoints.saturated(), [webhook()]);
    }
}
