//! Requests to endpoints: the one way out of the worker.

mod client;
mod connector;
mod failure;
mod resolver;
mod retry_after;
mod tls;

pub use client::{EndpointClient, EndpointClientError};
