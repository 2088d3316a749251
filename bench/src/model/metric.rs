//! Metrics: what is computed of the events and streams of a trial.
//!
//! ```toml
//! [[metric]]
//! name = "arrival_to_ping"
//! title = "From the switch-over to the first answer"
//! unit = "ms"
//! better = "lower"
//! from = { event = "move.lifecycle", where = { host = "b", change = "resumed" } }
//! to = { stream = "pings", pick = "first", after = { event = "lifecycle", where = { host = "b", change = "resumed" } } }
//! ```
//!
//! A metric is one of: a span (`from`, `to`), a `field` of an event, the longest `gap` or a `percentile` of a stream, a `count`,
//! a `value` of a workload, or the `parts` of a record. Here is what can be written; [`crate::derive`] says what comes of it.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less.
    Lower,
    /// More.
    Higher,
    /// Neither: it only tells how the run was.
    #[default]
    Neither,
}

/// A metric.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Its name in samples: lower-case letters, digits and `_`.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// The unit of its values; a span, a gap or parts are in `s`, `ms`, `µs` or `ns`.
    pub unit: String,
    /// Which direction is better: "lower", "higher" or "neither".
    #[serde(default)]
    pub better: Better,
    /// Begin of a span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<End>,
    /// End of a span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<End>,
    /// A number in an event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<Field>,
    /// The longest pause between two rows of a stream in a row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// A percentile of a stream's column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percentile: Option<Percentile>,
    /// How many events or rows there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<Selector>,
    /// A value of a workload: one sample each time that it has run, in the phase of its step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<WorkloadValue>,
    /// Parts of a record, such as the phases of a recontextualization: one sample a part, whose phase is its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// What the value is multiplied with; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// With several guests: one value from those of all guests. `each` gives one sample a guest, whose phase is the guest's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Over>,
    /// The machine whose clock has measured it: where that ran wrong during the trial, the sample is invalid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Whether it needs a guest whose heartbeat was steady when the trial began.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub steady: bool,
    /// The arms that have it, by the factor `arm`; by default all whose program can give its events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// Its phases in the order of tables, with their titles; others follow by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTitle>,
    /// Whether tables leave it out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hidden: bool,
}

/// A phase with its name for people.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhaseTitle {
    /// Its name in samples.
    pub name: String,
    /// Its name for people.
    pub title: String,
}

/// What becomes of the values of several guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// A sample a guest.
    Each,
    /// The largest.
    Max,
    /// The smallest.
    Min,
    /// The mean.
    Mean,
    /// The sum.
    Sum,
}

/// A value of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadValue {
    /// The workload.
    pub workload: String,
    /// The value's name in it.
    pub of: String,
}

