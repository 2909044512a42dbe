//! Promises of this adapter alone.
