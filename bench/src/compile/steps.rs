//! Programs: which steps a trial of an arm has, with their verbs and arguments read.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::rc::Rc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::points::Point;
use crate::language::parameter::Parameters;
use crate::language::read::{explain, node, ranges, read};
use crate::language::text::{Fault, Texts};
use crate::language::tree::{Node, Table, Value};
use crate::language::typed::{Typed, split};
use crate::model::{Blocks, Guest, Host, Step, Time};
use crate::step::{self, RUNNER, TOGETHER, VERBS, Verb};

/// The most steps of a program, after loops.
const MOST: usize = 1000;
/// How often a step may be repeated.
const REPEAT: u32 = 1000;

/// What every step may have.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Common {
    /// Its name; by default its verb. What metrics call its events by.
    name: Option<String>,
    /// The part of the trial that its values belong to.
    phase: Option<String>,
    /// The blocks in which it is done: "3", "1..10"; the warm-up is block 0.
    blocks: Option<String>,
    /// How often it is done, one after the other.
    #[schemars(range(min = 1, max = 1000))]
    repeat: Option<u32>,
    /// After this long it has failed.
    deadline: Option<Time>,
    /// Whether the trial goes on when it fails.
    may_fail: bool,
}

/// Keys of [`Common`], and those that choose a step.
const COMMON: [&str; 6] = ["name", "phase", "blocks", "repeat", "deadline", "may_fail"];
const CHOICE: [&str; 3] = ["only", "except", "for"];

/// A step with its verb, as it was read, and its place.
#[derive(Debug, Clone)]
pub(super) struct Read {
    pub(super) step: Step,
    pub(super) verb: Option<Verb>,
    pub(super) chains: Vec<Vec<Read>>,
    pub(super) span: Range<usize>,
}

/// The step of a name, which is its verb's where it has none.
pub(super) fn find<'a>(tables: &'a mut Table, name: &str) -> Option<&'a mut Table> {
    let Some(Node { value: Value::List(steps), .. }) = tables.get_mut("step") else { return None };
    steps.iter_mut().find_map(|step| match &mut step.value {
        Value::Table(step) if step.name().or_else(|| verb(step)) == Some(name) => Some(step),
        _ => None,
    })
}

/// The verb of a step: the first that it has.
fn verb(step: &Table) -> Option<&'static str> {
    VERBS.iter().copied().find(|verb| step.get(verb).is_some())
}

/// The program of a point.
pub(super) fn program(
    tables: &Table,
    point: &Point,
    parameters: &Parameters,
    texts: &Texts,
) -> Result<Vec<Read>, Fault> {
    let Some(steps) = tables.get("step") else {
        return Err(Fault::new(
            0..0,
            "a trial has no steps",
            "write [[step]], and for example place = \"vm\"",
        ));
    };
    let Some(items) = steps.list() else {
        return Err(Fault::new(steps.span.clone(), "`step` is a list of tables", "write [[step]]"));
    };
    let mut reader = Reader { tables, point, texts, names: BTreeSet::new(), count: 0 };
    reader.chain(items, parameters)
}

struct Reader<'a> {
    tables: &'a Table,
    point: &'a Point,
    texts: &'a Texts,
    names: BTreeSet<String>,
    count: usize,
}

