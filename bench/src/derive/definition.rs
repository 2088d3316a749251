//! Metrics that a user defines: what they are of the events and streams of a trial.
//!
//! ```toml
//! [[metric]]
//! name = "arrival_to_ping"
//! title = "From the switch-over to the first answer"
//! unit = "ms"
//! from = { event = "lifecycle", where = { host = "b", change = "resumed" } }
//! to = { stream = "pings", pick = "first", after = { event = "lifecycle", where = { host = "b", change = "resumed" } } }
//! ```
//!
//! A metric is one of: a span (`from`, `to`), a `field` of an event, the longest `gap` or a `percentile` of a stream, or a
//! `count`. Here is what can be written; [`super::evaluate`] says what comes of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ctx_io::bounded;
use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};

use crate::metric;

/// The most metrics of one file.
const MOST: usize = 1000;

/// Why a file of metrics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    /// It cannot be read.
    #[error("cannot read {}: {source}; give a file of metrics, see `bench report --help`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not what it should be; the message has line, column and the text there.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A metric makes no sense.
    #[error("{}: metric `{name}`: {reason}", path.display())]
    Metric {
        /// The file.
        path: PathBuf,
        /// The metric's name.
        name: String,
        /// What is wrong, and what to do.
        reason: String,
    },
}

/// A metric that a user defined.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Its name in samples: lower-case letters, digits and `_`, and none that the bench uses itself.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// The unit of its values; a span or a gap is in `s`, `ms`, `µs` or `ns`.
    pub unit: String,
    /// Begin of a span.
    from: Option<End>,
    /// End of a span.
    to: Option<End>,
    /// A number in an event.
    field: Option<Field>,
    /// The longest pause between two rows of a stream in a row.
    gap: Option<Gap>,
    /// A percentile of a stream's column.
    percentile: Option<Percentile>,
    /// How many events or rows there are.
    count: Option<Selector>,
    /// What the value is multiplied with; 1 when not given.
    scale: Option<f64>,
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
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selector {
    /// Events of a kind.
    pub event: Option<EventName>,
    /// Rows of a stream.
    pub stream: Option<StreamName>,
    /// What they have: keys of the event, columns of the stream, or JSON pointers (`/record/outcome`) into the event.
    #[serde(default, rename = "where")]
    pub has: BTreeMap<String, Wanted>,
    /// Which one, where there are several.
    pub pick: Option<Pick>,
    /// Only from this moment on.
    pub after: Option<Box<End>>,
}

/// What a key has to be.
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The earliest.
    First,
    /// The latest.
    Last,
}

/// The kinds of events that a trial has; [`What`](crate::observe::trace::What) says what each means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the variants of What, which are documented there")]
pub enum EventName {
    Unsteady,
    MigrateCalled,
    MigrateReturned,
    Lifecycle,
    Iteration,
    JobCompleted,
    Requested,
    Recontextualized,
    Clock,
    Missed,
}

impl EventName {
    /// As the log has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unsteady => "unsteady",
            Self::MigrateCalled => "migrate_called",
            Self::MigrateReturned => "migrate_returned",
            Self::Lifecycle => "lifecycle",
            Self::Iteration => "iteration",
            Self::JobCompleted => "job_completed",
            Self::Requested => "requested",
            Self::Recontextualized => "recontextualized",
            Self::Clock => "clock",
            Self::Missed => "missed",
        }
    }
}

/// The streams that a trial has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    /// The guest's heartbeats.
    Beats,
    /// The guest's answers to pings.
    Pings,
}

impl StreamName {
    /// As the run's folder has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Beats => crate::observe::stream::BEATS,
            Self::Pings => crate::observe::stream::PINGS,
        }
    }

    /// Columns that are numbers.
    pub const fn numbers(self) -> &'static [&'static str] {
        match self {
            Self::Beats => &["seq", "skipped", "mono_ns", "real_ns", "read_ns", "len"],
            Self::Pings => &["sequence"],
        }
    }

    /// Columns that are texts. `content` is what a program in the guest read, without the line's end.
    pub const fn texts(self) -> &'static [&'static str] {
        match self {
            Self::Beats => &["error", "digest", "head", "content"],
            Self::Pings => &[],
        }
    }
}

