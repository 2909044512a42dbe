//! What the worker does: the use cases, and the ports through which they reach the world.

pub mod commands;
pub mod dead_letters;
pub mod endpoint;
pub mod health;
pub mod normalise;
pub mod ports;
pub mod registry;
pub mod wakers;
pub mod webhook_settings;
