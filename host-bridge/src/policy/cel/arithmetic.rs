//! `+ - * / %` and the orders. Overflow is an error; mixed types are, too: a JSON number is a double.

use std::{cmp::Ordering, rc::Rc};

use super::{
    ast::Operator,
    eval::Stop,
    value::{Cost, Number, Value},
};

/// Applies an operator that is neither equality nor `in`.
pub(super) fn apply<'a>(
    operator: Operator,
    left: Value<'a>,
    right: Value<'a>,
    cost: &mut Cost,
) -> Result<Value<'a>, Stop> {
    use Operator as O;
    let none = || Stop::no_overload(operator.as_str(), &[&left, &right]);
    let overflow = || Stop::error("integer overflow");
    if matches!(operator, O::Less | O::LessEqual | O::Greater | O::GreaterEqual) {
        let order = compare(&left, &right, cost)?;
        let Some(order) = order.ok_or_else(none)? else { return Ok(Value::Bool(false)) };
        return Ok(Value::Bool(match operator {
            O::Less => order == Ordering::Less,
            O::LessEqual => order != Ordering::Greater,
            O::Greater => order == Ordering::Greater,
            _ => order != Ordering::Less,
        }));
    }
    match (operator, &left, &right) {
        (O::Add, Value::Int(a), Value::Int(b)) => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        (O::Subtract, Value::Int(a), Value::Int(b)) => a.checked_sub(*b).map(Value::Int).ok_or_else(overflow),
        (O::Multiply, Value::Int(a), Value::Int(b)) => a.checked_mul(*b).map(Value::Int).ok_or_else(overflow),
        (O::Divide, Value::Int(_), Value::Int(0)) | (O::Divide, Value::Uint(_), Value::Uint(0)) => {
            Err(Stop::error("division by zero"))
        }
        (O::Remainder, Value::Int(_), Value::Int(0)) | (O::Remainder, Value::Uint(_), Value::Uint(0)) => {
            Err(Stop::error("modulus by zero"))
        }
        (O::Divide, Value::Int(a), Value::Int(b)) => a.checked_div(*b).map(Value::Int).ok_or_else(overflow),
        (O::Remainder, Value::Int(a), Value::Int(b)) => {
            a.checked_rem(*b).map(Value::Int).ok_or_else(overflow)
        }
        (O::Add, Value::Uint(a), Value::Uint(b)) => a.checked_add(*b).map(Value::Uint).ok_or_else(overflow),
        (O::Subtract, Value::Uint(a), Value::Uint(b)) => {
            a.checked_sub(*b).map(Value::Uint).ok_or_else(overflow)
        }
        (O::Multiply, Value::Uint(a), Value::Uint(b)) => {
            a.checked_mul(*b).map(Value::Uint).ok_or_else(overflow)
        }
        (O::Divide, Value::Uint(a), Value::Uint(b)) => {
            a.checked_div(*b).map(Value::Uint).ok_or_else(overflow)
        }
        (O::Remainder, Value::Uint(a), Value::Uint(b)) => {
            a.checked_rem(*b).map(Value::Uint).ok_or_else(overflow)
        }
        (O::Add, Value::Double(a), Value::Double(b)) => Ok(Value::Double(a + b)),
        (O::Subtract, Value::Double(a), Value::Double(b)) => Ok(Value::Double(a - b)),
        (O::Multiply, Value::Double(a), Value::Double(b)) => Ok(Value::Double(a * b)),
        (O::Divide, Value::Double(a), Value::Double(b)) => Ok(Value::Double(a / b)),
        (O::Add, Value::Text(a), Value::Text(b)) => {
            cost.spend_text((a.len() + b.len()).saturating_mul(8))?;
            Ok(Value::Text(format!("{a}{b}").into()))
        }
        (O::Add, Value::Bytes(a), Value::Bytes(b)) => {
            cost.spend_text((a.len() + b.len()).saturating_mul(8))?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        (O::Add, Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (O::Subtract, Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (O::Add, Value::Time(a), Value::Duration(b)) | (O::Add, Value::Duration(b), Value::Time(a)) => {
            a.checked_add(*b).map(Value::Time).map_err(|_| overflow())
        }
        (O::Subtract, Value::Time(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Time).map_err(|_| overflow())
        }
        (O::Subtract, Value::Time(a), Value::Time(b)) => Ok(Value::Duration(a.duration_since(*b))),
        (O::Add, a, b) => {
            let (Some(first), Some(second)) = (a.list_len(), b.list_len()) else { return Err(none()) };
            cost.spend((first + second) as u64)?;
            let items = (0..first).filter_map(|index| a.item(index));
            let items: Rc<[Value<'a>]> = items.chain((0..second).filter_map(|index| b.item(index))).collect();
            Ok(Value::List(items))
        }
        _ => Err(none()),
    }
}

/// The order of two values. `None`: there is none; `Some(None)`: one is not a number.
#[expect(clippy::option_option, reason = "no order and a NaN are different things")]
fn compare(left: &Value<'_>, right: &Value<'_>, cost: &mut Cost) -> Result<Option<Option<Ordering>>, Stop> {
    if let (Some(a), Some(b)) = (Number::of(left), Number::of(right)) {
        return Ok(Some(a.compare(b)));
    }
    Ok(match (left, right) {
        (Value::Text(a), Value::Text(b)) => {
            cost.spend_text(a.len().min(b.len()))?;
            Some(Some(a.cmp(b)))
        }
        (Value::Bool(a), Value::Bool(b)) => Some(Some(a.cmp(b))),
        (Value::Bytes(a), Value::Bytes(b)) => Some(Some(a.cmp(b))),
        (Value::Time(a), Value::Time(b)) => Some(Some(a.cmp(b))),
        (Value::Duration(a), Value::Duration(b)) => Some(Some(a.cmp(b))),
        _ => None,
    })
}
