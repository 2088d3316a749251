//! Typed values from tables, with errors that say what may stand there, in the words of the type's own documentation.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::text::Fault;
use super::tree::{Node, Table, Value};
use super::typed::{TypeError, Typed};

/// Reads a table as a type, and checks that its numbers are in the ranges of the type's schema.
///
/// # Errors
/// A key is missing, unknown or wrong, or a number out of its range.
pub(crate) fn read<T: DeserializeOwned + JsonSchema + 'static>(node: &Node) -> Result<T, Fault> {
    let schema = schema_of::<T>();
    let value = T::deserialize(Typed(node)).map_err(|error| explain(&error, node, &schema))?;
    ranges(node, &schema)?;
    Ok(value)
}

/// The schema of a type. It is made once: a design of thousands of arms reads the same types again and again.
fn schema_of<T: JsonSchema + 'static>() -> Rc<Schema> {
    thread_local! {
        static MADE: RefCell<HashMap<TypeId, Rc<Schema>>> = RefCell::default();
    }
    let make = || Rc::new(schemars::SchemaGenerator::default().into_root_schema_for::<T>());
    MADE.with_borrow_mut(|made| Rc::clone(made.entry(TypeId::of::<T>()).or_insert_with(make)))
}

/// A table as a node at a place.
pub(crate) fn node(span: std::ops::Range<usize>, table: Table) -> Node {
    Node { span, value: Value::Table(table) }
}

/// An error of reading in a person's words.
pub(crate) fn explain(error: &TypeError, node: &Node, schema: &Schema) -> Fault {
    let span = error.span.clone().unwrap_or_else(|| node.span.clone());
    let path = path_to(node, &span);
    let message = plain(&error.message);
    let schema = schema.as_value();
    let help = if message.starts_with("unknown field") {
        "remove it, or use one of the names above".to_owned()
    } else if message.starts_with("missing field") {
        let name = message.split('`').nth(1).unwrap_or_default();
        let mut full = path;
        full.push(name.to_owned());
        description(schema, &full).map_or_else(|| format!("add `{name}`"), |is| format!("add `{name}`: {is}"))
    } else {
        let is = description(schema, &path).map_or_else(
            || "bench/docs/steps/README.md says what can stand here".to_owned(),
            |is| format!("{}: {is}", path.join(".")),
        );
        match range(schema, &path) {
            Some((low, high)) => format!("write a number from {low} to {high}; {is}"),
            None => is,
        }
    };
    Fault::new(span, message, help)
}

/// serde's words without Rust's names for types.
pub(crate) fn plain(message: &str) -> String {
    let whole = "a whole number from 0";
    [("unknown variant", "unknown name"), ("u32", whole), ("u64", whole), ("f64", "a number")].iter().fold(
        message.to_owned(),
        |text, (rust, word)| {
            // Only the words, never what a person wrote between quotation marks.
            if let Some(head) = text.strip_suffix(&format!("expected {rust}")) {
                format!("{head}expected {word}")
            } else {
                text.strip_prefix(rust).map_or(text.clone(), |tail| format!("{word}{tail}"))
            }
        },
    )
}

/// Refuses numbers out of their ranges.
pub(crate) fn ranges(node: &Node, schema: &Schema) -> Result<(), Fault> {
    let root = schema.as_value();
    within(node, root, root, &mut Vec::new())
}

fn within(node: &Node, at: &Json, root: &Json, path: &mut Vec<String>) -> Result<(), Fault> {
    let at = resolve(root, at);
    match &node.value {
        Value::Table(table) => {
            for entry in &table.entries {
                let Some(property) = at.get("properties").and_then(|all| all.get(&entry.key)) else {
                    continue;
                };
                path.push(entry.key.clone());
                within(&entry.node, property, root, path)?;
                path.pop();
            }
        }
        Value::List(items) => {
            for item in items {
                if let Some(schema) = at.get("items") {
                    within(item, schema, root, path)?;
                }
            }
        }
        Value::Integer(_) | Value::Float(_) => {
            #[expect(
                clippy::cast_precision_loss,
                reason = "ranges are far below 2⁵³, but for one whose end is 2⁶³ − 1"
            )]
            let value = match node.value {
                Value::Integer(number) => number as f64,
                Value::Float(number) => number,
                _ => return Ok(()),
            };
            let (low, high) = (at.get("minimum"), at.get("maximum"));
            let below = low.and_then(Json::as_f64).is_some_and(|low| value < low);
            let above = high.and_then(Json::as_f64).is_some_and(|high| value > high);
            if below || above || !value.is_finite() {
                let number =
                    |end: Option<&Json>, none: &str| end.map_or_else(|| none.to_owned(), ToString::to_string);
                let message = format!("{} = {value} is out of its range", path.join("."));
                let help = format!("use {} to {}", number(low, "less"), number(high, "more"));
                return Err(Fault::new(node.span.clone(), message, help));
            }
        }
        _ => {}
    }
    Ok(())
}

/// The keys on the way to the value (or key) at a place.
fn path_to(node: &Node, span: &std::ops::Range<usize>) -> Vec<String> {
    let holds = |outer: &std::ops::Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let Some(table) = node.table() else { return Vec::new() };
    for entry in &table.entries {
        let inner = path_to(&entry.node, span);
        if holds(&entry.at) || holds(&entry.node.span) || !inner.is_empty() {
            return std::iter::once(entry.key.clone()).chain(inner).collect();
        }
    }
    Vec::new()
}

/// The schema of the field at a path.
fn field<'a>(root: &'a Json, path: &[String]) -> Option<&'a Json> {
    let mut at = root;
    for key in path {
        at = resolve(root, at).get("properties")?.get(key)?;
    }
    Some(at)
}

/// What the field at a path is, on one line.
fn description(root: &Json, path: &[String]) -> Option<String> {
    let at = field(root, path)?;
    let text = at.get("description").or_else(|| resolve(root, at).get("description"))?.as_str()?;
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn range(root: &Json, path: &[String]) -> Option<(Json, Json)> {
    let at = field(root, path)?;
    Some((at.get("minimum")?.clone(), at.get("maximum")?.clone()))
}

/// Follows `$ref`, also through the `anyOf` of an optional table.
fn resolve<'a>(root: &'a Json, at: &'a Json) -> &'a Json {
    let reference =
        at.get("$ref").or_else(|| at.get("anyOf")?.as_array()?.iter().find_map(|choice| choice.get("$ref")));
    reference
        .and_then(Json::as_str)
        .and_then(|reference| reference.strip_prefix("#/$defs/"))
        .and_then(|name| root["$defs"].get(name))
        .unwrap_or(at)
}
