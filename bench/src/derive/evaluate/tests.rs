//! Metrics of users, of traces that are written down, and of a run that is stored.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::derive::definition::parse;
use crate::derive::migration::tests::trace;
use crate::model::metric::{STREAMS, numbers, texts};
use crate::observe::trace::{EVENTS, What};

fn one_metric(body: &str) -> Metric {
    let text = format!("[[metric]]\nname = 'own'\ntitle = 'Own'\nunit = 'ms'\n{body}\n");
    parse(Path::new("m.toml"), &text).unwrap_or_else(|error| panic!("{error}")).remove(0)
}

fn values(body: &str) -> Result<Vec<Given>, No> {
    evaluate(&one_metric(body), &Seen::of(trace()))
}

fn value(body: &str) -> Result<f64, No> {
    values(body).map(|values| single(&values))
}

/// The one value of a metric that has no parts.
fn single(values: &[Given]) -> f64 {
    assert!(values.len() == 1 && values[0].phase.is_empty(), "{values:?}");
    values[0].value.unwrap()
}

fn refused(body: &str) -> String {
    let text = format!("[[metric]]\nname = 'own'\ntitle = 'Own'\nunit = 'ms'\n{body}\n");
    parse(Path::new("m.toml"), &text).unwrap_err().to_string()
}

#[test]
fn each_kind_is_what_the_trace_has() {
    for (body, wanted) in [
        ("from = 'migrate_called'\nto = 'migrate_returned'", 8000.0),
        ("from = 'migrate_returned'\nto = 'migrate_called'", -8000.0),
        ("from = 'migrate_called'\nto = 'migrate_returned'\nscale = 0.5", 4000.0),
        (
            "from = { event = 'lifecycle', where = { host = 'a' } }\nto = { event = 'lifecycle', where = { change = 'resumed' } }",
            370.0,
        ),
        // The first row from the moment on, and the last one at all.
        (
            "from = { event = 'lifecycle', where = { host = 'b' } }\n\
          to = { stream = 'pings', pick = 'first', after = { event = 'lifecycle', where = { host = 'b' } } }",
            20.0,
        ),
        (
            "from = 'migrate_returned'\nto = { stream = 'beats', where = { content = 'local' }, pick = 'first' }",
            500.0,
        ),
        (
            "from = 'migrate_called'\nto = { last = ['migrate_returned', { event = 'recontextualized', where = { '/record/outcome' = 'done' } }] }",
            8900.0,
        ),
        ("from = 'migrate_called'\nto = { first = ['migrate_returned', 'recontextualized'] }", 8000.0),
        ("gap = { stream = 'pings', from = 'migrate_called', to = 'migrate_returned' }", 450.0),
        (
            "gap = { stream = 'pings', from = 'migrate_called', to = { event = 'lifecycle', where = { host = 'a' }, pick = 'last' } }",
            450.0,
        ),
        (
            "gap = { stream = 'beats', from = 'recontextualized', to = { event = 'clock', pick = 'last' } }",
            50.0,
        ),
        ("field = { of = { event = 'job_completed' }, pointer = '/stats/downtime_ms' }", 380.0),
        (
            "field = { of = { event = 'recontextualized' }, pointer = '/record/phases/0/end_ns' }\nscale = 1e-6",
            500.0,
        ),
        ("percentile = { stream = 'pings', column = 'sequence', p = 50, to = 'migrate_called' }", 500.0),
        ("percentile = { stream = 'pings', column = 'sequence', p = 100, to = 'migrate_called' }", 1000.0),
        ("percentile = { stream = 'pings', column = 'sequence', p = 0.1 }", 0.0),
        ("count = { event = 'lifecycle' }", 2.0),
        ("count = { event = 'iteration' }", 0.0),
        ("count = { stream = 'beats', where = { content = 'local' } }", 50.0),
        ("count = { stream = 'pings', where = { sequence = 50 } }", 1.0),
        ("count = { event = 'migrate_called', where = { accounts = true } }", 1.0),
    ] {
        let found = value(body).unwrap_or_else(|no| panic!("{body}: {no:?}"));
        assert!((found - wanted).abs() < 1e-6, "{body}: {found} for {wanted}");
    }
}

/// The phases of the recontextualizer's run, and what they add up to.
#[test]
fn parts_of_a_record_are_told_by_their_names() {
    let parts = "parts = { of = { event = 'recontextualized' }, list = '/record/phases', name = '/name', from = '/start_ns', to = '/end_ns' }";
    let found = values(parts).unwrap();
    let names: Vec<&str> = found.iter().map(|given| given.phase.as_str()).collect();
    assert_eq!(names, ["attach", "acknowledge"]);
    assert!(found.iter().all(|given| given.value.is_some_and(|value| value > 0.0)), "{found:?}");
    let wrong = parts.replace("/start_ns", "/begin_ns");
    assert!(
        matches!(values(&wrong), Err(No::Missing(reason)) if reason.contains("a part without /begin_ns"))
    );
    let wrong = parts.replace("/record/phases", "/record/parts");
    assert!(
        matches!(values(&wrong), Err(No::Missing(reason)) if reason.contains("no list at /record/parts"))
    );
}

