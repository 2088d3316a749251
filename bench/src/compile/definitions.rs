//! What must hold of metrics, comparisons, figures and claims: that what they name can be there.

use std::collections::{BTreeMap, BTreeSet};

use super::machines::every;
use super::place;
use crate::language::text::{Fault, Texts};
use crate::language::tree::Table;
use crate::model::metric::{Kind, Selector, WorkloadValue, own};
use crate::model::{Arm, Metric, Plan, ValueOf, figure};
use crate::step::{OF_ALL, Verb};

/// Events that come whatever a program does.
const ALWAYS: [&str; 1] = ["clock"];

/// Adds a metric for each value of a workload or a command, where the scenario defines none of that name.
pub(super) fn complete(plan: &mut Plan) {
    let mut more: Vec<Metric> = Vec::new();
    let mut add = |workload: &str, value: &ValueOf, metrics: &[Metric]| {
        if metrics.iter().chain(&more).any(|metric| metric.name == value.name) {
            return;
        }
        more.push(of_value(workload, value));
    };
    for arm in &plan.arms {
        for workload in &arm.workloads {
            workload.values.iter().for_each(|value| add(&workload.name, value, &plan.metrics));
        }
        for step in every(&arm.program) {
            if let Ok(Some(Verb::Command(command))) = Verb::of(step) {
                command.values.iter().for_each(|value| add(&step.name, value, &plan.metrics));
            }
        }
    }
    // Two workloads may give a value of one name: a metric that is of any.
    let mut sources: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for arm in &plan.arms {
        for workload in &arm.workloads {
            for value in &workload.values {
                sources.entry(value.name.clone()).or_default().insert(workload.name.clone());
            }
        }
    }
    for metric in &mut more {
        if sources.get(&metric.name).is_some_and(|workloads| workloads.len() > 1)
            && let Some(value) = &mut metric.value
        {
            value.workload.clear();
        }
    }
    plan.metrics.extend(more);
}

fn of_value(workload: &str, value: &ValueOf) -> Metric {
    Metric {
        name: value.name.clone(),
        title: if value.title.is_empty() { value.name.clone() } else { value.title.clone() },
        unit: value.unit.clone(),
        better: value.better,
        value: Some(WorkloadValue { workload: workload.to_owned(), of: value.name.clone() }),
        ..Metric::default()
    }
}

/// Refuses definitions that name what no trial can give.
pub(super) fn check(plan: &Plan, tables: &Table, texts: &Texts) -> Result<(), Fault> {
    for metric in &plan.metrics {
        let at = |key: Option<&str>| place(tables, "metric", &metric.name, key);
        metric.check().map_err(|(message, help)| {
            Fault::new(at(None), format!("metric `{}`: {message}", metric.name), help)
        })?;
        if own().iter().any(|known| known.name == metric.name) {
            let message = format!("the bench has a metric `{}` of its own", metric.name);
            return Err(Fault::new(at(Some("name")), message, "rename yours"));
        }
        // A library may define more than a scenario has.
        if !texts.is_first(at(None).start) {
            continue;
        }
        for arm in &metric.only {
            arms(plan, arm)
                .map_err(|help| Fault::new(at(Some("only")), format!("there is no arm `{arm}`"), help))?;
        }
        if let Err(missing) = given_by_any(metric, plan) {
            let message = format!("metric `{}`: no step of any arm can give {missing}", metric.name);
            let help = "events are STEP.EVENT; `bench check` prints the steps, and bench/docs/metrics.md has the events";
            return Err(Fault::new(at(None), message, help));
        }
    }
    comparisons(plan, tables)?;
    figures(plan, tables)?;
    claims(plan, tables)
}

/// The arms of a name, by the factor `arm`; else those that there are.
fn arms(plan: &Plan, name: &str) -> Result<(), String> {
    let of = |arm: &Arm| arm.factors.get("arm").map(|factor| factor.text.clone()).unwrap_or_default();
    let known: BTreeSet<String> = plan.arms.iter().map(of).collect();
    if known.contains(name) || plan.arms.iter().any(|arm| arm.name == name) {
        return Ok(());
    }
    Err(format!("arms are {}", known.into_iter().collect::<Vec<_>>().join(", ")))
}

