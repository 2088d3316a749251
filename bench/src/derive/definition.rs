//! Files of metrics that a user defined, for runs that were made before ([`crate::model::metric`] is what can be written).

use std::path::Path;

use ctx_io::bounded;

use crate::language::read::read as typed;
use crate::language::text::{Fault, Texts};
use crate::language::{ScenarioError, tree};
use crate::metric;
use crate::model::Metric;
use crate::observe::trace;

/// The most metrics of one file.
const MOST: usize = 1000;

/// Reads a file of metrics.
///
/// # Errors
/// It cannot be read, or something in it is wrong: then with line, column and what to do.
pub fn read(path: &Path) -> Result<Vec<Metric>, ScenarioError> {
    let text = bounded::read_to_string(path, bounded::CONFIG).map_err(|source| {
        let help = "give a file of metrics, see bench/docs/metrics.md";
        ScenarioError::without_text(path.display().to_string(), format!("it cannot be read: {source}"), help)
    })?;
    parse(path, &text)
}

/// The metrics of a file's text.
///
/// # Errors
/// Something in it is wrong.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Metric>, ScenarioError> {
    let mut texts = Texts::default();
    let start = texts.add(path, text);
    metrics(text, start).map_err(|fault| texts.error(fault))
}

fn metrics(text: &str, start: usize) -> Result<Vec<Metric>, Fault> {
    let table = tree::parse(text, start)?;
    if let Some(other) = table.entries.iter().find(|entry| entry.key != "metric") {
        let message = format!("`{}` has no place in a file of metrics", other.key);
        return Err(Fault::new(other.at.clone(), message, "a file of metrics has [[metric]] alone"));
    }
    let items = table.get("metric").and_then(tree::Node::list).unwrap_or_default();
    if items.is_empty() || items.len() > MOST {
        let message = format!("{} metrics, and 1 to {MOST} are taken", items.len());
        return Err(Fault::new(start..start, message, "write [[metric]]"));
    }
    let mut metrics: Vec<Metric> = Vec::with_capacity(items.len());
    for item in items {
        let metric: Metric = typed(item)?;
        let checked = if metrics.iter().any(|before| before.name == metric.name) {
            Err(("there are two of this name".into(), "rename one".into()))
        } else {
            check(&metric)
        };
        checked.map_err(|(what, help): (String, String)| {
            Fault::new(item.span.clone(), format!("metric `{}`: {what}", metric.name), help)
        })?;
        metrics.push(metric);
    }
    Ok(metrics)
}

/// What holds of any metric, and that it is of what stored runs have.
fn check(metric: &Metric) -> Result<(), (String, String)> {
    metric.check()?;
    if metric::find(&metric.name).is_some() {
        return Err(("the bench has a metric of this name".into(), "rename yours".into()));
    }
    let of_scenarios = metric.value.is_some()
        || metric.over.is_some()
        || metric.gap.as_ref().is_some_and(|gap| gap.guest.is_some())
        || metric.percentile.as_ref().is_some_and(|percentile| percentile.guest.is_some())
        || metric.selectors().iter().any(|selector| selector.guest.is_some());
    if of_scenarios {
        let message = "`value`, `over` and `guest` are for metrics of scenarios with steps";
        return Err((message.into(), "remove them".into()));
    }
    for selector in metric.selectors() {
        let Some(event) = &selector.event else { continue };
        if !trace::EVENTS.contains(&event.as_str()) {
            return Err((
                format!("there is no event `{event}`"),
                format!("events are {}", trace::EVENTS.join(", ")),
            ));
        }
    }
    Ok(())
}
