//! What a metric that a user defined is in a trial.

use serde_json::Value;

use super::migration::{UNSTEADY, judge};
use crate::model::metric::{End, Kind, Parts, Percentile, Pick, Selector, Wanted};
use crate::model::{Metric, Sample};
use crate::observe::stream::{self, Beaten};
use crate::observe::trace::Trace;
use crate::plan::Trial;
use crate::store::{StoreError, StoredRun};

/// Why defined metrics cannot be computed from a run.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// An event or a stream is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run is older than observations, or has no hosts.
    #[error(
        "run {run} kept no events or streams of its trials, so no metric can be defined of them; measure again"
    )]
    NothingSeen {
        /// The run.
        run: String,
    },
    /// No trial gives a metric.
    #[error("metric `{metric}`: no trial of run {run} has it; block {block}, {arm}: {reason}")]
    Nowhere {
        /// The metric.
        metric: String,
        /// The run.
        run: String,
        /// Block of the first trial.
        block: u32,
        /// Its arm.
        arm: String,
        /// Why it has none.
        reason: String,
    },
    /// No arm that has it.
    #[error("metric `{metric}`: run {run} has none of the arms {only}")]
    NoArm {
        /// The metric.
        metric: String,
        /// The run.
        run: String,
        /// The arms that it is of.
        only: String,
    },
    /// A selector takes several.
    #[error(
        "metric `{metric}`, block {block}, {arm}: {what}; say which with `pick`, or tell them apart with `where` or `after`"
    )]
    Ambiguous {
        /// The metric.
        metric: String,
        /// Block of the trial.
        block: u32,
        /// Its arm.
        arm: String,
        /// What there are several of.
        what: String,
    },
}

/// Why a trial has no value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum No {
    /// Something is not there; one sentence.
    Missing(String),
    /// There are several; what.
    Several(String),
}

/// One value of a metric in a trial.
#[derive(Debug, Clone, PartialEq)]
struct Given {
    /// The part that it is of; empty for the whole trial.
    phase: String,
    /// The value; none for a pause no longer than that between two rows anyway.
    value: Option<f64>,
}

/// The samples of defined metrics in all trials of a run. A metric applies to the arms that give it in one trial at least:
/// in those, a trial without it is an invalid sample; in the others there is none.
///
/// # Errors
/// A stored file is damaged, the run kept nothing, a metric is in no trial, or what it is of is not told apart.
pub fn samples(run: &StoredRun, definitions: &[Metric]) -> Result<Vec<Sample>, EvaluateError> {
    if definitions.is_empty() {
        return Ok(Vec::new());
    }
    let traces: Vec<_> =
        Trace::all(run)?.into_iter().map(|(order, trace)| (order, Seen::of(trace))).collect();
    if traces.is_empty() {
        return Err(EvaluateError::NothingSeen { run: run.manifest.run.clone() });
    }
    let mut samples = Vec::new();
    for definition in definitions {
        let mut found = Vec::new();
        for (order, seen) in &traces {
            let trial = run.manifest.plan.trials.iter().find(|trial| trial.order == *order);
            let Some(trial) = trial.filter(|trial| has(definition, trial)) else { continue };
            let values = match evaluate(definition, seen) {
                Err(No::Several(what)) => {
                    return Err(EvaluateError::Ambiguous {
                        metric: definition.name.clone(),
                        block: trial.block,
                        arm: trial.arm.to_string(),
                        what,
                    });
                }
                Ok(values) => Ok(values),
                Err(No::Missing(reason)) => Err(reason),
            };
            found.push((trial, values, doubt(definition, &seen.trace)));
        }
        let given = |arm| found.iter().any(|(trial, values, _)| trial.arm == arm && values.is_ok());
        if !found.iter().any(|(trial, ..)| given(trial.arm)) {
            return Err(nowhere(run, definition, found.first().map(|(trial, values, _)| (*trial, values))));
        }
        for (trial, values, doubt) in found.iter().filter(|(trial, ..)| given(trial.arm)) {
            // The machines are those of the trial's other samples.
            let Some(like) = run.samples.iter().find(|sample| sample.order == trial.order) else { continue };
            let sample = Sample {
                block: trial.block,
                arm: trial.arm.name().to_owned(),
                metric: definition.name.clone(),
                phase: String::new(),
                value: None,
                unit: definition.unit.clone(),
                valid: doubt.is_none(),
                reason: doubt.clone().unwrap_or_default(),
                ..like.clone()
            };
            match values {
                Err(reason) => samples.push(Sample { valid: false, reason: reason.clone(), ..sample }),
                Ok(values) => samples.extend(values.iter().map(|given| Sample {
                    phase: given.phase.clone(),
                    value: given.value,
                    ..sample.clone()
                })),
            }
        }
    }
    Ok(samples)
}

