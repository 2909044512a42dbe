//! Every promise of `src/domain/interfaces`, held against both databases: a promise is one function,
//! and [`both!`] makes a test of it for each of them.

#[path = "../support/mod.rs"]
mod support;

#[macro_use]
mod harness;
mod samples;

mod bad_rows;
mod batch_choice;
mod batch_limits;
mod batches;
mod blockers;
mod claims;
mod deliveries;
mod endpoints;
mod integrations;
mod lane_races;
mod lanes;
mod leases;
mod lists;
mod outages;
mod outbox;
mod races;
mod rate_limits;
mod registry;
mod replay_pages;
mod replays;
mod replies;
mod sealed;
mod silence;
mod tokens;
mod turns;
mod units_of_work;
mod upkeep;
mod webhooks;
