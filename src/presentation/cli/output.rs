//! Where a command prints.

use std::{
    fmt::{self, Display},
    io::{self, ErrorKind, Write},
};

/// Results go to standard output, everything else to standard error.
pub struct Output<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// The first fault of standard output.
    fault: Option<io::Error>,
}

impl<'a> Output<'a> {
    /// Prints to these two.
    pub fn new(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self {
            out,
            err,
            fault: None,
        }
    }

    /// Prints a line of the result.
    pub fn line(&mut self, text: impl Display) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Prints a part of the result as it is.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if self.fault.is_none() {
            let written = self.out.write_all(bytes).and_then(|()| self.out.flush());
            self.fault = written.err();
        }
    }

    /// Prints a line about the command.
    pub fn remark(&mut self, text: impl Display) {
        // Nobody is left to be told that standard error is closed.
        drop(writeln!(self.err, "{text}"));
    }

    /// Whether no more of the result can be printed.
    pub fn is_closed(&self) -> bool {
        self.fault.is_some()
    }

    /// Why a part of the result was lost, as on a full disk. That nobody reads on, as after `| head`, is
    /// no loss.
    pub fn loss(&self) -> Option<&io::Error> {
        let fault = self.fault.as_ref();
        fault.filter(|fault| fault.kind() != ErrorKind::BrokenPipe)
    }
}

impl fmt::Debug for Output<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}