fn given_by_any(metric: &Metric, plan: &Plan) -> Result<(), String> {
    let mut missing = Err("anything".to_owned());
    for arm in &plan.arms {
        match given(metric, arm) {
            Ok(()) => return Ok(()),
            Err(what) => missing = Err(what),
        }
    }
    missing
}

/// Whether a program can give all that a metric is of; else what it cannot.
pub(crate) fn given(metric: &Metric, arm: &Arm) -> Result<(), String> {
    let named = arm.factors.get("arm").map_or(arm.name.as_str(), |factor| factor.text.as_str());
    if !metric.only.is_empty() && !metric.only.iter().any(|name| name == named) {
        return Err(format!("it in arm `{named}`, which it does not have"));
    }
    let steps = every(&arm.program);
    if let Some(Kind::Value(value)) = metric.kind() {
        let gives = |workload: &str| value.workload.is_empty() || workload == value.workload;
        let of_workload =
            arm.workloads.iter().any(|one| gives(&one.name) && one.values.iter().any(|v| v.name == value.of));
        let of_step = steps.iter().any(|step| match Verb::of(step) {
            Ok(Some(Verb::Command(command))) => {
                gives(&step.name) && command.values.iter().any(|one| one.name == value.of)
            }
            Ok(Some(Verb::Probe(_) | Verb::Mount(_))) => gives(&step.name),
            _ => false,
        });
        return if of_workload || of_step {
            Ok(())
        } else {
            Err(format!("value `{}` of `{}`", value.of, value.workload))
        };
    }
    for selector in metric.selectors() {
        event(selector, &steps)?;
    }
    Ok(())
}

fn event(selector: &Selector, steps: &[&crate::model::Step]) -> Result<(), String> {
    let Some(name) = &selector.event else { return Ok(()) };
    let (step, event) = Selector::split(name);
    if step.is_none() && ALWAYS.contains(&event) {
        return Ok(());
    }
    let gives = steps.iter().filter(|one| step.is_none_or(|name| one.name == name)).any(|one| {
        OF_ALL.contains(&event) || matches!(Verb::of(one), Ok(Some(verb)) if verb.events().contains(&event))
    });
    if gives { Ok(()) } else { Err(format!("event `{name}`")) }
}

fn comparisons(plan: &Plan, tables: &Table) -> Result<(), Fault> {
    for compare in &plan.comparisons {
        let at = |key| place(tables, "compare", &compare.name, Some(key));
        for (key, side) in [("from", &compare.from), ("to", &compare.to)] {
            if let Some(arm) = &side.arm {
                arms(plan, arm)
                    .map_err(|help| Fault::new(at(key), format!("there is no arm `{arm}`"), help))?;
            }
            if let Some(metric) = &side.metric {
                metrics(plan, metric)
                    .map_err(|help| Fault::new(at(key), format!("there is no metric `{metric}`"), help))?;
            }
            if let Some(phase) = &side.phase {
                phases(plan, phase)
                    .map_err(|help| Fault::new(at(key), format!("there is no phase `{phase}`"), help))?;
            }
        }
        if compare.from == compare.to {
            return Err(Fault::new(at("to"), "both sides are the same", "name another arm, phase or metric"));
        }
        for metric in &compare.metrics {
            metrics(plan, metric)
                .map_err(|help| Fault::new(at("metrics"), format!("there is no metric `{metric}`"), help))?;
        }
    }
    Ok(())
}

