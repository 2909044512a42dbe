//! Expressions in CEL (the Common Expression Language), read and evaluated here: with a budget, exact
//! decimals, and numbers that keep their written form (ADR 0008 says why no crate does it).

mod always;
mod ast;
mod eval;
mod functions;
mod lexer;
mod limits;
mod number;
mod operators;
mod output;
mod parser;
#[cfg(test)]
mod tests;
mod value;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;

use crate::application::{
    event_view::EventView,
    ports::{Expression, ExpressionFault, Expressions, Scope},
};

use ast::Node;
use eval::{Evaluation, Fault};
use value::Value;

pub use limits::{MAX_BUILT, MAX_EXPRESSION, MAX_NESTING, MAX_RESULT, MAX_STEPS, MAX_TEXT};

/// Compiles expressions.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cel;

impl Expressions for Cel {
    fn compile(&self, text: &str, scope: Scope) -> Result<Arc<dyn Expression>, ExpressionFault> {
        if text.len() > MAX_EXPRESSION {
            return Err(ExpressionFault {
                message: format!("must have at most {MAX_EXPRESSION} bytes"),
                position: None,
            });
        }
        let read =
            unharmed(|| parser::parse(text, scope).map_err(|fault| (fault.at, fault.message)));
        let read = read.unwrap_or_else(|| Err((0, BROKEN.to_owned())));
        match read {
            Ok(root) => Ok(Arc::new(Compiled {
                text: text.into(),
                root,
            })),
            Err((at, message)) => Err(ExpressionFault {
                message,
                position: Some(position(text, at)),
            }),
        }
    }
}

/// What is said of a panic, which is a fault of ours.
const BROKEN: &str = "the expression cannot be evaluated: an internal error";

struct Compiled {
    text: Box<str>,
    root: Node,
}

impl Compiled {
    /// Evaluates, and makes of the value what is wanted. A panic is a fault of this evaluation alone.
    fn evaluate<T>(
        &self,
        view: &EventView<'_>,
        want: impl for<'v> FnOnce(&Value<'v>) -> Result<T, String>,
    ) -> Result<T, String> {
        let evaluate = || {
            let mut evaluation = Evaluation::new(view);
            let value = evaluation.value(&self.root)?;
            want(&value).map_err(|message| Fault::new(0, message))
        };
        let outcome: Option<Result<T, Fault>> = unharmed(evaluate);
        let outcome = outcome.unwrap_or_else(|| Err(Fault::new(0, BROKEN)));
        outcome.map_err(|fault| {
            let (line, column) = position(&self.text, fault.at);
            format!("{} (line {line}, column {column})", fault.message)
        })
    }
}

impl Expression for Compiled {
    fn always(&self) -> Option<&'static str> {
        unharmed(|| always::always(&self.root)).flatten()
    }

    fn is_true(&self, view: &EventView<'_>) -> Result<bool, String> {
        self.evaluate(view, |value| match value {
            Value::Bool(value) => Ok(*value),
            other => Err(format!("must be true or false, but is {}", other.kind())),
        })
    }

    fn text(&self, view: &EventView<'_>) -> Result<String, String> {
        self.evaluate(view, |value| {
            let is_key = value.is_number() || matches!(value, Value::Text(_) | Value::Bool(_));
            let text = functions::as_text(value).filter(|_| is_key);
            let text = text.ok_or_else(|| {
                format!(
                    "must be a text, a number or a boolean, but is {}",
                    value.kind()
                )
            })?;
            if text.len() > MAX_TEXT {
                return Err(format!("must have at most {MAX_TEXT} bytes"));
            }
            Ok(text)
        })
    }

    fn json(&self, view: &EventView<'_>) -> Result<Bytes, String> {
        self.evaluate(view, |value| output::json(value).map(Bytes::from))
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled")
            .field("text", &self.text)
            .finish_non_exhaustive()
    }
}

/// `None` when it panicked; nothing that it worked on is used afterwards.
fn unharmed<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

/// Line and column (in characters), each from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (line, column)
}
