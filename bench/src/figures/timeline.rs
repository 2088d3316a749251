//! One trial from the migrate call on: what libvirt, the guest and the recontextualizer did, on one axis of time.

use plotters::{prelude::DrawingBackend, style::text_anchor::HPos};

use super::{
    Context,
    bars::{BLUE, GREEN, ORANGE, PURPLE, SAND, SKY},
    chart::{Colour, three_digits, tick_label, ticks},
    draw::{
        FigureError, GRID, INK, LINE, MARGIN, Page, Picture, SMALL, SOFT, TITLE, WIDTH, pixels, width, wrap,
    },
};
use crate::observe::clock::Reading;
use crate::observe::trace::{Trace, What};

/// Height of a lane, in pixels.
const LANE: i32 = 58;
/// Height of what is drawn in a lane.
const INNER: i32 = 34;
/// Above the lanes: the title, and the names of moments.
const HEAD: i32 = 116;
/// Below them: the axis.
const FOOT: i32 = 84;
/// What is shown before the call and after the last moment, in seconds.
const ROOM: f64 = 0.5;
/// A program that sends nothing for so long does not run, in nanoseconds.
const SILENT: u64 = 500_000_000;
/// What comes later than this after the migration is not of it, in nanoseconds.
const LATER: u64 = 60_000_000_000;

/// A figure of one trial.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// What is shown, in one line.
    pub title: String,
    /// The lanes, from top to bottom.
    pub lanes: Vec<Lane>,
    /// Moments that go through all lanes: seconds, and their names.
    pub moments: Vec<(f64, String)>,
    /// The last second that is shown.
    pub end: f64,
    /// Sentences under the figure.
    pub caption: Vec<String>,
}

/// What one witness saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Lane {
    /// Its name.
    pub label: String,
    /// What lasted.
    pub spans: Vec<Span>,
    /// What happened at a moment, in seconds.
    pub marks: Vec<f64>,
}

/// Something that lasted.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its begin, in seconds.
    pub from: f64,
    /// Its end.
    pub to: f64,
    /// Its name, written into it where there is room.
    pub label: String,
    /// Its colour.
    pub colour: Colour,
}

