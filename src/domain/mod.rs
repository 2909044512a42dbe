//! What the worker is about: entities, values, events, policies and the store's interfaces.
//! Nothing here does I/O, reads a clock or draws a random number.

pub mod entities;
pub mod events;
pub mod interfaces;
pub mod policies;
pub mod values;