impl Reader<'_> {
    fn chain(&mut self, items: &[Node], parameters: &Parameters) -> Result<Vec<Read>, Fault> {
        let mut program = Vec::new();
        for item in items {
            let Some(table) = item.table() else {
                return Err(Fault::new(item.span.clone(), "a step is a table", "write [[step]]"));
            };
            if !self.is_chosen(table)? {
                continue;
            }
            match table.get("for") {
                None => program.push(self.step(item, table, parameters, None)?),
                Some(each) => {
                    let (name, values) = self.each(each)?;
                    for value in values {
                        let text = Node { span: each.span.clone(), value: Value::Text(value.clone()) };
                        let parameters = parameters.with(&name, text);
                        program.push(self.step(item, table, &parameters, Some(&value))?);
                    }
                }
            }
            if self.count > MOST {
                return Err(Fault::new(
                    item.span.clone(),
                    format!("a trial has more than {MOST} steps"),
                    "use fewer",
                ));
            }
        }
        Ok(program)
    }

    /// `g in guests`: the name, and the names that it goes through.
    fn each(&self, node: &Node) -> Result<(String, Vec<String>), Fault> {
        let words: Vec<&str> = node.text().unwrap_or_default().split_whitespace().collect();
        let list = match words.as_slice() {
            [_, "in", "guests"] => "guest",
            [_, "in", "hosts"] => "host",
            [_, "in", "servers"] => "server",
            _ => {
                let help = "write for = \"g in guests\", or hosts, or servers, and ${g} in the step";
                return Err(Fault::new(node.span.clone(), "this is not what a step can be done for", help));
            }
        };
        let names = self.tables.items(list).filter_map(|(_, item)| item.name().map(str::to_owned));
        Ok((words[0].to_owned(), names.collect()))
    }

    /// Whether a step is one of this point's program.
    fn is_chosen(&self, table: &Table) -> Result<bool, Fault> {
        let only = match table.get("only") {
            None => true,
            Some(node) => self.matches(node)?,
        };
        let except = match table.get("except") {
            None => false,
            Some(node) => self.matches(node)?,
        };
        Ok(only && !except)
    }

    fn matches(&self, node: &Node) -> Result<bool, Fault> {
        let help = "write a list of arms, or of tables: only = [\"plain\", { rate = 64 }]";
        let Some(items) = node.list() else {
            return Err(Fault::new(node.span.clone(), "arms are given as a list", help));
        };
        let mut any = false;
        for item in items {
            any |= match &item.value {
                Value::Text(name) => {
                    if !self.tables.items("arm").any(|(_, arm)| arm.name() == Some(name)) {
                        let known: Vec<_> =
                            self.tables.items("arm").filter_map(|(_, arm)| arm.name()).collect();
                        let help = format!("arms are {}", known.join(", "));
                        return Err(Fault::new(item.span.clone(), format!("there is no arm `{name}`"), help));
                    }
                    self.point.factors.get("arm").is_some_and(|factor| factor.text == *name)
                }
                Value::Table(factors) => {
                    let mut all = true;
                    for entry in &factors.entries {
                        let Some(factor) = self.point.factors.get(&entry.key) else {
                            let message = format!("`{}` is no factor", entry.key);
                            let help = "factors are `arm` and the keys of [matrix]";
                            return Err(Fault::new(entry.at.clone(), message, help));
                        };
                        all &= entry.node.scalar().is_some_and(|text| text == factor.text);
                    }
                    all
                }
                _ => return Err(Fault::new(item.span.clone(), "this is no arm", help)),
            };
        }
        Ok(any)
    }

    fn step(
        &mut self,
        item: &Node,
        table: &Table,
        parameters: &Parameters,
        of: Option<&str>,
    ) -> Result<Read, Fault> {
        self.count += 1;
        let span = item.span.clone();
        let (_, mut table) = split(table.clone(), &CHOICE);
        let chains = table.take(TOGETHER);
        parameters.substitute_in(&mut table)?;
        let (common, arguments) = split(table, &COMMON);
        let common: Common = read(&node(span.clone(), common))?;
        let blocks = common.blocks.as_deref().map(|text| blocks(text, item)).transpose()?;
        let repeat = common.repeat.unwrap_or(1);
        if !(1..=REPEAT).contains(&repeat) {
            return Err(Fault::new(span, format!("repeat = {repeat}"), format!("use 1 to {REPEAT}")));
        }
        deadline(common.deadline, item)?;
        let (verb, own, arguments, chains) = if let Some(list) = chains {
            if let Some(entry) = arguments.entries.first() {
                let message = format!("`{}` has no meaning beside `{TOGETHER}`", entry.key);
                return Err(Fault::new(entry.at.clone(), message, "put it into the steps"));
            }
            (None, TOGETHER, serde_json::Value::Null, self.chains(&list, parameters)?)
        } else {
            let (verb, own) = arguments_of(&node(span.clone(), arguments))?;
            let json = verb.to_json().map_err(|error| Fault::new(span.clone(), error.to_string(), ""))?;
            (Some(verb), own, json, Vec::new())
        };
        let marked = match &verb {
            Some(Verb::Mark(mark)) => Some(mark.mark.clone()),
            _ => None,
        };
        let name = self.name(common.name.or(marked), own, of, &span)?;
        let step = Step {
            name,
            verb: own.to_owned(),
            arguments,
            phase: common.phase,
            deadline: common.deadline,
            may_fail: common.may_fail,
            blocks,
            repeat,
            chains: chains.iter().map(|chain| chain.iter().map(|read| read.step.clone()).collect()).collect(),
            place: self.texts.line(span.start),
        };
        Ok(Read { step, verb, chains, span })
    }

    fn chains(&mut self, list: &Node, parameters: &Parameters) -> Result<Vec<Vec<Read>>, Fault> {
        let help =
            "write together = [[{ migrate = \"vm1\", to = \"b\" }], [{ migrate = \"vm2\", to = \"c\" }]]";
        let fail =
            |span: &Range<usize>| Fault::new(span.clone(), "`together` is a list of lists of steps", help);
        let chains = list.list().ok_or_else(|| fail(&list.span))?;
        chains
            .iter()
            .map(|chain| self.chain(chain.list().ok_or_else(|| fail(&chain.span))?, parameters))
            .collect()
    }

    /// A name that no other step of the program has.
    fn name(
        &mut self,
        given: Option<String>,
        verb: &str,
        of: Option<&str>,
        span: &Range<usize>,
    ) -> Result<String, Fault> {
        let is_given = given.is_some();
        let mut name = given.unwrap_or_else(|| verb.to_owned());
        if let Some(of) = of {
            name = format!("{name}-{of}");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            let help = "use up to 64 letters, digits, `-` and `_`";
            return Err(Fault::new(span.clone(), format!("`{name}` cannot be the name of a step"), help));
        }
        if self.names.insert(name.clone()) {
            return Ok(name);
        }
        if is_given {
            let help = "name each once, so that metrics can tell them apart";
            return Err(Fault::new(span.clone(), format!("two steps are called `{name}`"), help));
        }
        let free =
            (2..=MOST + 2).map(|number| format!("{name}-{number}")).find(|name| !self.names.contains(name));
        let free = free.unwrap_or(name);
        self.names.insert(free.clone());
        Ok(free)
    }
}

