//! Evaluates an expression over an event, within a budget of steps and of bytes.

use std::{cmp::Ordering, rc::Rc};

use crate::{application::event_view::EventView, domain::values::TraceContext};

use super::{
    ast::{Comprehension, Fold, Kind, Node, Operator, Variable},
    limits::{MAX_BUILT, MAX_STEPS},
    value::{Text, Value},
};

/// Why there is no value, and where in the expression. It names kinds and fields, never values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) message: String,
    /// Whether a limit was met: nothing goes on then.
    is_limit: bool,
}

impl Fault {
    pub(super) fn new(at: usize, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
            is_limit: false,
        }
    }

    pub(super) fn limit(at: usize, message: String) -> Self {
        Self {
            at,
            message,
            is_limit: true,
        }
    }
}

/// What is left of what an evaluation may take.
#[derive(Debug)]
pub(super) struct Budget {
    steps: usize,
    bytes: usize,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            steps: MAX_STEPS,
            bytes: MAX_BUILT,
        }
    }

    /// Takes one step, and so many more.
    pub(super) fn step(&mut self, at: usize, more: usize) -> Result<(), Fault> {
        let left = self.steps.checked_sub(more.saturating_add(1));
        self.steps =
            left.ok_or_else(|| Fault::limit(at, format!("takes more than {MAX_STEPS} steps")))?;
        Ok(())
    }

    /// Takes so many bytes.
    pub(super) fn build(&mut self, at: usize, bytes: usize) -> Result<(), Fault> {
        let left = self.bytes.checked_sub(bytes);
        self.bytes =
            left.ok_or_else(|| Fault::limit(at, format!("builds more than {MAX_BUILT} bytes")))?;
        Ok(())
    }

    /// Takes what an entry of a list or map needs, and so many bytes of text.
    pub(super) fn entry(&mut self, at: usize, bytes: usize) -> Result<(), Fault> {
        self.build(at, bytes.saturating_add(size_of::<Value<'_>>()))
    }
}

type Evaluated<'v> = Result<Value<'v>, Fault>;

/// One evaluation.
pub(super) struct Evaluation<'v, 'e> {
    view: &'v EventView<'e>,
    locals: Vec<Value<'v>>,
    pub(super) budget: Budget,
}

impl<'v, 'e: 'v> Evaluation<'v, 'e> {
    pub(super) fn new(view: &'v EventView<'e>) -> Self {
        Self {
            view,
            locals: Vec::new(),
            budget: Budget::new(),
        }
    }

    pub(super) fn value(&mut self, node: &'v Node) -> Evaluated<'v> {
        let at = node.at;
        self.budget.step(at, 0)?;
        match &node.kind {
            Kind::Null => Ok(Value::Null),
            Kind::Bool(value) => Ok(Value::Bool(*value)),
            Kind::Int(number) => Ok(Value::Int(*number)),
            Kind::Decimal(number) => Ok(Value::Decimal(*number)),
            Kind::Written(number) => Ok(Value::Written(number)),
            Kind::Text(text) => Ok(Value::borrowed(text)),
            Kind::Bytes(bytes) => Ok(Value::Bytes(bytes)),
            Kind::Variable(variable) => self.variable(at, *variable),
            Kind::Local(place) => Ok(self.locals.get(*place).cloned().unwrap_or(Value::Null)),
            Kind::Field(of, name) => self.field(at, of, name),
            Kind::Has(of, name) => self.has(at, of, name),
            Kind::Index(of, index) => self.index(at, of, index),
            Kind::Not(inner) => Ok(Value::Bool(!self.boolean(inner)?)),
            Kind::Negate(inner) => self.negate(at, inner),
            Kind::And(all) => self.any(all, false),
            Kind::Or(all) => self.any(all, true),
            Kind::Binary(operator, left, right) => {
                let left = self.value(left)?;
                let right = self.value(right)?;
                super::operators::apply(at, *operator, &left, &right, &mut self.budget)
            }
            Kind::Conditional(parts) => {
                let [condition, yes, no] = parts.as_ref();
                let chosen = if self.boolean(condition)? { yes } else { no };
                self.value(chosen)
            }
            Kind::List(items) => self.list(at, items),
            Kind::Map(entries) => self.map(at, entries),
            Kind::Call(function, arguments) => {
                let mut values = Vec::with_capacity(arguments.len());
                for argument in arguments {
                    values.push(self.value(argument)?);
                }
                function.call(at, &values, &mut self.budget)
            }
            Kind::Comprehension(comprehension) => self.comprehension(at, comprehension),
        }
    }

    /// A value that must be true or false.
    pub(super) fn boolean(&mut self, node: &'v Node) -> Result<bool, Fault> {
        match self.value(node)? {
            Value::Bool(value) => Ok(value),
            other => {
                let message = format!("must be true or false, but is {}", other.kind());
                Err(Fault::new(node.at, message))
            }
        }
    }

    fn variable(&mut self, at: usize, variable: Variable) -> Evaluated<'v> {
        let view = self.view;
        let event = view.event;
        let meta = &event.meta;
        let read = match variable {
            Variable::Id => return Ok(Value::borrowed(&meta.id)),
            Variable::Type => return Ok(Value::borrowed(&meta.event_type)),
            Variable::Source => return Ok(Value::borrowed(&meta.source)),
            Variable::Subject => return Ok(Value::borrowed(&meta.subject)),
            Variable::Time => return Ok(Value::Time(meta.time)),
            Variable::TenantId => return Ok(Value::borrowed(meta.tenant.as_str())),
            Variable::Metadata => return Ok(self.metadata()),
            Variable::Data => match view.data() {
                None => return Ok(Value::Bytes(event.payload.bytes())),
                Some(read) => read,
            },
            Variable::Response => match view.response() {
                None => return Err(Fault::new(at, "there is no response")),
                Some(read) => read,
            },
        };
        let what = if variable == Variable::Data {
            "data"
        } else {
            "response"
        };
        match read {
            Ok(json) => Ok(Value::of(json)),
            Err(problem) => Err(Fault::new(at, format!("{what} cannot be read: {problem}"))),
        }
    }

    fn metadata(&self) -> Value<'v> {
        let meta = &self.view.event.meta;
        let trace = meta.trace.as_ref();
        let texts = [
            ("correlationId", meta.correlation_id.as_deref()),
            ("contentType", meta.content_type.as_deref()),
            ("traceparent", trace.map(TraceContext::parent)),
            ("tracestate", trace.and_then(TraceContext::state)),
        ];
        let texts = texts
            .into_iter()
            .filter_map(|(name, text)| Some((Text::Borrowed(name), Value::borrowed(text?))));
        let sequence = meta
            .source_sequence
            .map(|sequence| (Text::Borrowed("sequence"), Value::Int(sequence)));
        Value::Map(Rc::new(texts.chain(sequence).collect()))
    }

    fn field(&mut self, at: usize, of: &'v Node, name: &str) -> Evaluated<'v> {
        let of = self.value(of)?;
        self.budget.step(at, of.weight() / 8)?;
        of.field(name).ok_or_else(|| {
            Fault::new(
                at,
                if of.is_map() {
                    format!("there is no field {name:?}")
                } else {
                    format!("there is no field {name:?} in {}", of.kind())
                },
            )
        })
    }

    fn has(&mut self, at: usize, of: &'v Node, name: &str) -> Evaluated<'v> {
        let of = self.value(of)?;
        self.budget.step(at, of.weight() / 8)?;
        Ok(Value::Bool(of.field(name).is_some()))
    }

    fn index(&mut self, at: usize, of: &'v Node, index: &'v Node) -> Evaluated<'v> {
        let of = self.value(of)?;
        let index = self.value(index)?;
        self.budget.step(at, of.weight() / 8)?;
        match &index {
            Value::Text(name) if of.is_map() => of
                .field(name)
                .ok_or_else(|| Fault::new(at, "there is no field of this name")),
            _ if of.is_list() && index.is_number() => {
                let place = index.decimal().and_then(super::number::Decimal::whole);
                let item = place.and_then(|place| of.item(usize::try_from(place).ok()?));
                item.ok_or_else(|| {
                    let size = of.len().unwrap_or(0);
                    Fault::new(at, format!("there is no such entry in a list of {size}"))
                })
            }
            _ => {
                let message = format!("{} cannot be looked up in {}", index.kind(), of.kind());
                Err(Fault::new(at, message))
            }
        }
    }

    fn negate(&mut self, at: usize, inner: &'v Node) -> Evaluated<'v> {
        let value = self.value(inner)?;
        let negative = match &value {
            Value::Int(number) => number.checked_neg().map(Value::Int),
            _ => value
                .decimal()
                .map(|number| Value::Decimal(number.negate())),
        };
        negative.ok_or_else(|| Fault::new(at, format!("{} has no negative", value.kind())))
    }

    /// `&&` (until one is false) and `||` (until one is true). A fault counts only when no other one
    /// decides, on whichever side that stands.
    fn any(&mut self, all: &'v [Node], decides: bool) -> Evaluated<'v> {
        let mut fault = None;
        for one in all {
            match self.boolean(one) {
                Ok(value) if value == decides => return Ok(Value::Bool(decides)),
                Ok(_) => {}
                Err(limit) if limit.is_limit => return Err(limit),
                Err(other) => fault = fault.or(Some(other)),
            }
        }
        fault.map_or(Ok(Value::Bool(!decides)), Err)
    }

    fn list(&mut self, at: usize, items: &'v [Node]) -> Evaluated<'v> {
        let mut list = Vec::with_capacity(items.len());
        for item in items {
            self.budget.entry(at, 0)?;
            list.push(self.value(item)?);
        }
        Ok(Value::List(Rc::new(list)))
    }

    fn map(&mut self, at: usize, entries: &'v [(Node, Node)]) -> Evaluated<'v> {
        let mut map: Vec<(Text<'v>, Value<'v>)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let name = match self.value(key)? {
                Value::Text(name) => name,
                other => {
                    let message = format!("the key of a map must be a text, not {}", other.kind());
                    return Err(Fault::new(key.at, message));
                }
            };
            self.budget.step(at, map.len() / 8)?;
            self.budget.entry(at, size_of::<Text<'_>>())?;
            if map.iter().any(|(known, _)| **known == *name) {
                return Err(Fault::new(key.at, "the key is there twice"));
            }
            map.push((name, self.value(value)?));
        }
        Ok(Value::Map(Rc::new(map)))
    }

    fn comprehension(&mut self, at: usize, fold: &'v Comprehension) -> Evaluated<'v> {
        let over = self.value(&fold.over)?;
        if !over.is_list() && !over.is_map() {
            let message = format!("a list or a map is needed, not {}", over.kind());
            return Err(Fault::new(fold.over.at, message));
        }
        let mut list = Vec::new();
        let mut count = 0_usize;
        let mut fault = None;
        for index in 0..over.len().unwrap_or(0) {
            self.budget.step(at, 0)?;
            let entry = if over.is_list() {
                over.item(index)
            } else {
                over.key(index)
            };
            let entry = entry.unwrap_or(Value::Null);
            self.locals.push(entry.clone());
            let outcome = self.entry(fold, entry);
            self.locals.pop();
            match (fold.kind, outcome) {
                (Fold::All | Fold::Exists, Err(other)) if !other.is_limit => {
                    fault = fault.or(Some(other));
                }
                (_, Err(fault)) => return Err(fault),
                (Fold::All, Ok(None)) => return Ok(Value::Bool(false)),
                (Fold::Exists, Ok(Some(_))) => return Ok(Value::Bool(true)),
                (Fold::Map | Fold::Filter, Ok(Some(value))) => {
                    self.budget.entry(at, 0)?;
                    list.push(value);
                }
                (_, Ok(found)) => count += usize::from(found.is_some()),
            }
        }
        if let Some(fault) = fault {
            return Err(fault);
        }
        Ok(match fold.kind {
            Fold::All => Value::Bool(true),
            Fold::Exists => Value::Bool(false),
            Fold::ExistsOne => Value::Bool(count == 1),
            Fold::Filter | Fold::Map => Value::List(Rc::new(list)),
        })
    }

    /// What becomes of one entry; `None` when it does not meet the condition.
    fn entry(
        &mut self,
        fold: &'v Comprehension,
        entry: Value<'v>,
    ) -> Result<Option<Value<'v>>, Fault> {
        if let Some(condition) = &fold.condition
            && !self.boolean(condition)?
        {
            return Ok(None);
        }
        match &fold.result {
            Some(result) => self.value(result).map(Some),
            None => Ok(Some(entry)),
        }
    }
}

/// Whether an order fits an operator.
pub(super) fn fits(operator: Operator, order: Ordering) -> bool {
    match operator {
        Operator::Less => order.is_lt(),
        Operator::LessOrEqual => order.is_le(),
        Operator::Greater => order.is_gt(),
        _ => order.is_ge(),
    }
}