/// Parts of a record.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parts {
    /// The event with the record.
    pub of: Selector,
    /// JSON pointer to the list of parts.
    pub list: String,
    /// JSON pointer in a part to its name.
    pub name: String,
    /// JSON pointer in a part to its begin, in nanoseconds.
    pub from: String,
    /// JSON pointer in a part to its end, in nanoseconds.
    pub to: String,
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind<'a> {
    /// The time from one moment to another; below 0 when they are the other way round.
    Span(&'a End, &'a End),
    /// A number in an event.
    Field(&'a Field),
    /// The longest pause of a stream.
    Gap(&'a Gap),
    /// A percentile of a stream's column.
    Percentile(&'a Percentile),
    /// How many there are.
    Count(&'a Selector),
    /// A value of a workload.
    Value(&'a WorkloadValue),
    /// Parts of a record.
    Parts(&'a Parts),
}

/// A moment of a trial.
#[derive(Debug, Clone, PartialEq)]
pub enum End {
    /// Of an event or a row.
    Of(Box<Selector>),
    /// The latest of some moments.
    Last(Vec<End>),
    /// The earliest of some moments.
    First(Vec<End>),
}

/// What can be told apart in a trial: exactly one of `event` and `stream`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// Events of a kind: `EVENT`, or `STEP.EVENT` for those of one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    /// Rows of a stream: `beats`, `pings`, or that of a workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// Of which guest; where there are several and `over` is given, each in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// What they have: keys of the event, columns of the stream, or JSON pointers (`/record/outcome`) into the event.
    #[serde(default, rename = "where", skip_serializing_if = "BTreeMap::is_empty")]
    pub has: BTreeMap<String, Wanted>,
    /// Which one, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pick: Option<Pick>,
    /// Only from this moment on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Box<End>>,
}

/// What a key has to be.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Wanted {
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A text.
    Text(String),
}

/// Which one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The earliest.
    First,
    /// The latest.
    Last,
}

/// A number in an event.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// The event.
    #[serde(rename = "of")]
    pub selector: Selector,
    /// JSON pointer to the number, e.g. `/stats/memory_iteration` (RFC 6901).
    pub pointer: String,
}

/// The longest pause of a stream between two moments: of all pauses that begin before the end and end after the begin.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The stream.
    pub stream: String,
    /// Of which guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// The begin.
    pub from: End,
    /// The end.
    pub to: End,
    /// The usual time between two rows: it is taken off, and a pause that is no longer is "not more than that", a censored value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<super::Time>,
}

/// A percentile of a stream's column.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Percentile {
    /// The stream.
    pub stream: String,
    /// Of which guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// The column.
    pub column: String,
    /// Which percentile: above 0 and up to 100, by the nearest rank.
    pub p: f64,
    /// Only rows from this moment on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<End>,
    /// Only rows up to this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<End>,
}

impl JsonSchema for End {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "End".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let selector = generator.subschema_for::<Selector>();
        schemars::json_schema!({
            "description": "A moment: the name of an event; a table with `event` or `stream`; the `first` or `last` of several.",
            "anyOf": [
                { "type": "string" },
                { "type": "object", "required": ["first"], "additionalProperties": false,
                  "properties": { "first": { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/End" } } } },
                { "type": "object", "required": ["last"], "additionalProperties": false,
                  "properties": { "last": { "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/End" } } } },
                selector,
            ]
        })
    }
}

impl Serialize for End {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (key, ends) = match self {
            End::Of(selector) => return selector.serialize(serializer),
            End::First(ends) => ("first", ends),
            End::Last(ends) => ("last", ends),
        };
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(key, ends)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ends;
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            first: Option<Vec<End>>,
            last: Option<Vec<End>>,
            event: Option<String>,
            stream: Option<String>,
            guest: Option<String>,
            #[serde(default, rename = "where")]
            has: BTreeMap<String, Wanted>,
            pick: Option<Pick>,
            after: Option<Box<End>>,
        }
        impl<'de> Visitor<'de> for Ends {
            type Value = End;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an event, or a table with `event`, `stream`, `first` or `last`")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<End, E> {
                Ok(End::Of(Box::new(Selector { event: Some(name.to_owned()), ..Selector::default() })))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<End, A::Error> {
                let Table { first, last, event, stream, guest, has, pick, after } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                let selector = Selector { event, stream, guest, has, pick, after };
                match (first, last) {
                    (None, None) => Ok(End::Of(Box::new(selector))),
                    (Some(ends), None) if selector == Selector::default() && !ends.is_empty() => {
                        Ok(End::First(ends))
                    }
                    (None, Some(ends)) if selector == Selector::default() && !ends.is_empty() => {
                        Ok(End::Last(ends))
                    }
                    _ => {
                        let reason = "`first` and `last` each stand alone, with one moment or more";
                        Err(serde::de::Error::custom(reason))
                    }
                }
            }
        }
        deserializer.deserialize_any(Ends)
    }
}

