//! What an expression yields whatever the event, as far as its text alone tells.

use super::{
    ast::{Kind, Node, Operator},
    functions::Function,
};

const BOOLEAN: &str = "a boolean";
const NUMBER: &str = "a number";
const TEXT: &str = "a text";
const LIST: &str = "a list";

/// The kind of the value, as [`kind`](super::value::Value::kind) names it; `None` where it depends on the
/// event.
pub(super) fn always(node: &Node) -> Option<&'static str> {
    Some(match &node.kind {
        Kind::Null => "null",
        Kind::Bool(_) | Kind::Has(..) | Kind::Not(_) | Kind::And(_) | Kind::Or(_) => BOOLEAN,
        Kind::Int(_) | Kind::Decimal(_) | Kind::Written(_) => NUMBER,
        Kind::Text(_) => TEXT,
        Kind::Bytes(_) => "bytes",
        Kind::List(_) => LIST,
        Kind::Map(_) => "a map",
        Kind::Binary(operator, ..) => match operator {
            Operator::Equal
            | Operator::Unequal
            | Operator::Less
            | Operator::LessOrEqual
            | Operator::Greater
            | Operator::GreaterOrEqual
            | Operator::In => BOOLEAN,
            Operator::Add
            | Operator::Subtract
            | Operator::Multiply
            | Operator::Divide
            | Operator::Remainder => return None,
        },
        Kind::Conditional(parts) => {
            let [_, yes, no] = &**parts;
            return always(yes).filter(|kind| always(no) == Some(kind));
        }
        Kind::Call(function, _) => match function {
            Function::Size | Function::Int | Function::Decimal => NUMBER,
            Function::Bool | Function::Contains | Function::StartsWith | Function::EndsWith => {
                BOOLEAN
            }
            Function::String
            | Function::LowerAscii
            | Function::UpperAscii
            | Function::Trim
            | Function::Join
            | Function::Replace => TEXT,
            Function::Split => LIST,
            Function::Same | Function::Timestamp | Function::Duration | Function::Part(_) => {
                return None;
            }
        },
        Kind::Variable(_)
        | Kind::Local(_)
        | Kind::Field(..)
        | Kind::Index(..)
        | Kind::Negate(_)
        | Kind::Comprehension(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use crate::{
        application::ports::{Expressions as _, Scope},
        infrastructure::expression::Cel,
    };

    #[test]
    fn the_kind_is_told_where_the_text_alone_says_it() {
        for (text, kind) in [
            ("1", "a number"),
            ("size(data.items)", "a number"),
            ("int(data.n)", "a number"),
            ("'true'", "a text"),
            ("data.a ? 'b' : data.c.trim()", "a text"),
            ("true", "a boolean"),
            ("!data.a", "a boolean"),
            ("data.a && data.b", "a boolean"),
            ("data.a in [1]", "a boolean"),
            ("data.n > 1", "a boolean"),
            ("has(data.a)", "a boolean"),
            ("type.startsWith('a')", "a boolean"),
            ("[data.a]", "a list"),
            ("{'a': data.b}", "a map"),
            ("b'x'", "bytes"),
            ("null", "null"),
        ] {
            let compiled = Cel.compile(text, Scope::Event).unwrap();
            assert_eq!(compiled.always(), Some(kind), "{text}");
        }
    }

    #[test]
    fn what_depends_on_the_event_is_left_to_it() {
        for text in [
            "data.a",
            "data.l[0]",
            "data.a + 'b'",
            "-data.n",
            "data.a ? 1 : 'b'",
            "data.a ? true : data.b",
            "data.l.exists(x, x > 1)",
            "data.l.map(x, x)",
            "time",
        ] {
            let compiled = Cel.compile(text, Scope::Event).unwrap();
            assert_eq!(compiled.always(), None, "{text}");
        }
    }
}
