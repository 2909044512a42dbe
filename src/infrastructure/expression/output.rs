//! Writes a value as JSON. What comes from the event is copied as it was written.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{application::event_view::Json, domain::values::format_time};

use super::{functions::span_text, limits::MAX_RESULT, value::Value};

/// The value as JSON text.
pub(super) fn json(value: &Value<'_>) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    match value {
        Value::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Written(number) => raw(number, out)?,
        Value::Decimal(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Text(value) => text(value, out)?,
        Value::Bytes(bytes) => text(&STANDARD.encode(bytes), out)?,
        Value::Time(time) => text(&format_time(*time), out)?,
        Value::Duration(span) => text(&span_text(*span), out)?,
        Value::Json(Json::List { raw: written, .. } | Json::Map { raw: written, .. }) => {
            raw(written, out)?;
        }
        // Other JSON has values of its own.
        Value::Null | Value::Json(_) => out.extend_from_slice(b"null"),
        Value::List(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Map(entries) => {
            out.push(b'{');
            for (index, (key, value)) in entries.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                text(key, out)?;
                out.push(b':');
                write(value, out)?;
            }
            out.push(b'}');
        }
    }
    fits(out.len())
}

fn raw(written: &str, out: &mut Vec<u8>) -> Result<(), String> {
    fits(out.len().saturating_add(written.len()))?;
    out.extend_from_slice(written.as_bytes());
    Ok(())
}

fn text(text: &str, out: &mut Vec<u8>) -> Result<(), String> {
    fits(out.len().saturating_add(text.len()))?;
    // A text always becomes JSON, and a vector takes it all.
    serde_json::to_writer(out, text).map_err(|error| error.to_string())
}

fn fits(length: usize) -> Result<(), String> {
    if length > MAX_RESULT {
        return Err(format!("the result has more than {MAX_RESULT} bytes"));
    }
    Ok(())
}