impl Metric {
    /// What it is; none when it is not exactly one thing.
    pub fn kind(&self) -> Option<Kind<'_>> {
        let span = match (&self.from, &self.to) {
            (Some(from), Some(to)) => Some(Kind::Span(from, to)),
            (None, None) => None,
            _ => return None,
        };
        let others = [
            self.field.as_ref().map(Kind::Field),
            self.gap.as_ref().map(Kind::Gap),
            self.percentile.as_ref().map(Kind::Percentile),
            self.count.as_ref().map(Kind::Count),
            self.value.as_ref().map(Kind::Value),
            self.parts.as_ref().map(Kind::Parts),
        ];
        let mut kinds = std::iter::once(span).chain(others).flatten();
        let kind = kinds.next()?;
        kinds.next().is_none().then_some(kind)
    }
}

/// Names of the streams of a guest.
pub const STREAMS: [&str; 2] = ["beats", "pings"];

/// Columns of a stream that are numbers.
pub fn numbers(stream: &str) -> &'static [&'static str] {
    match stream {
        "beats" => &["seq", "skipped", "mono_ns", "real_ns", "read_ns", "len"],
        "pings" => &["sequence"],
        _ => &[],
    }
}

/// Columns of a stream that are texts. `content` is what a program in the guest read, without the line's end.
pub fn texts(stream: &str) -> &'static [&'static str] {
    match stream {
        "beats" => &["error", "digest", "head", "content"],
        _ => &[],
    }
}

/// A nanosecond in a unit of time; none for another unit.
pub fn nanosecond(unit: &str) -> Option<f64> {
    match unit {
        "s" => Some(1e-9),
        "ms" => Some(1e-6),
        "µs" => Some(1e-3),
        "ns" => Some(1.0),
        _ => None,
    }
}

/// The metrics that the bench gives whatever a scenario says.
pub fn own() -> Vec<Metric> {
    let metric = |name: &str, title: &str, unit: &str| Metric {
        name: name.to_owned(),
        title: title.to_owned(),
        unit: unit.to_owned(),
        ..Metric::default()
    };
    vec![
        metric("link_rtt", "Round trip of a link", "ms"),
        metric("link_rate", "Rate of a link", "Mbit/s"),
        metric("trial_failed", "Trial not done to its end", "1"),
    ]
}

/// What is wrong, and what to do.
pub type Wrong = (String, String);

fn wrong<T>(what: impl Into<String>, help: impl Into<String>) -> Result<T, Wrong> {
    Err((what.into(), help.into()))
}

