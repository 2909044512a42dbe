//! What the worker does: the use cases, and the ports through which they reach the world.

pub mod commands;
pub mod dead_letters;
pub mod deliver;
pub mod delivery_events;
pub mod endpoint;
pub mod endpoints;
pub mod first_attempt;
pub mod health;
pub mod in_hand;
pub mod intake;
pub mod leases;
pub mod normalise;
pub mod parked;
pub mod patience;
pub mod ports;
pub mod recorder;
pub mod registry;
pub mod relay;
pub mod rewrap;
pub mod upkeep;
pub mod wakers;
pub mod webhook_changes;
pub mod webhook_settings;