/// Whether the arm of a trial has a metric, as far as that says.
fn has(definition: &Metric, trial: &Trial) -> bool {
    definition.only.is_empty() || definition.only.iter().any(|arm| arm == trial.arm.name())
}

/// Why no trial has a metric: that of the first one that could.
fn nowhere(
    run: &StoredRun,
    definition: &Metric,
    first: Option<(&Trial, &Result<Vec<Given>, String>)>,
) -> EvaluateError {
    let (metric, run) = (definition.name.clone(), run.manifest.run.clone());
    match first {
        Some((trial, values)) => EvaluateError::Nowhere {
            metric,
            run,
            block: trial.block,
            arm: trial.arm.to_string(),
            reason: values.as_ref().err().cloned().unwrap_or_default(),
        },
        None => EvaluateError::NoArm { metric, run, only: definition.only.join(", ") },
    }
}

/// Why the values of a trial may not be used, whatever they are.
fn doubt(definition: &Metric, trace: &Trace) -> Option<String> {
    if definition.steady && trace.is_unsteady() {
        return Some(UNSTEADY.to_owned());
    }
    definition.clock.as_deref().and_then(|host| judge(trace, host).err())
}

/// A trace with its events as JSON, for keys and pointers.
struct Seen {
    trace: Trace,
    events: Vec<Value>,
}

impl Seen {
    fn of(trace: Trace) -> Seen {
        // It was read from JSON.
        let events =
            trace.observations.iter().map(|seen| serde_json::to_value(seen).unwrap_or_default()).collect();
        Seen { trace, events }
    }
}

/// An event or a row.
#[derive(Clone, Copy)]
enum Hit<'a> {
    Event(u64, &'a Value),
    Row(u64),
}

impl Hit<'_> {
    const fn at(&self) -> u64 {
        match *self {
            Hit::Event(at, _) | Hit::Row(at) => at,
        }
    }
}

/// What a metric is in a trial.
fn evaluate(definition: &Metric, seen: &Seen) -> Result<Vec<Given>, No> {
    let factor = definition.factor();
    if let Some(Kind::Parts(parts)) = definition.kind() {
        return self::parts(parts, factor, seen);
    }
    let interval = definition.gap.as_ref().and_then(|gap| gap.interval);
    let mut value = Some(number_of(definition, seen)?);
    if let Some(interval) = interval {
        value = value.map(|value| value - interval.nanos() as f64).filter(|more| *more > 0.0);
    }
    Ok(vec![Given { phase: String::new(), value: value.map(|value| value * factor) }])
}

/// The parts of a record, by their names.
fn parts(parts: &Parts, factor: f64, seen: &Seen) -> Result<Vec<Given>, No> {
    let missing = |what: String| No::Missing(format!("there is {what} in {}", told(&parts.of)));
    let Hit::Event(_, event) = one(&parts.of, seen)? else {
        return Err(No::Missing("a row of a stream has no parts".into()));
    };
    let list = event.pointer(&parts.list).and_then(Value::as_array);
    let list = list.ok_or_else(|| missing(format!("no list at {}", parts.list)))?;
    let part = |part: &Value| {
        let number = |pointer: &str| {
            part.pointer(pointer)
                .and_then(Value::as_f64)
                .ok_or_else(|| missing(format!("a part without {pointer}")))
        };
        let name = part.pointer(&parts.name).and_then(Value::as_str);
        let phase = name.ok_or_else(|| missing(format!("a part without {}", parts.name)))?.to_owned();
        Ok(Given { phase, value: Some((number(&parts.to)? - number(&parts.from)?) * factor) })
    };
    list.iter().map(part).collect()
}

