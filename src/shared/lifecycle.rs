//! Tasks in groups that end one after the other; a crashed task ends the process.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Told when a task ends that should have gone on.
#[derive(Debug, Clone, Default)]
pub struct Alarm(CancellationToken);

impl Alarm {
    /// Waits until a task has crashed.
    pub async fn rung(&self) {
        self.0.cancelled().await;
    }

    /// Whether a task has crashed.
    pub fn is_rung(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Tasks that are told to stop together and awaited together.
#[derive(Debug, Clone)]
pub struct Group {
    name: &'static str,
    stop: CancellationToken,
    tasks: TaskTracker,
    alarm: Alarm,
}

impl Group {
    /// An empty group; its tasks ring this alarm when they crash.
    pub fn new(name: &'static str, alarm: &Alarm) -> Self {
        Self {
            name,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            alarm: alarm.clone(),
        }
    }

    /// Cancelled when the group is to stop.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Runs a loop that ends only when the group is stopping. If it panics or ends before, the alarm
    /// rings and the process ends with a failure.
    pub fn spawn_loop(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guard = self.guard(name);
        self.tasks.spawn(async move {
            task.await;
            guard.finish_loop();
        });
    }

    /// Runs a task that may end at any time; only a panic rings the alarm.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let guard = self.guard(name);
        self.tasks.spawn(async move {
            task.await;
            guard.finish();
        });
    }

    /// Tells the tasks to stop and waits for them; `false` when some did not end in time.
    pub async fn shut_down(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(patience, self.tasks.wait())
            .await
            .is_ok();
        if !ended {
            tracing::warn!(
                group = self.name,
                left = self.tasks.len(),
                "tasks did not end in time"
            );
        }
        ended
    }

    fn guard(&self, task: &'static str) -> CrashGuard {
        CrashGuard {
            task,
            group: self.clone(),
            end: End::Dropped,
        }
    }
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As it should.
    Done,
    /// It returned and should have gone on.
    Early,
    /// It did not return: it panicked, or the runtime went down.
    Dropped,
}

/// Rings the alarm when its task ends early or panics.
struct CrashGuard {
    task: &'static str,
    group: Group,
    end: End,
}

impl CrashGuard {
    fn finish(mut self) {
        self.end = End::Done;
    }

    fn finish_loop(mut self) {
        self.end = if self.group.stop.is_cancelled() {
            End::Done
        } else {
            End::Early
        };
    }
}

impl Drop for CrashGuard {
    fn drop(&mut self) {
        let crashed = match self.end {
            End::Done => false,
            End::Early => true,
            // A runtime that goes down drops the tasks that are left, and nothing is wrong with them.
            End::Dropped => std::thread::panicking(),
        };
        if crashed {
            tracing::error!(
                group = self.group.name,
                task = self.task,
                "a task ended unexpectedly"
            );
            self.group.alarm.0.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_crashed_or_ended_loop_rings_the_alarm_and_a_stopped_one_does_not() {
        let alarm = Alarm::default();
        let group = Group::new("test", &alarm);
        let stopping = group.stopping();
        group.spawn_loop("stops", async move { stopping.cancelled().await });
        group.spawn("ends", async {});
        assert!(group.shut_down(Duration::from_secs(5)).await);
        assert!(!alarm.is_rung());

        let group = Group::new("test", &alarm);
        group.spawn_loop("ends early", async {});
        alarm.rung().await;
    }

    #[tokio::test]
    async fn a_panic_rings_the_alarm_even_while_the_group_is_stopping() {
        for at_once in [true, false] {
            let alarm = Alarm::default();
            let group = Group::new("test", &alarm);
            let stopping = group.stopping();
            group.spawn("panics", async move {
                if !at_once {
                    stopping.cancelled().await;
                }
                panic!("on purpose");
            });
            assert!(group.shut_down(Duration::from_secs(5)).await);
            assert!(alarm.is_rung(), "at once: {at_once}");
        }
    }

    #[test]
    fn a_runtime_that_goes_down_with_tasks_left_rings_nothing() {
        let alarm = Alarm::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let tasks = runtime.block_on(async {
            let group = Group::new("test", &alarm);
            group.spawn("outlives it", std::future::pending());
            group.spawn_loop("outlives it too", std::future::pending());
            tokio::task::yield_now().await;
            group.tasks
        });
        drop(runtime);
        assert!(tasks.is_empty(), "the tasks are gone");
        assert!(!alarm.is_rung());
    }
}
