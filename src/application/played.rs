//! Expressions as tests of the application play them.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    event_view::EventView,
    ports::{Expression, ExpressionFault, Expressions, Scope},
};

/// Compiles every text but those that end in `&&`.
#[derive(Debug)]
pub(crate) struct PlayedExpressions;

/// Of a kind by the text's first letter.
#[derive(Debug)]
struct Always(Option<&'static str>);

impl Expressions for PlayedExpressions {
    fn compile(&self, text: &str, _: Scope) -> Result<Arc<dyn Expression>, ExpressionFault> {
        if text.ends_with("&&") {
            return Err(ExpressionFault {
                message: "something is missing".to_owned(),
                position: Some((1, text.len() + 1)),
            });
        }
        let kind = match text.bytes().next() {
            Some(b'0'..=b'9') => Some("a number"),
            Some(b'[') => Some("a list"),
            _ => None,
        };
        Ok(Arc::new(Always(kind)))
    }
}

impl Expression for Always {
    fn always(&self) -> Option<&'static str> {
        self.0
    }

    fn is_true(&self, _: &EventView<'_>) -> Result<bool, String> {
        Ok(true)
    }

    fn text(&self, _: &EventView<'_>) -> Result<String, String> {
        Ok("always".to_owned())
    }

    fn json(&self, _: &EventView<'_>) -> Result<Bytes, String> {
        Ok(Bytes::from_static(b"true"))
    }
}
