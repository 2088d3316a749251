//! Trees of values that know their places in the scenario's texts: read, laid over each other, looked up.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::text::Fault;

/// Lists whose items are known by their `name`.
pub(crate) const NAMED: [&str; 10] =
    ["host", "server", "guest", "link", "workload", "arm", "metric", "compare", "figure", "claim"];

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Where it is written.
    pub(crate) span: Range<usize>,
    /// What it is.
    pub(crate) value: Value,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A list.
    List(Vec<Node>),
    /// A table.
    Table(Table),
}

/// A key of a table with its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Where the key is written.
    pub(crate) at: Range<usize>,
    /// The value.
    pub(crate) node: Node,
}

/// A table, in the order in which it is written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Table {
    /// Its keys.
    pub(crate) entries: Vec<Entry>,
}

impl Value {
    /// What kind of value it is, for people.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// The text that it is.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The table that it is.
    pub(crate) const fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The list that it is.
    pub(crate) fn list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// A scalar as text, for names and for texts that it is put into.
    pub(crate) fn scalar(&self) -> Option<String> {
        match &self.value {
            Value::Text(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Bool(value) => Some(value.to_string()),
            Value::List(_) | Value::Table(_) => None,
        }
    }

    /// Whether both say the same, wherever they are written.
    pub(crate) fn same(&self, other: &Node) -> bool {
        match (&self.value, &other.value) {
            (Value::List(a), Value::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            (Value::Table(a), Value::Table(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries
                        .iter()
                        .all(|entry| b.get(&entry.key).is_some_and(|node| entry.node.same(node)))
            }
            (a, b) => a == b,
        }
    }
}

impl Table {
    /// The value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        self.entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
    }

    /// Takes a key away.
    pub(crate) fn take(&mut self, key: &str) -> Option<Node> {
        let at = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(at).node)
    }

    /// Sets a key; one that is there is replaced.
    pub(crate) fn set(&mut self, key: &str, at: Range<usize>, node: Node) {
        match self.entries.iter_mut().find(|entry| entry.key == key) {
            Some(entry) => (entry.at, entry.node) = (at, node),
            None => self.entries.push(Entry { key: key.to_owned(), at, node }),
        }
    }

    /// The items of a named list; none where there is no such list.
    pub(crate) fn items(&self, list: &str) -> impl Iterator<Item = (&Range<usize>, &Table)> {
        let items = self.get(list).and_then(Node::list).unwrap_or_default();
        items.iter().filter_map(|item| Some((&item.span, item.table()?)))
    }

    /// The item of a named list.
    pub(crate) fn item_mut(&mut self, list: &str, name: &str) -> Option<&mut Table> {
        let Some(Node { value: Value::List(items), .. }) = self.get_mut(list) else { return None };
        items.iter_mut().find_map(|item| match &mut item.value {
            Value::Table(table) if table.name() == Some(name) => Some(table),
            _ => None,
        })
    }

    /// Its `name`.
    pub(crate) fn name(&self) -> Option<&str> {
        self.get("name").and_then(Node::text)
    }
}

/// Reads a file whose text begins at a place of the virtual text.
///
/// # Errors
/// It is not TOML, or has a value that no scenario has: a date, or a number beyond 64 bits.
pub(crate) fn parse(text: &str, start: usize) -> Result<Table, Fault> {
    let table = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let help = "this is not TOML; see https://toml.io for how to write it";
        Fault::new(span.start + start..span.end + start, error.message(), help)
    })?;
    convert(table.into_inner(), start)
}

fn convert(table: DeTable<'_>, start: usize) -> Result<Table, Fault> {
    let moved = |span: Range<usize>| span.start + start..span.end + start;
    let mut entries = Vec::with_capacity(table.len());
    for (key, value) in table {
        let (at, key) = (moved(key.span()), key.into_inner().into_owned());
        entries.push(Entry { key, at, node: convert_value(value, start)? });
    }
    // In the order of the file, whatever the parser's map does.
    entries.sort_by_key(|entry| entry.at.start);
    Ok(Table { entries })
}

