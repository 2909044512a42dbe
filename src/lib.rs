//! The integration worker of VALEO NeuroERP: it takes business events from NATS JetStream, delivers
//! them as signed webhooks, and publishes what became of them.
//!
//! The layers are those of Clean Architecture: [`domain`] knows nobody, [`application`] knows the
//! domain, [`infrastructure`] and [`presentation`] are the outbound and inbound adapters, and
//! [`app`] is the one place that sees them all. `docs/ARCHITECTURE.md` is the map.

pub mod app;
pub mod application;
pub mod domain;
pub mod infrastructure;
pub mod presentation;
pub mod shared;
