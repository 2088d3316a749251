//! A scenario file's tables with a profile's laid over them, every value still knowing its place
//! in the file.

use std::ops::Range;

use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Deserializer},
};

use super::{Scenario, schema};
use crate::language::read::plain;

/// Something wrong in the file.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) span: Range<usize>,
    pub(super) message: String,
    pub(super) help: String,
}

pub(super) type Table<'a> = Spanned<DeTable<'a>>;

/// The file without its profiles, and the profiles.
pub(super) struct Layers<'a> {
    base: Table<'a>,
    profiles: Vec<(String, DeTable<'a>)>,
}

impl<'a> Layers<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Fault> {
        let mut base = DeTable::parse(text).map_err(|error| Fault {
            span: error.span().unwrap_or(0..0),
            message: error.message().to_owned(),
            help: "this is not TOML; see https://toml.io for how to write it".into(),
        })?;
        let mut profiles = Vec::new();
        if let Some(table) = base.get_mut().remove("profile") {
            for (name, value) in into_table(table, "profile", "[profile.quick.design]")? {
                let span = name.span();
                let name = name.into_inner().into_owned();
                if name == "full" {
                    return Err(Fault {
                        span,
                        message: "profile `full` is the file itself".into(),
                        help: "put its settings outside of [profile], or rename it".into(),
                    });
                }
                let tables = into_table(value, &name, &format!("[profile.{name}.design]"))?;
                if let Some((key, _)) = tables.iter().find(|(_, v)| !v.get_ref().is_table()) {
                    return Err(Fault {
                        span: key.span(),
                        message: format!("a profile changes tables, and `{}` is none", key.get_ref()),
                        help: format!("write for example [profile.{name}.design] and below it blocks = 5"),
                    });
                }
                profiles.push((name, tables));
            }
        }
        Ok(Self { base, profiles })
    }

    pub(super) fn profiles(&self) -> impl Iterator<Item = &str> {
        self.profiles.iter().map(|(name, _)| name.as_str())
    }

    /// The file with the profile of this name laid over it.
    pub(super) fn over(&self, profile: Option<&str>) -> Table<'a> {
        let mut table = self.base.clone();
        let tables = self.profiles.iter().find(|(name, _)| Some(name.as_str()) == profile);
        if let Some((_, upper)) = tables {
            lay_over(table.get_mut(), upper);
        }
        table
    }
}

fn into_table<'a>(value: Spanned<DeValue<'a>>, name: &str, example: &str) -> Result<DeTable<'a>, Fault> {
    let span = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Ok(table),
        other => Err(Fault {
            span,
            message: format!("`{name}` is a table, not {}", other.type_str()),
            help: format!("write {example}"),
        }),
    }
}

fn lay_over<'a>(lower: &mut DeTable<'a>, upper: &DeTable<'a>) {
    for (key, value) in upper {
        if let (Some(DeValue::Table(lower)), DeValue::Table(upper)) =
            (lower.get_mut(key).map(Spanned::get_mut), value.get_ref())
        {
            lay_over(lower, upper);
        } else {
            // Removed first: a map keeps an equal key, whose span would be the lower one's.
            lower.remove(key);
            lower.insert(key.clone(), value.clone());
        }
    }
}

/// Fields and types; the help is the field's own description from the schema.
pub(super) fn read(table: &Table<'_>) -> Result<Scenario, Fault> {
    Scenario::deserialize(Deserializer::from(table.clone())).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let path = path_at(table.get_ref(), &span);
        let message = plain(error.message());
        let help = if message.starts_with("unknown field") {
            "remove it, or use one of the names above; `bench schema` prints all of them".to_owned()
        } else if message.starts_with("missing field") {
            let field = message.split('`').nth(1).unwrap_or_default();
            let mut full = path.clone();
            full.push(field.to_owned());
            describe(&full).map_or_else(|| format!("add `{field}`"), |is| format!("add `{field}`: {is}"))
        } else {
            let is = describe(&path).map_or_else(
                || "`bench schema` prints what can stand here".to_owned(),
                |is| format!("{}: {is}", path.join(".")),
            );
            match schema::range(&path) {
                Some((low, high)) => format!("write a number from {low} to {high}; {is}"),
                None => is,
            }
        };
        Fault { span, message, help }
    })
}

fn describe(path: &[String]) -> Option<String> {
    schema::description(path)
}

/// The keys on the way to the value (or key) at a place in the file.
fn path_at(table: &DeTable<'_>, span: &Range<usize>) -> Vec<String> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    for (key, value) in table {
        let here = holds(key.span()) || holds(value.span());
        let inner = value.get_ref().as_table().map(|t| path_at(t, span)).unwrap_or_default();
        // A table's span is its header's: what is below it lies outside.
        if here || !inner.is_empty() {
            return std::iter::once(key.get_ref().to_string()).chain(inner).collect();
        }
    }
    Vec::new()
}

/// The place of the value at a path, or of the nearest table around it.
pub(super) fn place(table: &Table<'_>, path: &[&str], index: Option<usize>) -> Range<usize> {
    let mut span = table.span().start..table.span().start;
    let mut current = table.get_ref();
    for (depth, key) in path.iter().enumerate() {
        let Some(value) = current.get(*key) else { return span };
        span = value.span();
        if depth + 1 == path.len() {
            let item = index.and_then(|i| value.get_ref().as_array().and_then(|array| array.get(i)));
            return item.map_or(span, Spanned::span);
        }
        let Some(table) = value.get_ref().as_table() else { return span };
        current = table;
    }
    span
}
