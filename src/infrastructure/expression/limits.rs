//! What one expression may take. Nothing that is saved can hold a worker up for longer than these allow.

/// The longest text of an expression, in bytes: 4 KiB.
pub const MAX_EXPRESSION: usize = 4096;
/// How deep an expression may nest; each bracket, operator, field and function is a level.
pub const MAX_NESTING: usize = 64;
/// How many steps one evaluation may take. A step is a node that is evaluated, an entry that is looked
/// at, or 64 bytes of text that are searched; 50,000 of them take a few milliseconds.
pub const MAX_STEPS: usize = 50_000;
/// How many bytes one evaluation may build: 4 MiB of texts, lists and maps.
pub const MAX_BUILT: usize = 4 * 1024 * 1024;
/// The largest result of a transform, in bytes of JSON: 1 MiB.
pub const MAX_RESULT: usize = 1024 * 1024;
/// The longest text that an expression answers as an ordering key, in bytes.
pub const MAX_TEXT: usize = 1024;
