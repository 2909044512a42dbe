//! The worker as a whole: the real binary beside a real nats-server, a real database and a real
//! receiver. Every test has its own servers or its own database and subjects.

mod attack;
mod authentication;
mod bad_days;
mod batch_ids;
mod batch_limits;
mod batches;
mod breaker;
mod clocks;
mod commands;
mod database_file;
mod dead_letters;
mod deliveries;
mod demo;
mod explain;
mod expressions;
mod intake;
mod limits;
mod oauth;
mod operations;
mod ordering;
mod poison;
mod replays;
mod replays_in_turn;
mod responses;
mod servers;
mod signatures;
mod stopping;
mod support;
mod traces;
mod turned_off;
mod unreadable;
