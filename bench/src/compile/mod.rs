//! From a scenario's files to a [`Plan`]: the one place that knows what the language means.
//!
//! Each arm is compiled for itself: what it sets is laid over the scenario, parameters are put in their places, steps are chosen, and
//! what is left is read as the types of [`crate::model`]. Then all names are looked up, so that a plan that is there can be done.
//!
//! * `points`: arms and matrix; `steps`: programs; `workloads`: definitions that come with the bench.
//! * `machines` and `definitions`: what must hold of machines, metrics, figures and claims. `order`: the trials.

mod definitions;
mod machines;
mod order;
mod points;
mod steps;
mod workloads;

use std::io;
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::language::ScenarioError;
use crate::language::document::Document;
use crate::language::parameter::Parameters;
use crate::language::read::{node, read};
use crate::language::text::{Fault, Texts};
use crate::language::tree::{self, Node, Table};
use crate::model::{Design, Host, Link, Plan, Server, Source, Testbed};

/// A plan, and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    /// What to do.
    pub plan: Plan,
    /// The scenario's files.
    pub source: Source,
}

/// Compiles a scenario file with a profile laid over it. `full` is the file itself, as is none.
///
/// # Errors
/// A file cannot be read, or something in it is wrong: then with file, line, column and what to do.
pub fn load(path: &Path, profile: Option<&str>) -> Result<Compiled, ScenarioError> {
    let fetch = |path: &Path| ctx_io::bounded::read_to_string(path, ctx_io::bounded::CONFIG);
    let text =
        fetch(path).map_err(|source| ScenarioError::unreadable(path.display().to_string(), &source))?;
    parse(path, &text, profile, &fetch)
}

/// The same from a text; `path` is what errors call it, and what the scenario is named after. `fetch` gives the files that it includes.
///
/// # Errors
/// As [`load`].
pub fn parse(
    path: impl AsRef<Path>,
    text: &str,
    profile: Option<&str>,
    fetch: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Compiled, ScenarioError> {
    let profile = profile.filter(|name| *name != "full");
    let mut document = Document::read(path.as_ref(), text, fetch)?;
    let source = document.source(profile);
    let builtin = workloads::add(&mut document.texts);
    let texts = &document.texts;
    let builtin = builtin.map_err(|fault| texts.error(fault))?;
    let compiled = |profile: Option<&str>| {
        let table = document.over(profile)?;
        plan(&document.name, table, &builtin, texts)
    };
    let chosen = compiled(profile).map_err(|fault| texts.error(fault))?;
    // A mistake in any profile is found at once.
    for other in document.profiles().map(Some).chain([None]).filter(|other| *other != profile) {
        compiled(other).map_err(|fault| texts.error(fault))?;
    }
    Ok(Compiled { plan: chosen, source })
}

/// Whether a text is a scenario with steps, and not one of an experiment that the bench knows ([`crate::scenario`]).
pub fn has_steps(text: &str) -> bool {
    tree::parse(text, 0)
        .is_ok_and(|table| ["step", "arm", "include", "matrix"].iter().any(|key| table.get(key).is_some()))
}

/// What the head of a scenario says.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Head {
    /// One line that says what is measured.
    title: String,
    /// Who provides the machines.
    #[serde(default)]
    testbed: Testbed,
    /// Blocks, order and deadlines.
    design: Design,
}

/// Keys of a scenario beside those of [`Head`].
const TABLES: [&str; 14] = [
    "include",
    "host",
    "server",
    "guest",
    "link",
    "parameters",
    "arm",
    "matrix",
    "workload",
    "step",
    "metric",
    "compare",
    "figure",
    "claim",
];

fn plan(name: &str, table: Table, builtin: &workloads::Definitions, texts: &Texts) -> Result<Plan, Fault> {
    let (tables, head) = crate::language::typed::split(table, &TABLES);
    let head: Head = read(&node(0..0, head))?;
    if head.title.trim().is_empty() {
        return Err(Fault::new(0..0, "the title is empty", "say in one line what is measured"));
    }
    let points = points::points(&tables)?;
    order::few(points.len(), &head.design, &tables)?;
    // What the arms share is that of the file itself.
    let parameters = parameters(&tables)?;
    let mut arms = Vec::with_capacity(points.len());
    for point in &points {
        arms.push(points::arm(point, &tables, &parameters, builtin, texts)?);
    }
    let hosts: Vec<Host> = machines::hosts(&list(&tables, "host", &parameters)?)?;
    let servers: Vec<Server> = machines::servers(&list(&tables, "server", &parameters)?)?;
    let links: Vec<Link> = machines::links(&list(&tables, "link", &parameters)?)?;
    let mut plan = Plan {
        name: name.to_owned(),
        title: head.title,
        testbed: head.testbed,
        hosts,
        servers,
        links,
        arms,
        trials: Vec::new(),
        design: head.design,
        metrics: read_all(&list(&tables, "metric", &parameters)?)?,
        comparisons: read_all(&list(&tables, "compare", &parameters)?)?,
        figures: read_all(&list(&tables, "figure", &parameters)?)?,
        claims: read_all(&list(&tables, "claim", &parameters)?)?,
    };
    machines::check(&mut plan, &tables)?;
    definitions::complete(&mut plan);
    definitions::check(&plan, &tables, texts)?;
    plan.trials = order::trials(&plan, &tables)?;
    Ok(plan)
}

/// The parameters of a scenario, or of one of its arms.
fn parameters(tables: &Table) -> Result<Parameters, Fault> {
    let empty = Table::default();
    let own = match tables.get("parameters") {
        None => &empty,
        Some(node) => node.table().ok_or_else(|| {
            Fault::new(
                node.span.clone(),
                "`parameters` is a table",
                "write [parameters], and below it rate = 8",
            )
        })?,
    };
    Parameters::resolve(own, machines::names(tables))
}

/// The items of a list, with parameters in their places.
fn list(tables: &Table, key: &str, parameters: &Parameters) -> Result<Vec<Node>, Fault> {
    let Some(node) = tables.get(key) else { return Ok(Vec::new()) };
    let Some(items) = node.list() else {
        return Err(Fault::new(
            node.span.clone(),
            format!("`{key}` is a list of tables"),
            format!("write [[{key}]]"),
        ));
    };
    let mut items = items.to_vec();
    for item in &mut items {
        if item.table().is_none() {
            return Err(Fault::new(
                item.span.clone(),
                format!("a {key} is a table"),
                format!("write [[{key}]]"),
            ));
        }
        parameters.substitute(item)?;
    }
    Ok(items)
}

/// Reads all items of a list.
fn read_all<T: serde::de::DeserializeOwned + JsonSchema + 'static>(items: &[Node]) -> Result<Vec<T>, Fault> {
    items.iter().map(read).collect()
}

/// Where an item of a list stands, or one key of it.
fn place(tables: &Table, list: &str, name: &str, key: Option<&str>) -> std::ops::Range<usize> {
    let found = tables.items(list).find(|(_, item)| item.name() == Some(name));
    match found {
        None => 0..0,
        Some((span, item)) => {
            key.and_then(|key| item.get(key)).map_or_else(|| span.clone(), |node| node.span.clone())
        }
    }
}

#[cfg(test)]
mod tests;