/// The number that a metric of one value is, before its unit.
fn number_of(definition: &Metric, seen: &Seen) -> Result<f64, No> {
    Ok(match definition.kind() {
        Some(Kind::Span(from, to)) => {
            let (from, to) = (moment(from, seen)?, moment(to, seen)?);
            // Nanoseconds since boot are exact in 53 bits for a hundred days; the difference is, in any case.
            if to >= from { (to - from) as f64 } else { -((from - to) as f64) }
        }
        Some(Kind::Field(field)) => {
            let Hit::Event(_, event) = one(&field.selector, seen)? else {
                return Err(No::Missing("a row of a stream has no field".into()));
            };
            event.pointer(&field.pointer).and_then(Value::as_f64).ok_or_else(|| {
                No::Missing(format!("there is no number at {} in {}", field.pointer, told(&field.selector)))
            })?
        }
        Some(Kind::Gap(gap)) => {
            let (from, to) = (moment(&gap.from, seen)?, moment(&gap.to, seen)?);
            let rows = rows(&gap.stream, seen);
            // A stream that ends before has a silence without an end there, and the worse it is the shorter it would look.
            let within = rows.first().is_some_and(|first| *first <= from)
                && rows.last().is_some_and(|last| *last >= to);
            if !within {
                let name = &gap.stream;
                return Err(No::Missing(format!(
                    "stream `{name}` does not have all of that time: it begins later or ends before"
                )));
            }
            rows.windows(2)
                .filter(|pair| pair[0] <= to && pair[1] >= from)
                .map(|pair| pair[1] - pair[0])
                .max()
                .map(|gap| gap as f64)
                .ok_or_else(|| No::Missing(format!("stream `{}` has no two rows there", gap.stream)))?
        }
        Some(Kind::Percentile(percentile)) => self::percentile(percentile, seen)?,
        Some(Kind::Count(selector)) => all(selector, seen)?.len() as f64,
        // Files of metrics have no values of workloads, and the check has refused what is no metric.
        Some(Kind::Value(_) | Kind::Parts(_)) | None => return Err(No::Missing("it is no number".into())),
    })
}

/// By the nearest rank: a value that was seen.
fn percentile(asked: &Percentile, seen: &Seen) -> Result<f64, No> {
    let from = asked.from.as_ref().map_or(Ok(0), |end| moment(end, seen))?;
    let to = asked.to.as_ref().map_or(Ok(u64::MAX), |end| moment(end, seen))?;
    let within = |at: u64| (from..=to).contains(&at);
    let mut values: Vec<u64> = match asked.stream.as_str() {
        stream::BEATS => {
            let rows = seen.trace.beats.iter().filter(|row| within(row.at_ns));
            rows.filter_map(|row| number(row, &asked.column)).collect()
        }
        _ => seen.trace.pings.iter().filter(|row| within(row.at_ns)).map(|row| row.sequence).collect(),
    };
    values.sort_unstable();
    let share = asked.p * values.len() as f64 / 100.0;
    let value = values.iter().zip(1_u32..).find(|(_, rank)| f64::from(*rank) >= share);
    value
        .map(|(value, _)| *value as f64)
        .ok_or_else(|| No::Missing(format!("stream `{}` has no row there", asked.stream)))
}

fn moment(end: &End, seen: &Seen) -> Result<u64, No> {
    match end {
        End::Of(selector) => one(selector, seen).map(|hit| hit.at()),
        End::Last(ends) | End::First(ends) => {
            let moments = ends.iter().map(|end| moment(end, seen)).collect::<Result<Vec<_>, _>>()?;
            let one = if matches!(end, End::Last(_)) { moments.iter().max() } else { moments.iter().min() };
            one.copied().ok_or_else(|| No::Missing("no moment is given".into()))
        }
    }
}

/// The one that a selector takes.
fn one<'a>(selector: &Selector, seen: &'a Seen) -> Result<Hit<'a>, No> {
    let hits = all(selector, seen)?;
    let hit = match (selector.pick, hits.as_slice()) {
        (None, [_, _, ..]) => {
            return Err(No::Several(format!("there are {} of {}", hits.len(), told(selector))));
        }
        (Some(Pick::Last), hits) => hits.last(),
        (_, hits) => hits.first(),
    };
    hit.copied().ok_or_else(|| No::Missing(format!("there is no {}", told(selector))))
}