/// The verb of a step with its arguments.
fn arguments_of(node: &Node) -> Result<(Verb, &'static str), Fault> {
    let empty = Table::default();
    let table = node.table().unwrap_or(&empty);
    let Some(own) = verb(table) else {
        let known = VERBS.join(", ");
        let written: Vec<_> = table.entries.iter().map(|entry| entry.key.as_str()).collect();
        let message = if written.is_empty() {
            "this step does nothing".to_owned()
        } else {
            format!("no key of this step is a verb ({})", written.join(", "))
        };
        return Err(Fault::new(node.span.clone(), message, format!("verbs are {known}, {TOGETHER}")));
    };
    let schema = schema_of(own);
    match Verb::read(own, Typed(node)) {
        Some(Ok(verb)) => {
            ranges(node, &schema)?;
            Ok((verb, own))
        }
        Some(Err(error)) => Err(explain(&error, node, &schema)),
        None => Err(Fault::new(node.span.clone(), format!("there is no verb `{own}`"), "")),
    }
}

/// The schema of a verb's arguments. All are made once, as reading a step needs one.
fn schema_of(verb: &str) -> Rc<Schema> {
    thread_local! {
        static MADE: HashMap<&'static str, Rc<Schema>> = {
            let mut generator = SchemaGenerator::default();
            let mut schemas = step::schemas(&mut generator);
            for (_, schema) in &mut schemas {
                if let Some(object) = schema.as_object_mut() {
                    object.insert("$defs".into(), serde_json::Value::Object(generator.definitions().clone()));
                }
            }
            schemas.into_iter().map(|(name, schema)| (name, Rc::new(schema))).collect()
        };
    }
    MADE.with(|made| made.get(verb).map(Rc::clone)).unwrap_or_default()
}

fn deadline(deadline: Option<Time>, item: &Node) -> Result<(), Fault> {
    let (least, most) = (Time::from_secs(1), Time::from_secs(24 * 3600));
    let Some(time) = deadline.filter(|time| !(least..=most).contains(time)) else { return Ok(()) };
    let span = item
        .table()
        .and_then(|table| table.get("deadline"))
        .map_or(item.span.clone(), |node| node.span.clone());
    let message = format!("with deadline = \"{time}\" a step gives up everything, or nothing");
    Err(Fault::new(span, message, format!("use \"{least}\" to \"{most}\"")))
}

