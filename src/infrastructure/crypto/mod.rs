//! Encryption of stored secrets: AES-256-GCM under a ring of keys.

mod cipher;
mod key_ring;

pub use cipher::RingCipher;
pub use key_ring::{KeyRing, generate_key_line};
