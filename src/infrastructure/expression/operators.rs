//! What the operators do.

use std::rc::Rc;

use super::{
    ast::Operator,
    eval::{Budget, Fault, fits},
    value::Value,
};

/// Applies an operator to two values.
pub(super) fn apply<'v>(
    at: usize,
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
    budget: &mut Budget,
) -> Result<Value<'v>, Fault> {
    match operator {
        Operator::Equal => equal(at, left, right, budget).map(Value::Bool),
        Operator::Unequal => equal(at, left, right, budget).map(|same| Value::Bool(!same)),
        Operator::In => is_in(at, left, right, budget).map(Value::Bool),
        Operator::Less | Operator::LessOrEqual | Operator::Greater | Operator::GreaterOrEqual => {
            budget.step(at, left.weight().min(right.weight()))?;
            let order = left.order(right).ok_or_else(|| {
                let (left, right) = (left.kind(), right.kind());
                Fault::new(at, format!("{left} cannot be compared with {right}"))
            })?;
            Ok(Value::Bool(fits(operator, order)))
        }
        _ => calculated(at, operator, left, right, budget),
    }
}

/// Numbers are equal by value, maps whatever the order of their fields is; values of different kinds
/// are never equal.
fn equal<'v>(
    at: usize,
    left: &Value<'v>,
    right: &Value<'v>,
    budget: &mut Budget,
) -> Result<bool, Fault> {
    budget.step(at, left.weight().min(right.weight()))?;
    if let (Value::Null, Value::Null) = (left, right) {
        return Ok(true);
    }
    if let Some(order) = left.order(right) {
        return Ok(order.is_eq());
    }
    let both_lists = left.is_list() && right.is_list();
    let both_maps = left.is_map() && right.is_map();
    if !(both_lists || both_maps) || left.len() != right.len() {
        return Ok(false);
    }
    for (index, (key, value)) in left.parts().into_iter().enumerate() {
        let other = match key {
            Some(key) => {
                budget.step(at, right.weight() / 8)?;
                right.field(&key)
            }
            None => right.item(index),
        };
        match other {
            Some(other) if equal(at, &value, &other, budget)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether a value is in a list, or a text among the keys of a map.
fn is_in<'v>(
    at: usize,
    value: &Value<'v>,
    within: &Value<'v>,
    budget: &mut Budget,
) -> Result<bool, Fault> {
    if within.is_list() {
        for index in 0..within.len().unwrap_or(0) {
            if let Some(item) = within.item(index)
                && equal(at, value, &item, budget)?
            {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    match value {
        Value::Text(name) if within.is_map() => {
            budget.step(at, within.weight() / 8)?;
            Ok(within.field(name).is_some())
        }
        _ => {
            let (value, within) = (value.kind(), within.kind());
            Err(Fault::new(
                at,
                format!("{value} cannot be looked for in {within}"),
            ))
        }
    }
}

fn calculated<'v>(
    at: usize,
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
    budget: &mut Budget,
) -> Result<Value<'v>, Fault> {
    let result = match (operator, left, right) {
        (_, Value::Int(left), Value::Int(right)) => return whole(at, operator, *left, *right),
        (Operator::Add, Value::Text(left), Value::Text(right)) => {
            budget.build(at, left.len().saturating_add(right.len()))?;
            Some(Value::built([&**left, &**right].concat()))
        }
        (Operator::Add, Value::Time(time), Value::Duration(span))
        | (Operator::Add, Value::Duration(span), Value::Time(time)) => {
            time.checked_add_signed(*span).map(Value::Time)
        }
        (Operator::Subtract, Value::Time(time), Value::Duration(span)) => {
            time.checked_sub_signed(*span).map(Value::Time)
        }
        (Operator::Subtract, Value::Time(left), Value::Time(right)) => {
            Some(Value::Duration(left.signed_duration_since(*right)))
        }
        (Operator::Add, Value::Duration(left), Value::Duration(right)) => {
            left.checked_add(right).map(Value::Duration)
        }
        (Operator::Subtract, Value::Duration(left), Value::Duration(right)) => {
            left.checked_sub(right).map(Value::Duration)
        }
        (Operator::Add, ..) if left.is_list() && right.is_list() => {
            let all: Vec<_> = [left, right].into_iter().flat_map(Value::parts).collect();
            budget.step(at, all.len())?;
            budget.build(at, all.len().saturating_mul(size_of::<Value<'_>>()))?;
            Some(Value::List(Rc::new(
                all.into_iter().map(|(_, item)| item).collect(),
            )))
        }
        _ if left.is_number() && right.is_number() => {
            return decimal(at, operator, left, right);
        }
        _ => {
            let (left, right) = (left.kind(), right.kind());
            let sign = sign(operator);
            return Err(Fault::new(
                at,
                format!("{left} {sign} {right} cannot be calculated"),
            ));
        }
    };
    result.ok_or_else(|| too_large(at))
}

/// Whole numbers of the expression itself, as CEL calculates with them.
fn whole<'v>(at: usize, operator: Operator, left: i64, right: i64) -> Result<Value<'v>, Fault> {
    let result = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Subtract => left.checked_sub(right),
        Operator::Multiply => left.checked_mul(right),
        Operator::Divide | Operator::Remainder if right == 0 => return Err(by_zero(at)),
        Operator::Divide => left.checked_div(right),
        _ => left.checked_rem(right),
    };
    result.map(Value::Int).ok_or_else(|| too_large(at))
}

fn decimal<'v>(
    at: usize,
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
) -> Result<Value<'v>, Fault> {
    let (Some(left), Some(right)) = (left.decimal(), right.decimal()) else {
        return Err(too_large(at));
    };
    let result = match operator {
        Operator::Add => left.add(right),
        Operator::Subtract => left.subtract(right),
        Operator::Multiply => left.multiply(right),
        Operator::Divide | Operator::Remainder if right.is_zero() => return Err(by_zero(at)),
        Operator::Divide => left.divide(right),
        _ => left.remainder(right),
    };
    result.map(Value::Decimal).ok_or_else(|| too_large(at))
}

fn by_zero(at: usize) -> Fault {
    Fault::new(at, "a division by zero")
}

fn too_large(at: usize) -> Fault {
    Fault::new(at, "a number with too many digits, or a time out of range")
}

fn sign(operator: Operator) -> &'static str {
    match operator {
        Operator::Add => "+",
        Operator::Subtract => "-",
        Operator::Multiply => "*",
        Operator::Divide => "/",
        _ => "%",
    }
}
