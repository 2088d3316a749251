//! Workloads of an arm: the scenario's own, and those that come with the bench.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::steps::{Read, all};
use super::{Parameters, list};
use crate::language::read::{node, read};
use crate::language::text::{Fault, Texts};
use crate::language::tree::{self, Node, Table, Value};
use crate::model::{ValueOf, Workload};
use crate::step::Verb;
use crate::workload::definitions;

/// The definitions that come with the bench, with their places.
pub(super) type Definitions = BTreeMap<&'static str, Table>;

/// Reads the definitions, behind the scenario's own texts.
pub(super) fn add(texts: &mut Texts) -> Result<Definitions, Fault> {
    let mut all = Definitions::new();
    for name in definitions::names() {
        let text = definitions::find(name).unwrap_or_default();
        let start = texts.add(Path::new(&format!("{name}.toml (of the bench)")), text);
        all.insert(name, tree::parse(text, start)?);
    }
    Ok(all)
}

/// The workloads that a program uses.
pub(super) fn used(
    tables: &Table,
    program: &[Read],
    builtin: &Definitions,
    parameters: &Parameters,
) -> Result<Vec<Workload>, Fault> {
    let used: BTreeSet<&str> =
        all(program).filter_map(|step| step.verb.as_ref()).flat_map(|verb| verb.uses().workloads).collect();
    let mut workloads = Vec::new();
    for item in list(tables, "workload", parameters)? {
        let Some(name) = item.table().and_then(Table::name).map(str::to_owned) else { continue };
        let workload = one(item, builtin)?;
        // One that no step of this arm uses is read all the same, so that a mistake in it is found.
        if used.contains(name.as_str()) {
            workloads.push(workload);
        }
    }
    for step in all(program) {
        if let Some(Verb::Command(command)) = &step.verb {
            command.values.iter().try_for_each(|value| parser(value, &step.span))?;
        }
    }
    Ok(workloads)
}

fn one(item: Node, builtin: &Definitions) -> Result<Workload, Fault> {
    let span = item.span.clone();
    let Value::Table(mut own) = item.value else {
        return Err(Fault::new(span, "a workload is a table", "write [[workload]]"));
    };
    let table = match own.take("use") {
        None => own,
        Some(named) => {
            let definition = named.text().and_then(|name| builtin.get(name));
            let Some(definition) = definition else {
                let help = format!("the bench has {}; or give a `command`", definitions::names().join(", "));
                return Err(Fault::new(named.span.clone(), "the bench has no such workload", help));
            };
            instantiate(own, definition)?
        }
    };
    let workload: Workload = read(&node(span.clone(), table))?;
    if workload.command.trim().is_empty() {
        return Err(Fault::new(span, "the command is empty", "say what is to be run"));
    }
    workload.values.iter().try_for_each(|value| parser(value, &span))?;
    Ok(workload)
}

/// A definition with a scenario's settings: of its parameters, or of its fields.
fn instantiate(own: Table, definition: &Table) -> Result<Table, Fault> {
    let mut fields = definition.clone();
    let mut settings = match fields.take("parameters") {
        Some(Node { value: Value::Table(settings), .. }) => settings,
        _ => Table::default(),
    };
    let mut over = Table::default();
    for entry in own.entries {
        if settings.get(&entry.key).is_some() {
            settings.set(&entry.key, entry.at, entry.node);
        } else {
            over.entries.push(entry);
        }
    }
    let settings = Parameters::resolve(&settings, BTreeMap::new())?;
    settings.substitute_in(&mut fields)?;
    tree::lay_over(&mut fields, over, false, &|_| String::new())?;
    Ok(fields)
}

/// A value is read in one way, which makes sense.
fn parser(value: &ValueOf, span: &std::ops::Range<usize>) -> Result<(), Fault> {
    let fail = |message: String, help: &str| Err(Fault::new(span.clone(), message, help));
    let name = &value.name;
    let ways = [value.json.is_some(), value.csv.is_some(), value.regex.is_some()];
    if ways.iter().filter(|there| **there).count() != 1 {
        return fail(
            format!("value `{name}` is read in no way, or in several"),
            "give one of json, csv, regex",
        );
    }
    if let Some(pointer) = &value.json
        && !pointer.is_empty()
        && !pointer.starts_with('/')
    {
        return fail(
            format!("value `{name}`: `{pointer}` is no JSON pointer"),
            "begin it with `/`, e.g. /jobs/0/read/bw",
        );
    }
    if let Some(pattern) = &value.regex {
        match regex::Regex::new(pattern) {
            Err(error) => {
                return fail(format!("value `{name}`: {error}"), "see the syntax of Rust's regex crate");
            }
            Ok(regex) if !regex.capture_names().flatten().any(|group| group == "value") => {
                return fail(
                    format!("value `{name}`: the pattern has no group `value`"),
                    "write (?<value>[0-9.]+)",
                );
            }
            Ok(_) => {}
        }
    }
    if value.scale.is_some_and(|scale| !scale.is_finite() || scale == 0.0) {
        return fail(format!("value `{name}`: `scale` is a number other than 0"), "leave it out for 1");
    }
    Ok(())
}
