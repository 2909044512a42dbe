//! What every layer may use and what names no layer.

pub mod config;
pub mod cow_map;
pub mod duration;
pub mod error_chain;
pub mod lifecycle;
pub mod metrics;
pub mod naming;
pub mod visible;
