//! Where a command prints.

use std::{
    fmt::{self, Display},
    io::Write,
};

/// Results go to standard output, everything else to standard error.
pub struct Output<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    closed: bool,
}

impl<'a> Output<'a> {
    /// Prints to these two.
    pub fn new(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self {
            out,
            err,
            closed: false,
        }
    }

    /// Prints a line of the result.
    pub fn line(&mut self, text: impl Display) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Prints a part of the result as it is.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let written = self.out.write_all(bytes).and_then(|()| self.out.flush());
        self.closed |= written.is_err();
    }

    /// Prints a line about the command.
    pub fn remark(&mut self, text: impl Display) {
        // Nobody is left to be told that standard error is closed.
        drop(writeln!(self.err, "{text}"));
    }

    /// Whether nobody reads the result any more, as after `| head`.
    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