/// A number in an event.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// The event.
    #[serde(rename = "of")]
    pub selector: Selector,
    /// JSON pointer to the number, e.g. `/stats/memory_iteration` (RFC 6901).
    pub pointer: String,
}

/// The longest pause of a stream between two moments: of all pauses that begin before the end and end after the begin.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// The stream.
    pub stream: StreamName,
    /// The begin.
    pub from: End,
    /// The end.
    pub to: End,
}

/// A percentile of a stream's column.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Percentile {
    /// The stream.
    pub stream: StreamName,
    /// The column.
    pub column: String,
    /// Which percentile: above 0 and up to 100, by the nearest rank.
    pub p: f64,
    /// Only rows from this moment on.
    pub from: Option<End>,
    /// Only rows up to this moment.
    pub to: Option<End>,
}

impl<'de> Deserialize<'de> for End {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ends;
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            first: Option<Vec<End>>,
            last: Option<Vec<End>>,
            event: Option<EventName>,
            stream: Option<StreamName>,
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
                let event = EventName::deserialize(serde::de::value::StrDeserializer::new(name))?;
                let event = Some(event);
                let has = BTreeMap::new();
                Ok(End::Of(Box::new(Selector { event, stream: None, has, pick: None, after: None })))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<End, A::Error> {
                let Table { first, last, event, stream, has, pick, after } =
                    Table::deserialize(MapAccessDeserializer::new(map))?;
                let alone = event.is_none()
                    && stream.is_none()
                    && has.is_empty()
                    && pick.is_none()
                    && after.is_none();
                let ends = match (first, last) {
                    (None, None) => {
                        return Ok(End::Of(Box::new(Selector { event, stream, has, pick, after })));
                    }
                    (Some(ends), None) if alone && !ends.is_empty() => End::First(ends),
                    (None, Some(ends)) if alone && !ends.is_empty() => End::Last(ends),
                    _ => {
                        let reason = "`first` and `last` each stand alone, with one moment or more";
                        return Err(serde::de::Error::custom(reason));
                    }
                };
                Ok(ends)
            }
        }
        deserializer.deserialize_any(Ends)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    metric: Vec<Definition>,
}

/// Reads a file of metrics.
///
/// # Errors
/// It cannot be read, or something in it is wrong.
pub fn read(path: &Path) -> Result<Vec<Definition>, DefinitionError> {
    let text = bounded::read(path, bounded::CONFIG)
        .and_then(|bytes| String::from_utf8(bytes).map_err(std::io::Error::other))
        .map_err(|source| DefinitionError::Io { path: path.to_owned(), source })?;
    parse(path, &text)
}

/// The metrics of a file's text.
///
/// # Errors
/// Something in it is wrong.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Definition>, DefinitionError> {
    let syntax = |reason: String| DefinitionError::Syntax { path: path.to_owned(), reason };
    let File { metric: definitions } = toml::from_str(text).map_err(|error| syntax(error.to_string()))?;
    if definitions.len() > MOST {
        return Err(syntax(format!("{} metrics, and at most {MOST} are taken", definitions.len())));
    }
    for (at, definition) in definitions.iter().enumerate() {
        let twice = definitions[..at].iter().any(|before| before.name == definition.name);
        let checked =
            if twice { Err("there are two of this name: rename one".to_owned()) } else { definition.check() };
        checked.map_err(|reason| DefinitionError::Metric {
            path: path.to_owned(),
            name: definition.name.clone(),
            reason,
        })?;
    }
    Ok(definitions)
}

