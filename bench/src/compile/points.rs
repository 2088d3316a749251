//! The points of a design: each arm at each combination of the matrix, and what it sets.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{list, machines, parameters, read_all, steps, workloads};
use crate::language::parameter::Parameters;
use crate::language::read::read;
use crate::language::text::{Fault, Texts};
use crate::language::tree::{NAMED, Node, Table, Value};
use crate::model::{Arm, Factor, Guest, Need, Rate, Size, Time};

/// The most trials of a design.
pub(super) const MOST: usize = 10_000;
/// Keys of an arm that set nothing.
const OWN: [&str; 4] = ["name", "title", "needs", "cannot"];

/// Lists that a plan has once, for all arms.
const SHARED: [&str; 6] = ["server", "link", "metric", "compare", "figure", "claim"];

/// One point: its name, its factors, and what it sets.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) name: String,
    pub(super) factors: BTreeMap<String, Factor>,
    /// Paths such as `guest.vm.memory`, or a parameter's name, with their values.
    set: Vec<(Vec<String>, Range<usize>, Node)>,
    needs: Option<Node>,
    cannot: Option<Node>,
}

/// All points, in the order of the file: the last key of the matrix changes first.
pub(super) fn points(tables: &Table) -> Result<Vec<Point>, Fault> {
    let mut points: Vec<Point> = tables.items("arm").map(|(_, arm)| of_arm(arm)).collect();
    let matrix = tables.get("matrix");
    if points.is_empty() && matrix.is_none() {
        let help = "write [[arm]] and name = \"one\", or [matrix]";
        return Err(Fault::new(0..0, "there is no arm", help));
    }
    if points.is_empty() {
        points.push(Point {
            name: String::new(),
            factors: BTreeMap::new(),
            set: Vec::new(),
            needs: None,
            cannot: None,
        });
    }
    let Some(matrix) = matrix else { return Ok(points) };
    let Some(table) = matrix.table() else {
        return Err(Fault::new(
            matrix.span.clone(),
            "`matrix` is a table",
            "write [matrix], and rate = [1, 2]",
        ));
    };
    for entry in &table.entries {
        let Some(values) = entry.node.list().filter(|values| !values.is_empty()) else {
            let help = format!("write {} = [1, 2]", entry.key);
            return Err(Fault::new(entry.node.span.clone(), "a matrix has lists of values", help));
        };
        if points.len().saturating_mul(values.len()) > MOST {
            let message = format!("the matrix has more than {MOST} points");
            return Err(Fault::new(entry.at.clone(), message, "use fewer values"));
        }
        for (index, value) in values.iter().enumerate() {
            if let Some(text) = value.scalar()
                && values[..index].iter().any(|before| before.scalar().as_ref() == Some(&text))
            {
                let message = format!("`{}` has the value {text} twice", entry.key);
                return Err(Fault::new(value.span.clone(), message, "name each value once"));
            }
        }
        let path = path(&entry.key);
        let mut more = Vec::with_capacity(points.len() * values.len());
        for point in &points {
            for value in values {
                let Some(text) = value.scalar() else {
                    let help = "use texts, numbers, true or false";
                    return Err(Fault::new(
                        value.span.clone(),
                        "a value of a matrix is no list and no table",
                        help,
                    ));
                };
                let mut point = point.clone();
                let between = if point.name.is_empty() { "" } else { ", " };
                point.name = format!("{}{between}{} = {text}", point.name, short(&entry.key));
                point.factors.insert(entry.key.clone(), factor(value, text));
                point.set.push((path.clone(), entry.at.clone(), value.clone()));
                more.push(point);
            }
        }
        points = more;
    }
    Ok(points)
}

