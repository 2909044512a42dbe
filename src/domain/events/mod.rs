//! Events: what the ERP tells us ([`BusinessEvent`]), and what we tell the ERP ([`DomainEvent`]).

mod business;
mod domain_event;

pub use business::{BusinessEvent, EventMeta, MadeBy, Payload};
pub use domain_event::{Change, Context, DomainEvent, IntegrationChange, Response, WebhookChange};