/// A pause that is no longer than that between two rows anyway is none, and not 0.
#[test]
fn the_usual_pause_is_no_silence() {
    let gap = |interval: &str| {
        let body = format!(
            "gap = {{ stream = 'beats', interval = '{interval}', from = 'migrate_called', to = 'migrate_returned' }}"
        );
        values(&body).unwrap()[0].value
    };
    assert!(gap("50 ms").is_some_and(|value| (value - 400.0).abs() < 1e-6));
    assert_eq!(gap("450 ms"), None);
}

#[test]
fn a_clock_that_ran_wrong_and_an_unsteady_start_are_doubts() {
    let metric = one_metric(
        "clock = 'a'\nsteady = true\nfield = { of = { event = 'job_completed' }, pointer = '/stats/downtime_ms' }",
    );
    let mut seen = trace();
    assert_eq!(doubt(&metric, &seen), None);
    let unread = one_metric("clock = 'c'\ncount = { event = 'clock' }");
    assert!(doubt(&unread, &seen).is_some_and(|reason| reason.contains("host c was not read")));
    let first = seen.observations[0].clone();
    seen.observations.insert(0, crate::observe::trace::Observation { what: What::Unsteady, ..first });
    assert_eq!(doubt(&metric, &seen).as_deref(), Some(UNSTEADY));
}

#[test]
fn a_guest_that_is_dead_at_the_end_has_no_gap() {
    let gap = one_metric("gap = { stream = 'beats', from = 'migrate_called', to = 'migrate_returned' }");
    let without = |dead: std::ops::Range<u64>| {
        let mut trace = trace();
        trace.beats.retain(|beat| !dead.contains(&beat.at_ns));
        evaluate(&gap, &Seen::of(trace))
    };
    assert!((single(&without(0..0).unwrap()) - 450.0).abs() < 1e-6);
    for dead in [8_000_000_000..u64::MAX, 0..1_100_000_000] {
        assert!(
            matches!(without(dead.clone()), Err(No::Missing(reason)) if reason.contains("all of that time")),
            "{dead:?}"
        );
    }
}

#[test]
fn a_percentile_is_the_rank_that_it_names() {
    let mut trace = trace();
    trace.pings = (0..1000).map(|n| crate::observe::stream::Pinged { at_ns: n, sequence: n + 1 }).collect();
    let seen = Seen::of(trace);
    for (p, rank) in [("7", 70.0), ("28", 280.0), ("55", 550.0), ("99.9", 999.0), ("100", 1000.0)] {
        let metric =
            one_metric(&format!("percentile = {{ stream = 'pings', column = 'sequence', p = {p} }}"));
        assert!((single(&evaluate(&metric, &seen).unwrap()) - rank).abs() < 1e-9, "{p}");
    }
}

