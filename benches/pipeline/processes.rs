//! What the processes cost, as Linux counts it.

use std::fs;

use crate::database::Database;

/// Linux counts CPU time in hundredths of a second on every platform that matters here.
const SECONDS_PER_TICK: f64 = 0.01;

/// A process in `/proc`.
#[derive(Debug)]
struct Stat {
    id: u32,
    name: String,
    parent: u32,
    /// User and system time of its own, and of children that have ended, in ticks.
    own: u64,
    ended_children: u64,
}

/// Seconds of user and system time so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    worker: f64,
    nats: f64,
    database: f64,
    sink: f64,
    bench: f64,
}

impl Cpu {
    /// Of the processes that this one has started, and of the PostgreSQL with this postmaster.
    pub(crate) fn now(postmaster: Option<u32>) -> Self {
        let this = std::process::id();
        let mut cpu = Self::default();
        for process in all() {
            let own = seconds(process.own);
            if process.id == this {
                cpu.bench += own;
            } else if Some(process.id) == postmaster {
                cpu.database += own + seconds(process.ended_children);
            } else if Some(process.parent) == postmaster {
                cpu.database += own;
            } else if process.parent == this {
                match Role::of(&process.name) {
                    Role::Worker => cpu.worker += own,
                    Role::Nats => cpu.nats += own,
                    Role::Sink => cpu.sink += own,
                }
            }
        }
        cpu
    }

    /// What was used between two moments, in microseconds for each delivery.
    pub(crate) fn per_delivery(self, since: Self, deliveries: u64) -> String {
        let each = |now: f64, then: f64| (now - then) * 1e6 / crate::world::float(deliveries);
        format!(
            "CPU per delivery: worker {:.1} µs, nats-server {:.1}, PostgreSQL {:.1}, sink {:.1}, bench {:.1}",
            each(self.worker, since.worker),
            each(self.nats, since.nats),
            each(self.database, since.database),
            each(self.sink, since.sink),
            each(self.bench, since.bench),
        )
    }
}

enum Role {
    Worker,
    Nats,
    Sink,
}

impl Role {
    /// By the name that Linux keeps, 15 bytes of the program's.
    fn of(name: &str) -> Self {
        if name.starts_with("integration") {
            Self::Worker
        } else if name.starts_with("nats") {
            Self::Nats
        } else {
            Self::Sink
        }
    }
}

/// Resident memory of the worker that runs, and the most that it ever was, in MiB.
pub(crate) fn worker_memory() -> (f64, f64) {
    let this = std::process::id();
    let worker = all()
        .into_iter()
        .find(|one| one.parent == this && matches!(Role::of(&one.name), Role::Worker))
        .expect("a worker runs");
    let status = fs::read_to_string(format!("/proc/{}/status", worker.id)).expect("it runs");
    let mib = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<f64>().ok())
            .map_or(f64::NAN, |kib| kib / 1024.0)
    };
    (mib("VmRSS:"), mib("VmHWM:"))
}

/// The process that all others of this PostgreSQL are children of.
pub(crate) async fn postmaster_of(database: &Database) -> Option<u32> {
    let backend = database.number("SELECT pg_backend_pid()::bigint").await;
    stat(u32::try_from(backend).ok()?).map(|process| process.parent)
}

fn all() -> Vec<Stat> {
    let folders = fs::read_dir("/proc").expect("Linux").flatten();
    folders
        .filter_map(|folder| stat(folder.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// `None` where the process is gone.
fn stat(id: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name is in parentheses and may hold anything.
    let (start, rest) = text.rsplit_once(") ")?;
    let (_, name) = start.split_once(" (")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |position: usize| fields.get(position)?.parse::<u64>().ok();
    Some(Stat {
        id,
        name: name.to_owned(),
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        ended_children: number(13)? + number(14)?,
    })
}

fn seconds(ticks: u64) -> f64 {
    crate::world::float(ticks) * SECONDS_PER_TICK
}
