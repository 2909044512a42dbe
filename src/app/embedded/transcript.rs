//! What `dev` and `demo` say on standard output.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::app::error::RunError;

/// Writes lines for people. What cannot be written is reported once, in the end.
#[derive(Clone)]
pub(crate) struct Transcript(Arc<Mutex<Inner>>);

struct Inner {
    out: Box<dyn Write + Send>,
    colours: bool,
    fault: Option<io::Error>,
}

/// How a line looks on a terminal.
#[derive(Debug, Clone, Copy)]
enum Look {
    Plain,
    Bold,
    Green,
    Red,
    Faint,
}

impl Look {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "\u{1b}[1m",
            Self::Green => "\u{1b}[32m",
            Self::Red => "\u{1b}[31m",
            Self::Faint => "\u{1b}[2m",
        }
    }
}

impl fmt::Debug for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transcript").finish_non_exhaustive()
    }
}

impl Transcript {
    /// To standard output, with colours where that is a terminal.
    pub(crate) fn stdout() -> Self {
        let out = io::stdout();
        let colours = out.is_terminal();
        Self::new(Box::new(out), colours)
    }

    fn new(out: Box<dyn Write + Send>, colours: bool) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            out,
            colours,
            fault: None,
        })))
    }

    /// A heading, with an empty line before it.
    pub(crate) fn heading(&self, text: &str) {
        self.write(Look::Plain, "");
        self.write(Look::Bold, text);
    }

    /// A line at the margin.
    pub(crate) fn line(&self, text: &str) {
        self.write(Look::Plain, text);
    }

    /// A line of explanation, indented.
    pub(crate) fn say(&self, text: &str) {
        self.write(Look::Plain, &format!("   {text}"));
    }

    /// A line of data, indented further.
    pub(crate) fn show(&self, text: &str) {
        self.write(Look::Faint, &format!("     {text}"));
    }

    /// Something was seen as expected.
    pub(crate) fn seen(&self, text: &str) {
        self.write(Look::Green, &format!("   ✓ {text}"));
    }

    /// Something was not seen.
    pub(crate) fn missed(&self, text: &str) {
        self.write(Look::Red, &format!("   ✗ {text}"));
    }

    /// # Errors
    /// Why not everything could be written; that the reader has left is no fault.
    pub(crate) fn finish(&self) -> Result<(), RunError> {
        let mut inner = self.lock();
        let terminal = inner.colours;
        match inner.fault.take() {
            Some(error) if !is_reader_gone(&error, terminal) => Err(RunError::Embedded(format!(
                "standard output cannot be written: {error}"
            ))),
            _ => Ok(()),
        }
    }

    fn write(&self, look: Look, text: &str) {
        let mut inner = self.lock();
        if inner.fault.is_some() {
            return;
        }
        let code = if inner.colours { look.code() } else { "" };
        let written = if code.is_empty() {
            writeln!(inner.out, "{text}")
        } else {
            writeln!(inner.out, "{code}{text}\u{1b}[0m")
        };
        if let Err(error) = written.and_then(|()| inner.out.flush()) {
            inner.fault = Some(error);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe's reader is gone, or a terminal was closed.
fn is_reader_gone(error: &io::Error, terminal: bool) -> bool {
    const EIO: i32 = 5;
    error.kind() == io::ErrorKind::BrokenPipe || (terminal && error.raw_os_error() == Some(EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut paper = self.0.lock().map_err(|_| io::ErrorKind::Other)?;
            paper.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Torn(io::ErrorKind);

    impl Write for Torn {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn colours_are_for_terminals_alone() {
        for (colours, expected) in [
            (false, "\n1. Begin\n   ✓ seen\n"),
            (
                true,
                "\n\u{1b}[1m1. Begin\u{1b}[0m\n\u{1b}[32m   ✓ seen\u{1b}[0m\n",
            ),
        ] {
            let paper = Paper::default();
            let transcript = Transcript::new(Box::new(paper.clone()), colours);
            transcript.heading("1. Begin");
            transcript.seen("seen");
            assert!(transcript.finish().is_ok());
            assert_eq!(
                String::from_utf8(paper.0.lock().unwrap().clone()).unwrap(),
                expected
            );
        }
    }

    #[test]
    fn a_closed_terminal_is_no_fault_and_a_broken_disk_is_one() {
        let broken = io::Error::from_raw_os_error(5);
        assert!(is_reader_gone(&broken, true));
        assert!(!is_reader_gone(&broken, false));
        assert!(!is_reader_gone(&io::ErrorKind::StorageFull.into(), true));
    }

    #[test]
    fn a_closed_pipe_is_no_fault_and_a_full_disk_is_one() {
        let transcript = Transcript::new(Box::new(Torn(io::ErrorKind::BrokenPipe)), false);
        transcript.line("a");
        transcript.line("b");
        assert!(transcript.finish().is_ok());

        let transcript = Transcript::new(Box::new(Torn(io::ErrorKind::StorageFull)), false);
        transcript.line("a");
        let error = transcript.finish().unwrap_err().to_string();
        assert!(
            error.starts_with("standard output cannot be written"),
            "{error}"
        );
    }
}
