//! The figures of the README: a real worker beside a real nats-server, a real database and a sink,
//! all on this machine. `make bench` runs them in a release build; see `docs/performance.md`.
//!
//! Nothing is asserted: a bar that is missed is told, and the exit code is 0 unless a scenario
//! could not run.

mod database;
mod matching;
mod memory;
mod obstacles;
mod ordered;
mod processes;
mod raw;
mod registry;
mod replaying;
mod report;
mod retention;
mod sharing;
mod sink;
#[path = "../../tests/it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the figures need a part of it"
)]
mod support;
mod throughput;
mod world;

use std::{panic::AssertUnwindSafe, process::ExitCode};

use futures_util::{FutureExt as _, future::LocalBoxFuture};
use report::{Report, progress};

/// As the worker has it, so that the raw loop has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How much work the scenarios do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    quick: bool,
}

impl Effort {
    /// `full`, or `quick` with `--quick`.
    pub(crate) fn choose<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

const SCENARIOS: [&str; 13] = [
    "one-webhook",
    "ten-webhooks",
    "latency",
    "memory",
    "dead-endpoint",
    "parked",
    "sqlite",
    "matching",
    "ordered",
    "sharing",
    "replaying",
    "registry",
    "retention",
];
/// Those that take long, and run when they are asked for.
const LONG: [&str; 2] = ["registry", "retention"];

fn scenario<'a>(name: &str, effort: Effort, report: &'a mut Report) -> LocalBoxFuture<'a, ()> {
    match name {
        "one-webhook" => throughput::one_webhook(effort, report).boxed_local(),
        "ten-webhooks" => throughput::ten_webhooks(effort, report).boxed_local(),
        "latency" => throughput::latency(effort, report).boxed_local(),
        "memory" => memory::memory(effort, report).boxed_local(),
        "dead-endpoint" => obstacles::dead_endpoint(effort, report).boxed_local(),
        "parked" => obstacles::parked(effort, report).boxed_local(),
        "sqlite" => throughput::sqlite(effort, report).boxed_local(),
        "ordered" => ordered::ordered(effort, report).boxed_local(),
        "sharing" => sharing::sharing(effort, report).boxed_local(),
        "replaying" => replaying::replaying(effort, report).boxed_local(),
        "registry" => registry::registry(effort, report).boxed_local(),
        "retention" => retention::retention(effort, report).boxed_local(),
        _ => async move { matching::matching(effort, report) }.boxed_local(),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().map(String::as_str) == Some(sink::ARGUMENT) {
        return sink::serve();
    }
    match chosen(&arguments) {
        Ok((names, effort)) => run(&names, effort),
        Err(complaint) => {
            progress(&complaint);
            ExitCode::from(2)
        }
    }
}

/// The scenarios to run, in the order of the table.
fn chosen(arguments: &[String]) -> Result<(Vec<&'static str>, Effort), String> {
    let mut effort = Effort { quick: false };
    let mut wanted = Vec::new();
    for argument in arguments {
        match argument.as_str() {
            // Cargo's own.
            "--bench" => {}
            "--quick" => effort.quick = true,
            name if SCENARIOS.contains(&name) => wanted.push(name),
            other => {
                let known = SCENARIOS.join(" ");
                return Err(format!("`{other}` is no scenario: [--quick] {known}"));
            }
        }
    }
    let is_chosen = |name: &&str| {
        if wanted.is_empty() {
            !LONG.contains(name)
        } else {
            wanted.contains(name)
        }
    };
    let names = SCENARIOS.into_iter().filter(is_chosen);
    Ok((names.collect(), effort))
}

fn run(names: &[&'static str], effort: Effort) -> ExitCode {
    // The raw loop needs it; the worker brings its own.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        progress("TLS was set up before");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            progress(&format!("no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report::new(effort.quick);
    let mut failed = Vec::new();
    for name in names {
        progress(&format!("== {name}"));
        let running = AssertUnwindSafe(scenario(name, effort, &mut report)).catch_unwind();
        if runtime.block_on(running).is_err() {
            report.could_not_run(name);
            failed.push(*name);
        }
    }
    report.print();
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        progress(&format!("could not run: {}", failed.join(" ")));
        ExitCode::FAILURE
    }
}