/// The figure of a trial; none where no migration was seen.
pub fn timeline(trace: &Trace, trial: &str, context: &Context) -> Option<Timeline> {
    let (called, (source, destination)) = trace.first(|what| match what {
        What::MigrateCalled { from, to, .. } => Some((from.as_str(), to.as_str())),
        _ => None,
    })?;
    let seconds = |at: u64| (at as f64 - called as f64) / 1e9;
    let life = |host: &str, wanted: &str| {
        trace.first(|what| match what {
            What::Lifecycle { host: on, change, .. } => (on == host && change == wanted).then_some(()),
            _ => None,
        })
    };
    let returned = trace.first(|what| matches!(what, What::MigrateReturned { .. }).then_some(()))?.0;
    let switched = life(destination, "resumed").map(|(at, ())| at);
    // Xen's libvirt does not tell when the guest stops.
    let stopped = life(source, "suspended").map(|(at, ())| at).or_else(|| last_sign(trace, switched?));
    let record = trace
        .first(|what| match what {
            What::Recontextualized { host, record } if host == destination => Some(record),
            _ => None,
        })
        .filter(|(at, _)| *at <= returned.saturating_add(LATER));
    let contents = contents(trace, called, returned.saturating_add(LATER));
    // The first content of the destination: what was not read before the switch.
    let new = contents.windows(2).find(|pair| pair[0].0 != pair[1].0).map(|pair| pair[1].1);
    let last = [Some(returned), switched, record.map(|(at, _)| at), new].into_iter().flatten().max()?;
    let end = seconds(last) + ROOM.max(seconds(last) * 0.03);
    let shown = |at: u64| (-ROOM..=end).contains(&seconds(at));

    let span = |from: f64, to: f64, label: String, colour| Span { from, to: to.min(end), label, colour };
    let mut runs = vec![span(-ROOM, seconds(stopped.unwrap_or(returned)), format!("on host {source}"), SKY)];
    if let Some(switched) = switched {
        runs.push(span(seconds(switched), end, format!("on host {destination}"), BLUE));
    }
    let passes = trace.observations.iter().filter_map(|seen| match seen.what {
        What::Iteration { .. } => Some(seen.at_ns),
        _ => None,
    });
    let lane = |label: &str, spans, marks: Vec<u64>| Lane {
        label: label.to_owned(),
        spans,
        marks: marks.into_iter().filter(|at| shown(*at)).map(seconds).collect(),
    };
    let total = format!("{} s", three_digits(seconds(returned)));
    let mut lanes = vec![
        lane("Migrate call", vec![span(0.0, seconds(returned), total, SAND)], passes.collect()),
        lane("The guest runs", runs, Vec::new()),
        lane("Its answers to pings", Vec::new(), trace.pings.iter().map(|ping| ping.at_ns).collect()),
        lane("Its heartbeat", Vec::new(), trace.beats.iter().map(|beat| beat.at_ns).collect()),
    ];
    let mut caption = vec![
        "One trial, on the bench's clock; 0 is the migrate call. Strokes in it: another pass over memory. When the guest stops and \
         runs is by libvirt's news of it, which may be late; where it does not tell, a guest stops with its last sign of life."
            .to_owned(),
    ];
    if let Some((_, record)) = record
        && let Some((offset, bound)) = offset(trace, destination)
    {
        let moment = |at: u64| (at as f64 + offset - called as f64) / 1e9;
        let colours = [GREEN, ORANGE, PURPLE, SKY, SAND];
        let phases = record.phases.iter().zip(colours.into_iter().cycle());
        let spans = phases
            .map(|(phase, colour)| {
                span(moment(phase.start_ns), moment(phase.end_ns), phase.name.name().to_owned(), colour)
            })
            .collect();
        lanes.push(lane("Recontextualizer", spans, Vec::new()));
        let took = record.phases.iter().map(|phase| {
            let milliseconds = phase.end_ns.saturating_sub(phase.start_ns) as f64 / 1e6;
            format!("{} {} ms", phase.name.name(), three_digits(milliseconds))
        });
        caption.push(format!(
            "The recontextualizer: {}; dated by the clock of host {destination}, within ± {} ms.",
            took.collect::<Vec<_>>().join(", "),
            three_digits(bound * 1e3)
        ));
    }
    if contents.len() > 1 {
        let spans = contents
            .iter()
            .map(|(content, from, to)| {
                let colour = if *content == contents[0].0 { SKY } else { BLUE };
                span(seconds(*from), seconds(*to), content.clone(), colour)
            })
            .collect();
        lanes.push(lane("A program reads", spans, Vec::new()));
    }
    let named = [(switched, "runs there"), (new, "new content")];
    let moments = named.into_iter().filter_map(|(at, name)| Some((seconds(at?), name.to_owned()))).collect();
    caption.push(format!("Run {} of {}, {trial}.", context.runs.join(", "), context.scenario));
    Some(Timeline { title: format!("A live migration, {trial}"), lanes, moments, end, caption })
}

/// When the guest last showed before a moment that it lives.
fn last_sign(trace: &Trace, before: u64) -> Option<u64> {
    let signs = trace.beats.iter().map(|beat| beat.at_ns).chain(trace.pings.iter().map(|ping| ping.at_ns));
    signs.filter(|at| *at < before).max()
}

/// What a program in the guest read, one after the other, each from the first beat with it to the last; in pieces where the
/// program was silent.
fn contents(trace: &Trace, from: u64, to: u64) -> Vec<(String, u64, u64)> {
    let mut found: Vec<(String, u64, u64)> = Vec::new();
    for beat in trace.beats.iter().filter(|beat| (from..=to).contains(&beat.at_ns)) {
        let Some(content) = beat.content() else { continue };
        match found.last_mut() {
            Some((last, _, until)) if last == content && beat.at_ns - *until < SILENT => *until = beat.at_ns,
            // A program that does not run reads nothing.
            _ => found.push((content.to_owned(), beat.at_ns, beat.at_ns)),
        }
    }
    found
}

