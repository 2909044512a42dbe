//! The program; see `integration-worker --help`.

use std::process::ExitCode;

use clap::Parser as _;
use integration_worker::{app, presentation::cli::Cli};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    app::main(&Cli::parse())
}
