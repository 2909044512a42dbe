//! Reads an expression: names, functions and nesting are checked here, once, when it is saved.

use crate::application::ports::Scope;

use super::{
    ast::{Comprehension, Fold, Kind, Node, Operator, Variable},
    functions::{Function, Style},
    lexer::{Lexer, SyntaxFault, Token, fault},
    limits::MAX_NESTING,
    number::Decimal,
};

type Read<T> = Result<T, SyntaxFault>;

/// Reads the whole text as one expression.
pub(super) fn parse(source: &str, scope: Scope) -> Read<Node> {
    let mut parser = Parser {
        lexer: Lexer::new(source),
        at: 0,
        token: Token::End,
        scope,
        depth: 0,
        locals: Vec::new(),
    };
    parser.advance()?;
    let node = parser.expression()?;
    match parser.token {
        Token::End => Ok(node),
        _ => Err(parser.unexpected("an operator or the end")),
    }
}

struct Parser<'s> {
    lexer: Lexer<'s>,
    /// The token in hand, and where it begins.
    token: Token<'s>,
    at: usize,
    scope: Scope,
    depth: usize,
    /// The variables of the comprehensions around.
    locals: Vec<&'s str>,
}

/// How strongly an operator binds.
fn binary(token: &Token<'_>) -> Option<(u8, Option<Operator>)> {
    Some(match token {
        Token::Symbol("||" | "&&") => (u8::from(*token == Token::Symbol("&&")), None),
        Token::Symbol("==") => (2, Some(Operator::Equal)),
        Token::Symbol("!=") => (2, Some(Operator::Unequal)),
        Token::Symbol("<") => (2, Some(Operator::Less)),
        Token::Symbol("<=") => (2, Some(Operator::LessOrEqual)),
        Token::Symbol(">") => (2, Some(Operator::Greater)),
        Token::Symbol(">=") => (2, Some(Operator::GreaterOrEqual)),
        Token::Name("in") => (2, Some(Operator::In)),
        Token::Symbol("+") => (3, Some(Operator::Add)),
        Token::Symbol("-") => (3, Some(Operator::Subtract)),
        Token::Symbol("*") => (4, Some(Operator::Multiply)),
        Token::Symbol("/") => (4, Some(Operator::Divide)),
        Token::Symbol("%") => (4, Some(Operator::Remainder)),
        _ => return None,
    })
}