/// `3`, `1..10`.
fn blocks(text: &str, item: &Node) -> Result<Blocks, Fault> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    match (from.trim().parse(), to.trim().parse()) {
        (Ok(from), Ok(to)) if from <= to => Ok(Blocks { from, to }),
        _ => {
            let span = item
                .table()
                .and_then(|table| table.get("blocks"))
                .map_or(item.span.clone(), |n| n.span.clone());
            Err(Fault::new(span, format!("`{text}` is no range of blocks"), "write \"3\" or \"1..10\""))
        }
    }
}

/// The names that steps can use.
pub(super) struct Known {
    guests: BTreeSet<String>,
    hosts: BTreeSet<String>,
    servers: BTreeSet<String>,
    links: BTreeSet<String>,
    workloads: BTreeSet<String>,
}

impl Known {
    pub(super) fn of(tables: &Table, hosts: &[Host], guests: &[Guest]) -> Self {
        let names =
            |list: &str| tables.items(list).filter_map(|(_, item)| item.name().map(str::to_owned)).collect();
        Self {
            guests: guests.iter().map(|guest| guest.name.clone()).collect(),
            hosts: hosts.iter().map(|host| host.name.clone()).collect(),
            servers: names("server"),
            links: names("link"),
            workloads: names("workload"),
        }
    }
}

/// Names of a kind that a step uses, and whether one is known.
type Used<'a> = (&'a str, &'a [&'a str], &'a dyn Fn(&str) -> bool);

/// Refuses steps that name what is not there.
pub(super) fn check(program: &[Read], known: &Known) -> Result<(), Fault> {
    let mut before: BTreeSet<&str> = BTreeSet::new();
    for read in all(program) {
        let Some(verb) = &read.verb else {
            before.insert(&read.step.name);
            continue;
        };
        let uses = verb.uses();
        let machine = |name: &str| {
            known.guests.contains(name)
                || known.hosts.contains(name)
                || known.servers.contains(name)
                || name == RUNNER
        };
        let lists: [Used<'_>; 5] = [
            ("guest", &uses.guests, &|name| known.guests.contains(name)),
            ("host", &uses.hosts, &|name| known.hosts.contains(name)),
            ("machine", &uses.machines, &machine),
            ("link", &uses.links, &|name| known.links.contains(name)),
            ("workload", &uses.workloads, &|name| known.workloads.contains(name)),
        ];
        for (kind, used, is_known) in lists {
            if let Some(unknown) = used.iter().find(|name| !is_known(name)) {
                let all: Vec<&str> = match kind {
                    "guest" => known.guests.iter().map(String::as_str).collect(),
                    "host" => known.hosts.iter().map(String::as_str).collect(),
                    "link" => known.links.iter().map(String::as_str).collect(),
                    "workload" => known.workloads.iter().map(String::as_str).collect(),
                    _ => known
                        .guests
                        .iter()
                        .chain(&known.hosts)
                        .chain(&known.servers)
                        .map(String::as_str)
                        .collect(),
                };
                let there = if all.is_empty() {
                    "there is none".to_owned()
                } else {
                    format!("there are {}", all.join(", "))
                };
                let message = format!(
                    "step `{}` names a {kind} `{unknown}` that the file does not have",
                    read.step.name
                );
                return Err(Fault::new(read.span.clone(), message, there));
            }
        }
        if let Verb::Wait(wait) = verb
            && let Some(since) = wait.since.as_deref().filter(|since| !before.contains(since))
        {
            let message = format!(
                "step `{}` waits since a step `{since}` that its program does not have before it",
                read.step.name
            );
            return Err(Fault::new(read.span.clone(), message, "name a step before it"));
        }
        before.insert(&read.step.name);
    }
    Ok(())
}

/// All steps of a program, those of chains included.
pub(super) fn all(program: &[Read]) -> Box<dyn Iterator<Item = &Read> + '_> {
    Box::new(
        program
            .iter()
            .flat_map(|read| std::iter::once(read).chain(read.chains.iter().flat_map(|chain| all(chain)))),
    )
}