/// The last word of a path: `memory` of `guest.vm.memory`.
fn short(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn path(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

fn of_arm(arm: &Table) -> Point {
    let name = arm.name().unwrap_or_default().to_owned();
    let mut set = Vec::new();
    for entry in arm.entries.iter().filter(|entry| !OWN.contains(&entry.key.as_str())) {
        flatten(path(&entry.key), &entry.at, &entry.node, &mut set);
    }
    let text = Factor { text: name.clone(), number: None, unit: String::new() };
    Point {
        factors: BTreeMap::from([("arm".to_owned(), text)]),
        name,
        set,
        needs: arm.get("needs").cloned(),
        cannot: arm.get("cannot").cloned(),
    }
}

/// What an arm sets, key by key, however deep it is written.
fn flatten(
    path: Vec<String>,
    at: &Range<usize>,
    node: &Node,
    set: &mut Vec<(Vec<String>, Range<usize>, Node)>,
) {
    let deep = path.first().is_some_and(|first| NAMED.contains(&first.as_str()) || first == "step");
    match &node.value {
        Value::Table(table) if deep => {
            for entry in &table.entries {
                let mut path = path.clone();
                path.push(entry.key.clone());
                flatten(path, &entry.at, &entry.node, set);
            }
        }
        _ => set.push((path, at.clone(), node.clone())),
    }
}

/// A value as a factor: a quantity is a number of its usual unit.
fn factor(node: &Node, text: String) -> Factor {
    let number = |number: f64, unit: &str| (Some(number), unit.to_owned());
    #[expect(clippy::cast_precision_loss, reason = "an axis needs no more than 53 bits")]
    let (number, unit) = match &node.value {
        Value::Integer(value) => number(*value as f64, ""),
        Value::Float(value) => number(*value, ""),
        Value::Text(text) => {
            if let Ok(size) = text.parse::<Size>() {
                number(size.bytes() as f64 / f64::from(1 << 20), "MiB")
            } else if let Ok(time) = text.parse::<Time>() {
                number(time.duration().as_secs_f64(), "s")
            } else if let Ok(rate) = text.parse::<Rate>() {
                number(rate.bits_per_second() as f64 / 1e6, "Mbit/s")
            } else {
                (None, String::new())
            }
        }
        _ => (None, String::new()),
    };
    Factor { text, number, unit }
}

/// Lays what a point sets over a scenario.
fn apply(point: &Point, tables: &Table) -> Result<Table, Fault> {
    let mut tables = tables.clone();
    for (path, at, node) in &point.set {
        let (first, rest) = path.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        if rest.is_empty() {
            let declared = match tables.get_mut("parameters").map(|node| &mut node.value) {
                Some(Value::Table(parameters)) if parameters.get(first).is_some() => Some(parameters),
                _ => None,
            };
            let Some(parameters) = declared else {
                let message = format!("`{first}` is no parameter");
                let help = format!(
                    "declare it: [parameters] {first} = …; or set a key of a machine: guest.NAME.memory"
                );
                return Err(Fault::new(at.clone(), message, help));
            };
            parameters.set(first, at.clone(), node.clone());
            continue;
        }
        set(&mut tables, first, rest, at, node)?;
    }
    Ok(tables)
}

fn set(tables: &mut Table, list: &str, path: &[String], at: &Range<usize>, node: &Node) -> Result<(), Fault> {
    let allowed = ["guest", "host", "workload", "step"];
    let (name, keys) = path.split_first().map_or(("", &[][..]), |(name, keys)| (name.as_str(), keys));
    if !allowed.contains(&list) || keys.is_empty() {
        let message = format!("`{list}.{}` cannot be set by an arm", path.join("."));
        let help = "arms set parameters, guest.NAME.key, host.NAME.key, workload.NAME.key or step.NAME.key";
        return Err(Fault::new(at.clone(), message, help));
    }
    let item = if list == "step" { steps::find(tables, name) } else { tables.item_mut(list, name) };
    let Some(mut table) = item else {
        let help = format!("name a {list} that the file has");
        return Err(Fault::new(at.clone(), format!("there is no {list} `{name}`"), help));
    };
    let Some((end, between)) = keys.split_last() else { return Ok(()) };
    for key in between {
        if table.get(key).is_none() {
            table.set(key, at.clone(), Node { span: at.clone(), value: Value::Table(Table::default()) });
        }
        table = match table.get_mut(key).map(|node| &mut node.value) {
            Some(Value::Table(inner)) => inner,
            _ => return Err(Fault::new(at.clone(), format!("`{key}` is no table"), "set a key of a table")),
        };
    }
    table.set(end, at.clone(), node.clone());
    Ok(())
}

/// Refuses a parameter that a point sets and that changes what all points share: the plan has that once, with the file's own value.
fn shared(point: &Point, tables: &Table, own: &Parameters, common: &Parameters) -> Result<(), Fault> {
    if point.set.iter().all(|(path, ..)| path.len() > 1) {
        return Ok(());
    }
    for key in SHARED {
        for (mine, theirs) in list(tables, key, own)?.iter().zip(&list(tables, key, common)?) {
            if !mine.same(theirs) {
                let name = mine.table().and_then(Table::name).unwrap_or_default();
                let message = format!("{key} `{name}` would be another one in arm `{}`", point.name);
                let help = format!(
                    "all arms share each {key}: use no parameter in it that an arm sets, or write two of them"
                );
                return Err(Fault::new(mine.span.clone(), message, help));
            }
        }
    }
    Ok(())
}

/// Compiles a point; `common` are the parameters without what points set.
pub(super) fn arm(
    point: &Point,
    tables: &Table,
    common: &Parameters,
    builtin: &workloads::Definitions,
    texts: &Texts,
) -> Result<Arm, Fault> {
    let tables = apply(point, tables)?;
    let parameters = parameters(&tables)?;
    shared(point, &tables, &parameters, common)?;
    let hosts = machines::hosts(&list(&tables, "host", &parameters)?)?;
    let guests: Vec<Guest> = machines::guests(&list(&tables, "guest", &parameters)?, &hosts)?;
    let steps = steps::program(&tables, point, &parameters, texts)?;
    let known = steps::Known::of(&tables, &hosts, &guests);
    steps::check(&steps, &known)?;
    let workloads = workloads::used(&tables, &steps, builtin, &parameters)?;
    let needs: Vec<Need> = match &point.needs {
        None => Vec::new(),
        Some(Node { value: Value::List(items), .. }) => read_all(items)?,
        Some(other) => {
            let help = "write needs = [{ program = \"fio\", package = \"fio\" }]";
            return Err(Fault::new(other.span.clone(), "`needs` is a list", help));
        }
    };
    let cannot = match &point.cannot {
        None => BTreeMap::new(),
        Some(node) => read(node)?,
    };
    Ok(Arm {
        name: point.name.clone(),
        factors: point.factors.clone(),
        guests,
        hosts: hosts.into_iter().map(|host| (host.name.clone(), host)).collect(),
        workloads,
        program: steps.into_iter().map(|step| step.step).collect(),
        needs,
        cannot,
    })
}