impl<'s> Parser<'s> {
    fn expression(&mut self) -> Read<Node> {
        self.enter()?;
        let condition = self.operation(0)?;
        let at = self.at;
        let node = if self.eat("?")? {
            let yes = self.expression()?;
            self.expect(":")?;
            let no = self.expression()?;
            let depth = condition.depth.max(yes.depth).max(no.depth);
            node(at, Kind::Conditional(Box::new([condition, yes, no])), depth)?
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn operation(&mut self, least: u8) -> Read<Node> {
        let mut left = self.unary()?;
        while let Some((binds, operator)) = binary(&self.token)
            && binds >= least
        {
            let at = self.at;
            self.advance()?;
            let right = self.operation(binds + 1)?;
            let depth = left.depth.max(right.depth);
            let kind = match operator {
                Some(operator) => Kind::Binary(operator, Box::new(left), Box::new(right)),
                // A chain of them is one node, however long it is.
                None => match (left.kind, binds) {
                    (Kind::And(mut all), 1) => {
                        all.push(right);
                        left = Node {
                            at: left.at,
                            kind: Kind::And(all),
                            depth: left.depth.max(depth),
                        };
                        continue;
                    }
                    (Kind::Or(mut all), 0) => {
                        all.push(right);
                        left = Node {
                            at: left.at,
                            kind: Kind::Or(all),
                            depth: left.depth.max(depth),
                        };
                        continue;
                    }
                    (kind, binds) => {
                        let left = Node { kind, ..left };
                        if binds == 1 {
                            Kind::And(vec![left, right])
                        } else {
                            Kind::Or(vec![left, right])
                        }
                    }
                },
            };
            left = node(at, kind, depth)?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Read<Node> {
        let at = self.at;
        if self.eat("!")? {
            let inner = self.nested_unary()?;
            let depth = inner.depth;
            return node(at, Kind::Not(Box::new(inner)), depth);
        }
        if self.eat("-")? {
            if let Token::Number(text) = self.token {
                let text = format!("-{text}");
                self.advance()?;
                let number = number(at, &text)?;
                return self.postfix(number);
            }
            let inner = self.nested_unary()?;
            let depth = inner.depth;
            return node(at, Kind::Negate(Box::new(inner)), depth);
        }
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn nested_unary(&mut self) -> Read<Node> {
        self.enter()?;
        let inner = self.unary()?;
        self.depth -= 1;
        Ok(inner)
    }

    fn postfix(&mut self, mut left: Node) -> Read<Node> {
        loop {
            let at = self.at;
            if self.eat("[")? {
                let index = self.expression()?;
                self.expect("]")?;
                let depth = left.depth.max(index.depth);
                left = node(at, Kind::Index(Box::new(left), Box::new(index)), depth)?;
            } else if self.eat(".")? {
                let at = self.at;
                let (Token::Name(name) | Token::Quoted(name)) = self.token else {
                    return Err(self.unexpected("the name of a field"));
                };
                let is_call_name = matches!(self.token, Token::Name(_));
                self.advance()?;
                left = if is_call_name && self.eat("(")? {
                    self.member(at, left, name)?
                } else {
                    let depth = left.depth;
                    node(at, Kind::Field(Box::new(left), name.into()), depth)?
                };
            } else {
                return Ok(left);
            }
        }
    }

    fn primary(&mut self) -> Read<Node> {
        let at = self.at;
        let kind = match std::mem::replace(&mut self.token, Token::End) {
            Token::Number(text) => number(at, text)?.kind,
            Token::Text(text) => Kind::Text(text.into()),
            Token::Bytes(bytes) => Kind::Bytes(bytes.into()),
            Token::Name("null") => Kind::Null,
            Token::Name("true") => Kind::Bool(true),
            Token::Name("false") => Kind::Bool(false),
            Token::Name(name) if name != "in" => {
                self.advance()?;
                return if self.eat("(")? {
                    self.global(at, name)
                } else {
                    self.variable(at, name)
                };
            }
            Token::Symbol("(") => {
                self.advance()?;
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => {
                self.advance()?;
                let items = self.list("]", Self::expression)?;
                let depth = deepest(&items);
                return node(at, Kind::List(items), depth);
            }
            Token::Symbol("{") => {
                self.advance()?;
                return self.map(at);
            }
            other => {
                self.token = other;
                return Err(self.unexpected("a value"));
            }
        };
        self.advance()?;
        node(at, kind, 0)
    }

    fn map(&mut self, at: usize) -> Read<Node> {
        let entries = self.list("}", |parser| {
            let key = parser.expression()?;
            parser.expect(":")?;
            Ok((key, parser.expression()?))
        })?;
        let depths = entries
            .iter()
            .map(|(key, value)| key.depth.max(value.depth));
        let depth = depths.max().unwrap_or(0);
        node(at, Kind::Map(entries), depth)
    }

    /// Entries up to the end symbol; a comma after the last one is allowed.
    fn list<T>(
        &mut self,
        end: &'static str,
        mut entry: impl FnMut(&mut Self) -> Read<T>,
    ) -> Read<Vec<T>> {
        let mut entries = Vec::new();
        while !self.eat(end)? {
            entries.push(entry(self)?);
            if !self.eat(",")? {
                self.expect(end)?;
                break;
            }
        }
        Ok(entries)
    }

    fn variable(&self, at: usize, name: &'s str) -> Read<Node> {
        if let Some(place) = self.locals.iter().rposition(|local| *local == name) {
            return node(at, Kind::Local(place), 0);
        }
        let known =
            |variable: Variable| variable != Variable::Response || self.scope == Scope::Answer;
        let known = || {
            Variable::ALL
                .into_iter()
                .filter(|(_, variable)| known(*variable))
        };
        if let Some((_, variable)) = known().find(|(known, _)| *known == name) {
            return node(at, Kind::Variable(variable), 0);
        }
        let names: Vec<_> = known().map(|(name, _)| name).collect();
        let message = format!(
            "there is no variable {name:?}; there are: {}",
            names.join(", ")
        );
        Err(fault(at, message))
    }

    /// `f(…)`, after the bracket.
    fn global(&mut self, at: usize, name: &'s str) -> Read<Node> {
        if name == "has" {
            let tested = self.expression()?;
            self.expect(")")?;
            let depth = tested.depth.saturating_sub(1);
            return match tested.kind {
                Kind::Field(of, name) => node(at, Kind::Has(of, name), depth),
                _ => Err(fault(at, "has(…) asks for a field: has(data.field)")),
            };
        }
        let arguments = self.list(")", Self::expression)?;
        call(at, name, Style::Global, arguments)
    }

    /// `left.f(…)`, after the bracket.
    fn member(&mut self, at: usize, left: Node, name: &'s str) -> Read<Node> {
        let fold = match name {
            "all" => Fold::All,
            "exists" => Fold::Exists,
            "exists_one" | "existsOne" => Fold::ExistsOne,
            "filter" => Fold::Filter,
            "map" => Fold::Map,
            _ => {
                let mut arguments = vec![left];
                arguments.extend(self.list(")", Self::expression)?);
                return call(at, name, Style::Member, arguments);
            }
        };
        let Token::Name(local) = self.token else {
            return Err(self.unexpected("the name of a variable"));
        };
        self.advance()?;
        self.expect(",")?;
        self.locals.push(local);
        let first = self.expression()?;
        let second = if fold == Fold::Map && self.eat(",")? {
            Some(self.expression()?)
        } else {
            None
        };
        self.locals.pop();
        self.expect(")")?;
        let (condition, result) = match (fold, second) {
            (Fold::Map, Some(second)) => (Some(first), Some(second)),
            (Fold::Map, None) => (None, Some(first)),
            (_, second) => (Some(first), second),
        };
        let depths = [Some(&left), condition.as_ref(), result.as_ref()];
        let depth = depths.into_iter().flatten().map(|node| node.depth).max();
        let comprehension = Comprehension {
            kind: fold,
            over: left,
            condition,
            result,
        };
        let kind = Kind::Comprehension(Box::new(comprehension));
        node(at, kind, depth.unwrap_or(0))
    }

    fn enter(&mut self) -> Read<()> {
        self.depth += 1;
        if self.depth > MAX_NESTING {
            return Err(too_deep(self.at));
        }
        Ok(())
    }

    fn advance(&mut self) -> Read<()> {
        (self.at, self.token) = self.lexer.next()?;
        Ok(())
    }

    fn eat(&mut self, symbol: &'static str) -> Read<bool> {
        let is_there = self.token == Token::Symbol(symbol);
        if is_there {
            self.advance()?;
        }
        Ok(is_there)
    }

    fn expect(&mut self, symbol: &'static str) -> Read<()> {
        if self.eat(symbol)? {
            Ok(())
        } else {
            Err(self.unexpected(&format!("{symbol:?}")))
        }
    }

    fn unexpected(&self, wanted: &str) -> SyntaxFault {
        let found = match &self.token {
            Token::End => "the end".to_owned(),
            Token::Symbol(symbol) => format!("{symbol:?}"),
            Token::Name(name) => format!("the name {name:?}"),
            Token::Quoted(_) => "a name in backticks".to_owned(),
            Token::Number(_) => "a number".to_owned(),
            Token::Text(_) | Token::Bytes(_) => "a text".to_owned(),
        };
        fault(self.at, format!("expected {wanted}, found {found}"))
    }
}

fn call(at: usize, name: &str, style: Style, arguments: Vec<Node>) -> Read<Node> {
    let found = Function::find(name, style);
    let (function, takes) = found.ok_or_else(|| {
        fault(
            at,
            format!("there is no function {name:?} that is called so"),
        )
    })?;
    let given = arguments.len() - usize::from(style == Style::Member);
    if given != takes {
        let message = format!("{name} takes {takes} arguments, not {given}");
        return Err(fault(at, message));
    }
    let depth = deepest(&arguments);
    node(at, Kind::Call(function, arguments), depth)
}

fn deepest(nodes: &[Node]) -> usize {
    nodes.iter().map(|node| node.depth).max().unwrap_or(0)
}

/// A node over others that are so deep.
fn node(at: usize, kind: Kind, depth: usize) -> Read<Node> {
    let depth = depth + 1;
    if depth > MAX_NESTING {
        return Err(too_deep(at));
    }
    Ok(Node { at, kind, depth })
}

fn too_deep(at: usize) -> SyntaxFault {
    fault(at, format!("nests deeper than {MAX_NESTING}"))
}

/// A number literal: whole ones are integers, others decimals.
fn number(at: usize, text: &str) -> Read<Node> {
    let unsigned = text.trim_start_matches('-');
    let hex = unsigned.get(..2).filter(|p| p.eq_ignore_ascii_case("0x"));
    let digits = text.trim_end_matches(['u', 'U']);
    let kind = if hex.is_some() {
        let digits = digits.trim_start_matches('-').get(2..).unwrap_or_default();
        let sign = if text.starts_with('-') { "-" } else { "" };
        let read = i64::from_str_radix(&format!("{sign}{digits}"), 16);
        read.ok().map(Kind::Int)
    } else if digits.contains(['.', 'e', 'E']) {
        // `.5` is a number of CEL, if none of JSON.
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        match Decimal::parse(text) {
            Some(number) if is_json || text.starts_with('.') => Some(Kind::Decimal(number)),
            None if is_json => Some(Kind::Written(text.into())),
            _ => None,
        }
    } else {
        digits.parse().ok().map(Kind::Int)
    };
    match kind {
        Some(kind) => node(at, kind, 0),
        None => Err(fault(
            at,
            "a number that cannot be read, or has too many digits",
        )),
    }
}