fn metrics(plan: &Plan, name: &str) -> Result<(), String> {
    if plan.metric(name).is_some() || own().iter().any(|metric| metric.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = plan.metrics.iter().map(|metric| metric.name.as_str()).collect();
    Err(format!("metrics are {}", if known.is_empty() { "(none)".into() } else { known.join(", ") }))
}

/// Phases are those of steps, of parts of records, and guests' names.
fn phases(plan: &Plan, name: &str) -> Result<(), String> {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    for arm in &plan.arms {
        known.extend(every(&arm.program).iter().filter_map(|step| step.phase.as_deref()));
        known.extend(arm.guests.iter().map(|guest| guest.name.as_str()));
    }
    known
        .extend(plan.metrics.iter().flat_map(|metric| metric.phases.iter().map(|phase| phase.name.as_str())));
    if known.contains(name) {
        return Ok(());
    }
    Err(format!("phases are {}", known.into_iter().collect::<Vec<_>>().join(", ")))
}

fn figures(plan: &Plan, tables: &Table) -> Result<(), Fault> {
    for one in &plan.figures {
        let fail = |key: &str, message: String, help: String| {
            Err(Fault::new(
                place(tables, "figure", &one.name, Some(key)),
                format!("figure `{}`: {message}", one.name),
                help,
            ))
        };
        let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if one.name.is_empty() || !one.name.chars().all(letter) {
            return fail(
                "name",
                "this is no name of a file".into(),
                "use letters, digits, `-` and `_`".into(),
            );
        }
        let counted = one.counts.iter().flat_map(|count| count.metrics.iter().chain([&count.of]));
        let cells = one.groups.iter().chain(&one.series);
        let named = one.metrics.iter().chain(&one.absolute).chain(counted);
        for metric in named.chain(cells.clone().filter_map(|cell| cell.metric.as_ref())) {
            if let Err(help) = metrics(plan, metric) {
                return fail("metrics", format!("there is no metric `{metric}`"), help);
            }
            let any = plan.metric(metric).is_none_or(|metric| given_by_any(metric, plan).is_ok());
            if !any {
                return fail(
                    "metrics",
                    format!("no arm has metric `{metric}`"),
                    "remove it, or add a step that gives it".into(),
                );
            }
        }
        for cell in cells {
            if let Some(phase) = &cell.phase
                && let Err(help) = phases(plan, phase)
            {
                return fail("series", format!("there is no phase `{phase}`"), help);
            }
        }
        let shown = one.arms.iter().chain(&one.ours).chain(&one.against);
        for arm in shown.chain(one.groups.iter().chain(&one.series).filter_map(|cell| cell.arm.as_ref())) {
            if let Err(help) = arms(plan, arm) {
                return fail("arms", format!("there is no arm `{arm}`"), help);
            }
        }
        match (&one.x, one.kind) {
            (None, figure::Kind::Curve) => {
                return fail(
                    "kind",
                    "a curve has an axis `x`".into(),
                    "name a numeric key of [matrix]".into(),
                );
            }
            (Some(x), figure::Kind::Curve) => {
                let numeric = plan
                    .arms
                    .iter()
                    .all(|arm| arm.factors.get(x).is_some_and(|factor| factor.number.is_some()));
                if !numeric {
                    let help = "name a key of [matrix] whose values are numbers or quantities";
                    return fail("x", format!("`{x}` is no numeric factor"), help.into());
                }
            }
            (Some(_), _) => return fail("x", "only a curve has an axis `x`".into(), "remove it".into()),
            (None, _) => {}
        }
    }
    Ok(())
}

fn claims(plan: &Plan, tables: &Table) -> Result<(), Fault> {
    for claim in &plan.claims {
        let fail = |key: &str, message: String, help: String| {
            Err(Fault::new(
                place(tables, "claim", &claim.name, Some(key)),
                format!("claim `{}`: {message}", claim.name),
                help,
            ))
        };
        if claim.compare.is_none() && claim.metric.is_none() && claim.metrics.is_empty() {
            return fail("name", "it is about nothing".into(), "give `compare` or `metric`".into());
        }
        if let Some(compare) = &claim.compare
            && !plan.comparisons.iter().any(|one| one.name == *compare)
        {
            let known: Vec<&str> = plan.comparisons.iter().map(|one| one.name.as_str()).collect();
            return fail(
                "compare",
                format!("there is no compare `{compare}`"),
                format!("there are {}", known.join(", ")),
            );
        }
        for metric in claim.metric.iter().chain(&claim.metrics) {
            if let Err(help) = metrics(plan, metric) {
                return fail("metric", format!("there is no metric `{metric}`"), help);
            }
        }
        for arm in claim.arm.iter().chain(&claim.expected_of) {
            if let Err(help) = arms(plan, arm) {
                return fail("arm", format!("there is no arm `{arm}`"), help);
            }
        }
        if let Some(phase) = &claim.phase
            && let Err(help) = phases(plan, phase)
        {
            return fail("phase", format!("there is no phase `{phase}`"), help);
        }
    }
    Ok(())
}