/// All that a selector takes, in the order of time.
fn all<'a>(selector: &Selector, seen: &'a Seen) -> Result<Vec<Hit<'a>>, No> {
    let after = selector.after.as_ref().map_or(Ok(0), |end| moment(end, seen))?;
    Ok(match (&selector.event, selector.stream.as_deref()) {
        (Some(event), _) => seen
            .trace
            .observations
            .iter()
            .zip(&seen.events)
            .filter(|(observed, _)| observed.at_ns >= after)
            .filter(|(_, value)| is_of(value, event))
            .filter(|(_, value)| selector.has.iter().all(|(key, wanted)| wanted.is(look(value, key))))
            .map(|(observed, value)| Hit::Event(observed.at_ns, value))
            .collect(),
        (None, Some(stream::PINGS)) => seen
            .trace
            .pings
            .iter()
            .filter(|row| row.at_ns >= after)
            .filter(|row| selector.has.values().all(|wanted| wanted.is_number(row.sequence)))
            .map(|row| Hit::Row(row.at_ns))
            .collect(),
        (None, _) => seen
            .trace
            .beats
            .iter()
            .filter(|row| row.at_ns >= after)
            .filter(|row| selector.has.iter().all(|(column, wanted)| wanted.is_in(row, column)))
            .map(|row| Hit::Row(row.at_ns))
            .collect(),
    })
}

fn rows(stream: &str, seen: &Seen) -> Vec<u64> {
    match stream {
        stream::BEATS => seen.trace.beats.iter().map(|row| row.at_ns).collect(),
        _ => seen.trace.pings.iter().map(|row| row.at_ns).collect(),
    }
}

/// Whether an event is the named one: `EVENT`, or `STEP.EVENT`.
fn is_of(event: &Value, name: &str) -> bool {
    let key = |key| event.get(key).and_then(Value::as_str);
    let (step, what) = Selector::split(name);
    key("what") == Some(what) && step.is_none_or(|step| key("step") == Some(step))
}

/// A key of an event, or a pointer into it.
fn look<'a>(event: &'a Value, key: &str) -> Option<&'a Value> {
    if key.starts_with('/') { event.pointer(key) } else { event.get(key) }
}

fn number(row: &Beaten, column: &str) -> Option<u64> {
    match column {
        "seq" => Some(row.seq),
        "skipped" => Some(row.skipped),
        "mono_ns" => Some(row.mono_ns),
        "real_ns" => Some(row.real_ns),
        "read_ns" => Some(row.read_ns),
        "len" => Some(row.len),
        _ => None,
    }
}

fn text<'a>(row: &'a Beaten, column: &str) -> Option<&'a str> {
    match column {
        "error" => Some(&row.error),
        "digest" => Some(&row.digest),
        "head" => Some(&row.head),
        "content" => row.content(),
        _ => None,
    }
}

impl Wanted {
    fn is(&self, value: Option<&Value>) -> bool {
        match (self, value) {
            (Wanted::Bool(wanted), Some(Value::Bool(value))) => wanted == value,
            (Wanted::Integer(wanted), Some(Value::Number(value))) => value.as_i64() == Some(*wanted),
            (Wanted::Text(wanted), Some(Value::String(value))) => wanted == value,
            _ => false,
        }
    }

    fn is_number(&self, value: u64) -> bool {
        matches!(self, Wanted::Integer(wanted) if u64::try_from(*wanted) == Ok(value))
    }

    fn is_in(&self, row: &Beaten, column: &str) -> bool {
        match self {
            Wanted::Text(wanted) => text(row, column) == Some(wanted.as_str()),
            Wanted::Integer(_) => number(row, column).is_some_and(|value| self.is_number(value)),
            Wanted::Bool(_) => false,
        }
    }
}

/// What a selector takes, for people.
fn told(selector: &Selector) -> String {
    let kind = match (&selector.event, &selector.stream) {
        (Some(event), _) => format!("event `{event}`"),
        (None, Some(stream)) => format!("row of stream `{stream}`"),
        (None, None) => "event".to_owned(),
    };
    let wanted = selector.has.iter().map(|(key, wanted)| match wanted {
        Wanted::Bool(value) => format!("{key} = {value}"),
        Wanted::Integer(value) => format!("{key} = {value}"),
        Wanted::Text(value) => format!("{key} = {value:?}"),
    });
    let wanted = wanted.collect::<Vec<_>>().join(", ");
    let with = if wanted.is_empty() { "" } else { " with " };
    let after = if selector.after.is_some() { ", after the moment that it names" } else { "" };
    format!("{kind}{with}{wanted}{after}")
}

#[cfg(test)]
mod tests;