fn convert_value(value: Spanned<DeValue<'_>>, start: usize) -> Result<Node, Fault> {
    let span = value.span().start + start..value.span().end + start;
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Integer(number) => {
            let Ok(number) = i64::from_str_radix(number.as_str(), number.radix()) else {
                let message = format!("{} is too large for a whole number", number.as_str());
                return Err(Fault::new(span, message, "whole numbers end at 9223372036854775807"));
            };
            Value::Integer(number)
        }
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => return Err(Fault::new(span, "this is no number", "write digits, and one point")),
        },
        DeValue::Array(items) => {
            Value::List(items.into_iter().map(|item| convert_value(item, start)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(table) => Value::Table(convert(table, start)?),
        DeValue::Datetime(_) => {
            return Err(Fault::new(span, "a scenario has no dates", "write a text, between quotation marks"));
        }
    };
    Ok(Node { span, value })
}

/// Lays a table over another: tables key by key, named lists item by item, everything else is replaced.
///
/// With `strict`, replacing a value by another one is a fault: neither table is above the other.
///
/// # Errors
/// With `strict`: both say something else of one key; at the place of the upper, with that of the lower in `line`'s words.
pub(crate) fn lay_over(
    lower: &mut Table,
    upper: Table,
    strict: bool,
    line: &dyn Fn(usize) -> String,
) -> Result<(), Fault> {
    for Entry { key, at, node } in upper.entries {
        match (lower.get_mut(&key).map(|node| &mut node.value), node) {
            (Some(Value::Table(below)), Node { value: Value::Table(above), .. }) => {
                lay_over(below, above, strict, line)?;
            }
            (Some(Value::List(below)), Node { value: Value::List(above), .. })
                if NAMED.contains(&key.as_str()) =>
            {
                lay_items(below, above, strict, line)?;
            }
            (Some(_), node) if strict => {
                let before = lower.get(&key).map_or(0..0, |node| node.span.clone());
                if lower.get(&key).is_some_and(|there| !there.same(&node)) {
                    let message = format!("`{key}` is set otherwise in {}", line(before.start));
                    let help = "two included files may not disagree: set it in the file that includes both";
                    return Err(Fault::new(node.span, message, help));
                }
            }
            (_, node) => lower.set(&key, at, node),
        }
    }
    Ok(())
}

fn lay_items(
    lower: &mut Vec<Node>,
    upper: Vec<Node>,
    strict: bool,
    line: &dyn Fn(usize) -> String,
) -> Result<(), Fault> {
    for item in upper {
        let name = item.table().and_then(Table::name).map(str::to_owned);
        let there = lower.iter_mut().find_map(|below| match &mut below.value {
            Value::Table(table) if name.is_some() && table.name() == name.as_deref() => Some(table),
            _ => None,
        });
        match (there, item) {
            (Some(below), Node { value: Value::Table(above), .. }) => lay_over(below, above, strict, line)?,
            (_, item) => lower.push(item),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        parse(text, 0).unwrap()
    }

    #[test]
    fn named_items_are_merged_and_lists_are_replaced() {
        let mut lower =
            table("list = [1, 2]\n[[guest]]\nname = 'vm'\nmemory = 'a'\n[[guest]]\nname = 'other'\n");
        let upper =
            table("list = [3]\n[[guest]]\nname = 'vm'\nmemory = 'b'\nvcpus = 2\n[[guest]]\nname = 'third'\n");
        lay_over(&mut lower, upper, false, &|_| String::new()).unwrap();
        let names: Vec<_> = lower.items("guest").filter_map(|(_, guest)| guest.name()).collect();
        assert_eq!(names, ["vm", "other", "third"]);
        let vm = lower.item_mut("guest", "vm").unwrap();
        assert_eq!((vm.get("memory").unwrap().text(), vm.get("vcpus").is_some()), (Some("b"), true));
        assert_eq!(lower.get("list").unwrap().list().unwrap().len(), 1);
    }

    #[test]
    fn two_of_one_rank_may_say_the_same_and_nothing_else() {
        let mut lower = table("a = 1\n[[link]]\nname = 'wan'\nrate = 'x'\n");
        lay_over(&mut lower, table("a = 1\n[[link]]\nname = 'wan'\nrate = 'x'\n"), true, &|_| "l".into())
            .unwrap();
        let fault = lay_over(&mut lower, table("[[link]]\nname = 'wan'\nrate = 'y'\n"), true, &|_| {
            "low.toml:4".into()
        });
        assert!(fault.unwrap_err().message.contains("`rate` is set otherwise in low.toml:4"));
    }

    #[test]
    fn what_no_scenario_has_is_told_with_its_place() {
        assert_eq!(parse("a = 2026-12-01", 10).unwrap_err().span, 14..24);
        assert!(parse("a = 99999999999999999999", 0).unwrap_err().message.contains("too large"));
        assert!(parse("a = = 1", 0).is_err());
    }
}