impl Definition {
    /// What it is; the check has seen that it is one thing.
    pub fn kind(&self) -> Option<Kind<'_>> {
        let span = match (&self.from, &self.to) {
            (Some(from), Some(to)) => Some(Kind::Span(from, to)),
            _ => None,
        };
        let others = [
            self.field.as_ref().map(Kind::Field),
            self.gap.as_ref().map(Kind::Gap),
            self.percentile.as_ref().map(Kind::Percentile),
            self.count.as_ref().map(Kind::Count),
        ];
        let mut kinds = std::iter::once(span).chain(others).flatten();
        let kind = kinds.next()?;
        let half = self.from.is_some() != self.to.is_some();
        (kinds.next().is_none() && !half).then_some(kind)
    }

    /// What a number of nanoseconds, or of whatever else it is of, is multiplied with.
    pub(super) fn factor(&self) -> f64 {
        let unit = match self.kind() {
            Some(Kind::Span(..) | Kind::Gap(_)) => nanosecond(&self.unit).unwrap_or(1.0),
            _ => 1.0,
        };
        unit * self.scale.unwrap_or(1.0)
    }

    fn check(&self) -> Result<(), String> {
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.name.is_empty() || self.name.len() > 64 || !self.name.chars().all(letter) {
            return Err("a name has up to 64 lower-case letters, digits and `_`".into());
        }
        if metric::find(&self.name).is_some() {
            return Err("the bench has a metric of this name: rename yours".into());
        }
        if self.title.trim().is_empty() || self.unit.trim().is_empty() {
            return Err("`title` and `unit` are empty".into());
        }
        if self.scale.is_some_and(|scale| !scale.is_finite() || scale == 0.0) {
            return Err("`scale` is a number other than 0".into());
        }
        let Some(kind) = self.kind() else {
            return Err("give exactly one of: `from` and `to`; `field`; `gap`; `percentile`; `count`".into());
        };
        match kind {
            Kind::Span(from, to) => {
                self.unit_of_time()?;
                from.check()?;
                to.check()
            }
            Kind::Gap(gap) => {
                self.unit_of_time()?;
                gap.from.check()?;
                gap.to.check()
            }
            Kind::Field(field) => {
                field.selector.check()?;
                if field.selector.event.is_none() {
                    return Err("a field is of an event; of a stream take a percentile".into());
                }
                if !field.pointer.starts_with('/') {
                    return Err(format!("`pointer` begins with `/`, e.g. `/stats/{}`", field.pointer));
                }
                Ok(())
            }
            Kind::Percentile(percentile) => {
                if !(percentile.p > 0.0 && percentile.p <= 100.0) {
                    return Err("`p` is above 0 and up to 100".into());
                }
                let numbers = percentile.stream.numbers();
                if !numbers.contains(&percentile.column.as_str()) {
                    return Err(format!("`column` is one of {}", numbers.join(", ")));
                }
                percentile.from.iter().chain(&percentile.to).try_for_each(End::check)
            }
            Kind::Count(selector) => {
                if selector.pick.is_some() {
                    return Err("`count` takes all of them: leave `pick` out".into());
                }
                selector.check()
            }
        }
    }

    fn unit_of_time(&self) -> Result<(), String> {
        nanosecond(&self.unit).map(drop).ok_or_else(|| "the unit of a time is s, ms, µs or ns".into())
    }
}

/// A nanosecond in a unit of time.
fn nanosecond(unit: &str) -> Option<f64> {
    match unit {
        "s" => Some(1e-9),
        "ms" => Some(1e-6),
        "µs" => Some(1e-3),
        "ns" => Some(1.0),
        _ => None,
    }
}

impl End {
    fn check(&self) -> Result<(), String> {
        match self {
            End::Of(selector) => selector.check(),
            End::Last(ends) | End::First(ends) => ends.iter().try_for_each(End::check),
        }
    }
}

impl Selector {
    fn check(&self) -> Result<(), String> {
        match (self.event, self.stream) {
            (Some(_), None) => {}
            (None, Some(stream)) => {
                for (column, wanted) in &self.has {
                    let kind = match wanted {
                        Wanted::Integer(_) => stream.numbers(),
                        Wanted::Text(_) => stream.texts(),
                        Wanted::Bool(_) => &[],
                    };
                    if !kind.contains(&column.as_str()) {
                        return Err(format!(
                            "stream `{}` has the numbers {} and the texts {}, and not `{column}` as it is given",
                            stream.name(),
                            stream.numbers().join(", "),
                            if stream.texts().is_empty() {
                                "(none)".into()
                            } else {
                                stream.texts().join(", ")
                            },
                        ));
                    }
                }
            }
            _ => return Err("give `event` or `stream`, and not both".into()),
        }
        self.after.iter().try_for_each(|end| end.check())
    }
}
