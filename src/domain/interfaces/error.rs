//! What can go wrong in a store.

/// A failed operation of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, is shutting down, is locked, or gave up a transaction
    /// (deadlock, serialisation): trying again may help.
    #[error("the database is not available while it should {operation}")]
    Unavailable {
        /// What was to be done, as "read the registry".
        operation: &'static str,
        /// The driver's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A row cannot be understood.
    #[error("a row of {table} is broken: column {column} of {id}: {problem}")]
    BadRow {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's key.
        id: String,
        /// What is wrong with it; never its content.
        problem: String,
    },
    /// Another writer changed the row meanwhile.
    #[error("the row changed meanwhile")]
    Conflict,
    /// Anything else: a defect of ours or of the schema.
    #[error("the database refused to {operation}")]
    Failed {
        /// What was to be done.
        operation: &'static str,
        /// The driver's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether trying the same again may help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Conflict)
    }

    /// Whether it will not go away by itself.
    pub fn is_final(&self) -> bool {
        !self.is_retryable()
    }
}
