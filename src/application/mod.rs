//! What the worker does: the use cases, and the ports through which they reach the world.

pub mod breakers;
pub mod client_identity;
pub mod commands;
pub mod dead_letter_box;
pub mod dead_letter_watch;
pub mod dead_letters;
pub mod deliver;
pub mod delivery_events;
pub mod endpoint;
pub mod endpoints;
pub mod event_archive;
pub mod event_view;
pub mod fast_lane;
pub mod filters;
pub mod first_attempt;
pub mod health;
pub mod in_hand;
pub mod intake;
pub mod lanes;
pub mod leased;
pub mod leases;
pub mod normalise;
pub mod parked;
pub mod patience;
#[cfg(test)]
mod played;
pub mod ports;
pub mod recorder;
pub mod registry;
pub mod relay;
pub mod replays;
pub mod rewrap;
pub mod store_clock;
pub mod upkeep;
pub mod wakers;
pub mod webhook_changes;
pub mod webhook_settings;