/// What is added to a host's clock to have the bench's, in nanoseconds, and how far it may be off, in seconds.
fn offset(trace: &Trace, host: &str) -> Option<(f64, f64)> {
    let readings = trace.observations.iter().filter_map(|seen| match &seen.what {
        What::Clock { machine, reading } if machine == host => Some(*reading),
        _ => None,
    });
    // The one that was read fastest.
    let Reading { at_ns, uncertainty_ns, says_ns } = readings.min_by_key(|reading| reading.uncertainty_ns)?;
    // /proc/uptime has hundredths of a second, cut off.
    let half = 5e6;
    Some((at_ns as f64 - (says_ns as f64 + half), (uncertainty_ns as f64 + half) / 1e9))
}

/// A timeline with its places.
pub(super) struct Laid<'a> {
    timeline: &'a Timeline,
    left: i32,
    caption: Vec<String>,
}

impl<'a> Laid<'a> {
    pub(super) fn new(timeline: &'a Timeline) -> Self {
        let names = timeline.lanes.iter().map(|lane| width(&lane.label, SMALL)).max().unwrap_or(0);
        let caption =
            timeline.caption.iter().flat_map(|line| wrap(line, SMALL, WIDTH - 2 * MARGIN)).collect();
        Self { timeline, left: MARGIN + names + 20, caption }
    }

    fn x(&self, second: f64) -> i32 {
        let share = (second + ROOM) / (self.timeline.end + ROOM);
        #[expect(clippy::cast_possible_truncation, reason = "within the page")]
        let across = (share.clamp(0.0, 1.0) * f64::from(WIDTH - MARGIN - self.left)).round() as i32;
        self.left + across
    }

    fn lane<B: DrawingBackend>(&self, page: &Page<'_, B>, lane: &Lane, top: i32) -> Result<(), FigureError> {
        let middle = top + LANE / 2;
        page.text(&lane.label, SMALL, INK, HPos::Right, (self.left - 20, middle + 7))?;
        for span in &lane.spans {
            let (from, to) = (self.x(span.from), self.x(span.to).max(self.x(span.from) + 2));
            page.rectangle((from, middle - INNER / 2), (to, middle + INNER / 2), span.colour)?;
            if width(&span.label, SMALL) + 8 <= to - from {
                let ink = if span.colour == BLUE { super::draw::PAPER } else { INK };
                page.text(&span.label, SMALL, ink, HPos::Center, (i32::midpoint(from, to), middle + 7))?;
            }
        }
        for mark in &lane.marks {
            let x = self.x(*mark);
            page.line((x, middle - INNER / 2), (x, middle + INNER / 2), INK, 1)?;
        }
        Ok(())
    }

    fn bottom(&self) -> i32 {
        HEAD + LANE * pixels(self.timeline.lanes.len())
    }
}