#[test]
fn what_is_not_there_or_not_alone_is_told() {
    let missing = |body| match value(body) {
        Err(No::Missing(reason)) => reason,
        other => panic!("{body}: {other:?}"),
    };
    assert_eq!(
        missing(
            "from = 'migrate_called'\nto = { event = 'lifecycle', where = { host = 'c', change = 'x' } }"
        ),
        "there is no event `lifecycle` with change = \"x\", host = \"c\""
    );
    assert!(missing("from = 'iteration'\nto = 'migrate_called'").contains("event `iteration`"));
    let text = "field = { of = { event = 'job_completed' }, pointer = '/stats/kind' }";
    assert!(missing(text).contains("no number at /stats/kind"));
    let after = "gap = { stream = 'beats', from = { event = 'clock', pick = 'last' }, to = { event = 'clock', pick = 'first' } }";
    assert!(
        missing(after).contains("no two rows"),
        "a pause that begins after the end, and ends before the begin"
    );
    assert_eq!(
        value("from = 'migrate_called'\nto = 'lifecycle'"),
        Err(No::Several("there are 2 of event `lifecycle`".into()))
    );
    assert!(matches!(value("from = 'migrate_called'\nto = { stream = 'beats' }"), Err(No::Several(_))));
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    for (body, reason) in [
        ("", "nothing, or several things"),
        ("from = 'migrate_called'", "nothing, or several things"),
        (
            "from = 'migrate_called'\nto = 'migrate_returned'\ncount = { event = 'clock' }",
            "nothing, or several things",
        ),
        ("from = 'migrated'\nto = 'migrate_returned'", "there is no event `migrated`"),
        ("from = 'migrated'\nto = 7", "m.toml:6:6: "),
        ("from = { event = 'clock', stream = 'beats' }\nto = 'clock'", "of an event or of a stream"),
        ("from = { pick = 'first' }\nto = 'clock'", "of an event or of a stream"),
        ("from = { first = ['clock'], event = 'clock' }\nto = 'clock'", "each stand alone"),
        ("from = { last = [] }\nto = 'clock'", "each stand alone"),
        ("count = { event = 'clock', wher = {} }", "unknown field `wher`"),
        ("count = { event = 'clock', pick = 'first' }", "a count has no `pick`"),
        ("count = { stream = 'beats', where = { sequence = 1 } }", "does not have `sequence`"),
        ("count = { stream = 'pings', where = { sequence = 'x' } }", "does not have `sequence`"),
        ("count = { stream = 'beats', where = { len = 1.5 } }", "did not match any variant"),
        ("field = { of = { stream = 'beats' }, pointer = '/x' }", "a field is of an event"),
        ("field = { of = { event = 'clock' }, pointer = 'reading' }", "no JSON pointer"),
        ("percentile = { stream = 'beats', column = 'head', p = 50 }", "`column` is none of its numbers"),
        ("percentile = { stream = 'beats', column = 'len', p = 0 }", "`p` makes no sense"),
        ("percentile = { stream = 'beats', column = 'len', p = nan }", "out of its range"),
        ("count = { event = 'clock' }\nscale = 0.0", "`scale` makes no sense"),
        ("count = { event = 'clock' }\nscale = inf", "out of its range"),
        ("from = 'clock'\nto = 'clock'\nunknown = 1", "unknown field `unknown`"),
    ] {
        let said = refused(body);
        assert!(said.starts_with("m.toml:") && said.contains(reason), "{body}: {said}");
    }
    let named = |name: &str, unit: &str| {
        let text = format!(
            "[[metric]]\nname = '{name}'\ntitle = 'T'\nunit = '{unit}'\nfrom = 'clock'\nto = 'clock'\n"
        );
        parse(Path::new("m.toml"), &text)
    };
    assert!(named("own", "s").is_ok());
    for (name, unit, reason) in [
        ("Own", "s", "lower-case"),
        ("", "s", "lower-case"),
        ("downtime", "s", "the bench has a metric of this name"),
        ("own", "minutes", "s, ms, µs or ns"),
        ("own", " ", "empty"),
    ] {
        let error = named(name, unit).unwrap_err();
        assert!(format!("{error}; {}", error.help()).contains(reason), "{name} {unit}: {error}");
    }
    let twice = "[[metric]]\nname = 'a'\ntitle = 'A'\nunit = '1'\ncount = { event = 'clock' }\n".repeat(2);
    assert!(parse(Path::new("m.toml"), &twice).unwrap_err().to_string().contains("two of this name"));
    let deep = format!("from = {}'clock'{}\nto = 'clock'", "{ last = [".repeat(5000), "] }".repeat(5000));
    assert!(refused(&deep).starts_with("m.toml:"));
    let many = "[[metric]]\nname = 'a'\ntitle = 'A'\nunit = '1'\ncount = { event = 'clock' }\n".repeat(1001);
    assert!(parse(Path::new("m.toml"), &many).unwrap_err().to_string().contains("1 to 1000 are taken"));
}

/// The names that a file may have are those that the log has.
#[test]
fn events_have_the_names_of_the_log() {
    let reading = crate::observe::clock::Reading { at_ns: 0, uncertainty_ns: 0, says_ns: 0 };
    let text = String::new;
    let of_trace = trace().observations.into_iter().map(|seen| seen.what);
    let others = [
        What::Unsteady,
        What::Iteration { host: text(), pass: 1 },
        What::Requested { host: text() },
        What::Clock { machine: text(), reading },
        What::Missed { wanted: crate::observe::trace::Wanted::Record, reason: text() },
    ];
    let mut names = std::collections::BTreeSet::new();
    for what in of_trace.chain(others) {
        let json = serde_json::to_value(&what).unwrap();
        let name = json["what"].as_str().unwrap();
        assert!(EVENTS.contains(&name), "{name}");
        names.insert(name.to_owned());
    }
    assert_eq!(names.len(), EVENTS.len(), "{names:?}");
}

#[test]
fn the_examples_of_the_document_are_metrics_and_its_tables_are_whole() {
    let document = include_str!("../../../docs/metrics.md");
    let example = document.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let definitions = parse(Path::new("docs/metrics.md"), example).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(definitions.len(), 5);
    let seen = Seen::of(trace());
    for definition in &definitions {
        // The trace of the tests has no passes.
        let found = evaluate(definition, &seen);
        assert_eq!(found.is_ok(), definition.name != "passes", "{}: {found:?}", definition.name);
    }
    for stream in STREAMS {
        for column in numbers(stream).iter().chain(texts(stream)) {
            assert!(document.contains(&format!("`{column}`")), "{column}");
        }
    }
}

proptest! {
    /// Whatever a file has, it is taken or refused.
    #[test]
    fn no_file_brings_the_reader_down(text in "\\PC{0,200}", body in "[a-z_ ={}\\[\\]'0-9.,\\n]{0,120}") {
        let _ = parse(Path::new("m.toml"), &text);
        let _ = parse(Path::new("m.toml"), &format!("[[metric]]\nname = 'a'\ntitle = 'A'\nunit = 's'\n{body}"));
    }
}
