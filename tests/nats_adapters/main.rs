//! The adapters to NATS against a real nats-server, one for each test: `NATS_SERVER_BIN` chooses
//! which one.

mod archive;
mod commands;
mod connection;
mod dead_letters;
mod harness;
mod publisher;
mod service;
mod source;
mod support;
mod topology;