impl Picture for Laid<'_> {
    fn height(&self) -> i32 {
        self.bottom() + FOOT + pixels(self.caption.len()) * LINE + MARGIN / 2
    }

    fn paint<B: DrawingBackend>(&self, page: &Page<'_, B>) -> Result<(), FigureError> {
        page.text(&self.timeline.title, TITLE, INK, HPos::Left, (MARGIN, MARGIN + 24))?;
        let bottom = self.bottom();
        let values = ticks(self.timeline.end);
        let step = values.get(1).copied().unwrap_or(1.0);
        for value in values.into_iter().filter(|value| *value <= self.timeline.end) {
            let x = self.x(value);
            page.line((x, HEAD), (x, bottom), GRID, 2)?;
            page.text(&tick_label(value, step), SMALL, SOFT, HPos::Center, (x, bottom + 28))?;
        }
        let middle = i32::midpoint(self.left, WIDTH - MARGIN);
        page.text("Time since the migrate call (s)", SMALL, INK, HPos::Center, (middle, bottom + 60))?;
        // Names that would run into each other stand on two lines.
        let mut before = 0;
        for (at, name) in &self.timeline.moments {
            let (x, wide) = (self.x(*at), width(name, SMALL));
            page.line((x, HEAD - 6), (x, bottom), INK, 2)?;
            let left = (x - wide / 2).clamp(self.left, (WIDTH - MARGIN - wide).max(self.left));
            let high = if left < before + 12 { HEAD - 40 } else { HEAD - 14 };
            page.text(name, SMALL, INK, HPos::Left, (left, high))?;
            before = left + wide;
        }
        for (top, lane) in self.timeline.lanes.iter().enumerate() {
            self.lane(page, lane, HEAD + LANE * pixels(top))?;
        }
        page.line((self.left, bottom), (WIDTH - MARGIN, bottom), INK, 2)?;
        page.caption(&self.caption, self.height())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive::migration::tests::trace;
    use crate::figures::{Drawing, png, svg};

    fn context() -> Context {
        Context {
            scenario: "some-scenario".into(),
            runs: vec!["20261122T131500Z-1a2b3c4d".into()],
            ..Context::default()
        }
    }

    #[test]
    fn a_trial_is_shown_with_its_moments_and_their_distances() {
        let made = timeline(&trace(), "recontext", &context()).unwrap();
        let lane = |label: &str| made.lanes.iter().find(|lane| lane.label == label).unwrap();
        assert_eq!(
            (lane("Migrate call").spans[0].to, lane("Migrate call").spans[0].label.as_str()),
            (8.0, "8.00 s")
        );
        let runs = &lane("The guest runs").spans;
        assert_eq!((runs[0].to, runs[1].from), (7.01, 7.38));
        // No stroke where nothing came.
        let silent = |lane: &Lane| lane.marks.iter().all(|at| !(6.99..7.39).contains(at));
        assert!(silent(lane("Its heartbeat")) && silent(lane("Its answers to pings")));
        assert_eq!(made.moments, [(7.38, "runs there".to_owned()), (8.5, "new content".to_owned())]);
        let read: Vec<_> = lane("A program reads").spans.iter().map(|span| span.label.as_str()).collect();
        assert_eq!(read, ["remote", "local"]);
        // A pause of 450 ms is none in which the program did not run.
        let mut longer = trace();
        longer.beats.retain(|beat| !(7_900_000_000..8_500_000_000).contains(&beat.at_ns));
        let longer = timeline(&longer, "recontext", &context()).unwrap();
        let reads = &longer.lanes.last().unwrap().spans;
        assert_eq!(
            reads.iter().map(|span| span.label.as_str()).collect::<Vec<_>>(),
            ["remote", "remote", "local"]
        );
        let phases = &lane("Recontextualizer").spans;
        assert_eq!((phases[0].label.as_str(), phases[1].label.as_str()), ("attach", "acknowledge"));
        assert!((phases[0].to - phases[0].from - 0.5).abs() < 1e-9);
        let said = "attach 500 ms, acknowledge 250 ms; dated by the clock of host b, within ± 6.00 ms.";
        assert!(made.caption[1].ends_with(said), "{:?}", made.caption);
        let drawing = Drawing::Timeline(made);
        assert_eq!(svg(&drawing).unwrap(), svg(&drawing).unwrap());
        assert!(png(&drawing).unwrap().starts_with(b"\x89PNG"));
        if let Some(folder) = std::env::var_os("BENCH_FIGURES") {
            std::fs::write(std::path::Path::new(&folder).join("timeline.png"), png(&drawing).unwrap())
                .unwrap();
        }
    }

    #[test]
    fn a_migration_without_the_rest_is_shown_and_none_is_not() {
        let mut plain = trace();
        plain.observations.retain(|seen| !matches!(seen.what, What::Recontextualized { .. }));
        plain.beats.clear();
        // No news that the guest stopped, as with Xen: it did with its last sign of life, an answer at 7950 ms.
        plain
            .observations
            .retain(|seen| !matches!(&seen.what, What::Lifecycle { change, .. } if change == "suspended"));
        let made = timeline(&plain, "plain", &context()).unwrap();
        assert_eq!(made.lanes.len(), 4);
        assert!((made.lanes[1].spans[0].to - 6.95).abs() < 1e-9, "{:?}", made.lanes[1]);
        assert_eq!(made.moments.len(), 1);
        assert!(svg(&Drawing::Timeline(made)).unwrap().contains("Migrate call"));
        plain.observations.clear();
        assert!(timeline(&plain, "plain", &context()).is_none());
    }
}