impl Metric {
    /// Whether it makes sense by itself.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(&self) -> Result<(), Wrong> {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(letter) {
            return wrong("this is no name", "a name has up to 64 lower-case letters, digits and `_`");
        }
        if self.title.trim().is_empty() || self.unit.trim().is_empty() {
            return wrong("`title` or `unit` is empty", "say what it is, and in which unit");
        }
        if self.scale.is_some_and(|scale| !scale.is_finite() || scale == 0.0) {
            return wrong("`scale` makes no sense", "it is a number other than 0");
        }
        let Some(kind) = self.kind() else {
            let help = "give exactly one of: `from` and `to`; `field`; `gap`; `percentile`; `count`; `value`; `parts`";
            return wrong("it is nothing, or several things", help);
        };
        if matches!(kind, Kind::Span(..) | Kind::Gap(_) | Kind::Parts(_)) && nanosecond(&self.unit).is_none()
        {
            return wrong(
                format!("`{}` is no unit of time", self.unit),
                "the unit of a time is s, ms, µs or ns",
            );
        }
        match kind {
            Kind::Field(field) if field.selector.event.is_none() => {
                return wrong("a field is of an event", "of a stream take a percentile");
            }
            Kind::Field(field) if !field.pointer.starts_with('/') => {
                return wrong(
                    "`pointer` is no JSON pointer",
                    format!("begin it with `/`: `/stats/{}`", field.pointer),
                );
            }
            Kind::Percentile(percentile) => {
                if !(percentile.p > 0.0 && percentile.p <= 100.0) {
                    return wrong("`p` makes no sense", "it is above 0 and up to 100");
                }
                let numbers = numbers(&percentile.stream);
                if !numbers.contains(&percentile.column.as_str()) {
                    return wrong(
                        "`column` is none of its numbers",
                        format!("it is one of {}", numbers.join(", ")),
                    );
                }
                stream(&percentile.stream)?;
            }
            Kind::Gap(gap) => stream(&gap.stream)?,
            Kind::Count(selector) if selector.pick.is_some() => {
                return wrong("a count has no `pick`", "remove it");
            }
            Kind::Parts(parts) if parts.of.event.is_none() => {
                return wrong("parts are of an event", "give `event`");
            }
            _ => {}
        }
        self.selectors().into_iter().try_for_each(Selector::check)
    }

    /// All selectors in it.
    pub fn selectors(&self) -> Vec<&Selector> {
        let mut found = Vec::new();
        match self.kind() {
            Some(Kind::Span(from, to)) => {
                from.selectors(&mut found);
                to.selectors(&mut found);
            }
            Some(Kind::Field(field)) => field.selector.selectors(&mut found),
            Some(Kind::Count(selector)) => selector.selectors(&mut found),
            Some(Kind::Gap(gap)) => {
                gap.from.selectors(&mut found);
                gap.to.selectors(&mut found);
            }
            Some(Kind::Percentile(percentile)) => {
                percentile.from.iter().chain(&percentile.to).for_each(|end| end.selectors(&mut found));
            }
            Some(Kind::Parts(parts)) => parts.of.selectors(&mut found),
            Some(Kind::Value(_)) | None => {}
        }
        found
    }

    /// What a number of nanoseconds, or of whatever else it is of, is multiplied with.
    pub fn factor(&self) -> f64 {
        let unit = match self.kind() {
            Some(Kind::Span(..) | Kind::Gap(_) | Kind::Parts(_)) => nanosecond(&self.unit).unwrap_or(1.0),
            _ => 1.0,
        };
        unit * self.scale.unwrap_or(1.0)
    }
}

fn stream(name: &str) -> Result<(), Wrong> {
    if STREAMS.contains(&name) {
        return Ok(());
    }
    wrong(format!("there is no stream `{name}`"), format!("streams are {}", STREAMS.join(", ")))
}

impl End {
    fn selectors<'a>(&'a self, found: &mut Vec<&'a Selector>) {
        match self {
            Self::Of(selector) => selector.selectors(found),
            Self::First(ends) | Self::Last(ends) => ends.iter().for_each(|end| end.selectors(found)),
        }
    }
}

impl Selector {
    /// The step and the event of `STEP.EVENT`; no step for one that names none.
    pub fn split(name: &str) -> (Option<&str>, &str) {
        name.rsplit_once('.').map_or((None, name), |(step, event)| (Some(step), event))
    }

    fn selectors<'a>(&'a self, found: &mut Vec<&'a Selector>) {
        found.push(self);
        if let Some(after) = &self.after {
            after.selectors(found);
        }
    }

    fn check(&self) -> Result<(), Wrong> {
        match (&self.event, &self.stream) {
            (Some(_), None) => Ok(()),
            (None, Some(name)) => {
                stream(name)?;
                for (column, wanted) in &self.has {
                    let known = match wanted {
                        Wanted::Integer(_) => numbers(name),
                        Wanted::Text(_) => texts(name),
                        Wanted::Bool(_) => &[],
                    };
                    if !known.contains(&column.as_str()) {
                        let texts = texts(name).join(", ");
                        let help = format!(
                            "it has the numbers {} and the texts {}",
                            numbers(name).join(", "),
                            if texts.is_empty() { "(none)" } else { &texts }
                        );
                        return wrong(
                            format!("stream `{name}` does not have `{column}` as it is given"),
                            help,
                        );
                    }
                }
                Ok(())
            }
            _ => wrong("a moment is of an event or of a stream", "give `event` or `stream`, and not both"),
        }
    }
}
