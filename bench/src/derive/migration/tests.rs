//! Values of traces that are written down here, event by event.

use super::*;
use crate::model::Sample;
use crate::observe::stream::{Beaten, Pinged};
use crate::observe::trace::Observation;
use crate::plan::Trial;
use crate::scenario::Arm;

const MS: u64 = 1_000_000;

fn at(ms: u64, what: What) -> Observation {
    Observation { at_ns: ms * MS, what }
}

fn lifecycle(host: &str, change: &str) -> What {
    What::Lifecycle { host: host.into(), change: change.into(), why: "migrated".into() }
}

fn clock(host: &str, ms: u64, says: u64) -> Observation {
    let reading = Reading { at_ns: ms * MS, uncertainty_ns: MS, says_ns: says * 1000 * MS };
    at(ms, What::Clock { machine: host.into(), reading })
}

/// A run as a daemon's event log has it: half a second of attaching, and the guest's answer a quarter later.
fn record(outcome: &str, acknowledged: bool) -> What {
    let mut line = serde_json::json!({
        "run": "host-2-1", "host": "host-2", "domain": "guest", "uuid": "u", "target": "sdb",
        "class": "infrastructure", "strategy": "replace", "trigger": { "kind": "manual", "reason": null },
        "received": { "monotonic_ns": 0, "realtime_ns": 0 }, "coalesced": 0, "attempt": 1,
        "phases": [{ "name": "attach", "start_ns": 0, "end_ns": 500_000_000 }], "total_ns": 500_000_000,
        "outcome": outcome, "generation": 2, "iso": null, "error": null
    });
    if acknowledged {
        let phase =
            serde_json::json!({ "name": "acknowledge", "start_ns": 500_000_000, "end_ns": 750_000_000 });
        line["phases"].as_array_mut().unwrap().push(phase);
    }
    What::Recontextualized { host: "b".into(), record: serde_json::from_value(line).unwrap() }
}

fn beat(ms: u64, head: &str) -> Beaten {
    Beaten {
        at_ns: ms * MS,
        seq: 0,
        skipped: 0,
        mono_ns: 0,
        real_ns: 0,
        read_ns: 0,
        error: String::new(),
        len: 0,
        digest: String::new(),
        head: format!("{head}\n"),
    }
}

/// Signs of life each 50 ms but for some, of a migration from 1000 to 9000 ms whose guest stood still from 8000 to 8400
/// and ran at the destination at 8380.
pub(crate) fn trace() -> Trace {
    let silent = |ms: &u64| !(8000..8400).contains(ms);
    let stats = JobStats {
        time_elapsed_ms: Some(7500),
        downtime_ms: Some(380),
        memory_processed: Some(9),
        ..JobStats::default()
    };
    Trace {
        observations: vec![
            clock("a", 900, 10),
            clock("b", 900, 20),
            at(1000, What::MigrateCalled { from: "a".into(), to: "b".into(), accounts: true }),
            at(8010, lifecycle("a", "suspended")),
            at(8380, lifecycle("b", "resumed")),
            at(8390, What::JobCompleted { host: "a".into(), stats: Box::new(stats) }),
            at(9000, What::MigrateReturned { error: None }),
            at(9900, record("done", true)),
            clock("a", 10_900, 20),
            clock("b", 10_900, 30),
        ],
        beats: (0..240)
            .map(|n| n * 50)
            .filter(silent)
            .map(|ms| beat(ms, if ms < 9500 { "remote" } else { "local" }))
            .collect(),
        pings: (0..240)
            .map(|n| n * 50)
            .filter(silent)
            .map(|ms| Pinged { at_ns: ms * MS, sequence: ms })
            .collect(),
    }
}

const ASKED: Asked<'_> = Asked { content: "local", acknowledge: true };

fn samples(measures: Measures) -> Vec<Sample> {
    let trial = Trial { block: 1, arm: Arm::Recontext, order: 0, file_operations: false };
    let conditions =
        super::super::measure::Conditions { accelerator: "tcg", hypervisor: "kvm", dilation: 1.0 };
    measures.samples(&trial, &conditions)
}

fn find(measures: Measures, metric: &str, phase: &str) -> Sample {
    let all = samples(measures);
    all.iter().find(|s| s.metric == metric && s.phase == phase).cloned().unwrap_or_else(|| panic!("{all:#?}"))
}

fn value(measures: Measures, metric: &str) -> f64 {
    let sample = find(measures, metric, "");
    assert!(sample.valid, "{sample:?}");
    sample.value.unwrap()
}

fn reason(measures: Measures, metric: &str) -> String {
    let sample = find(measures, metric, "");
    assert!(!sample.valid && sample.value.is_none(), "{sample:?}");
    sample.reason
}

fn close(value: f64, wanted: f64) {
    assert!((value - wanted).abs() < 1e-9, "{value} for {wanted}");
}

#[test]
fn each_value_is_between_the_moments_that_its_definition_names() {
    let trace = trace();
    close(value(migration(&trace), metric::MIGRATION_TOTAL), 8.0);
    close(value(migration(&trace), metric::MIGRATION_TIME_LIBVIRT), 7.5);
    close(value(migration(&trace), metric::DOWNTIME), 380.0);
    // Silent from 7950 to 8400, less the 50 ms between two signs of life.
    close(value(migration(&trace), metric::DOWNTIME_PROBE), 400.0);
    close(value(migration(&trace), metric::DOWNTIME_PING), 400.0);
    let after = recontextualized(&trace, ASKED);
    close(value(after.clone(), metric::WITH_RECONTEXT_TOTAL), 8.65);
    close(value(after.clone(), metric::RECONTEXT_TIME), 0.5);
    close(value(after.clone(), metric::CONTENT_VISIBLE), 1.12);
    close(value(after.clone(), metric::CONTENT_VISIBLE_FROM_START), 8.5);
    assert_eq!(find(after.clone(), metric::RECONTEXT_PHASE, "attach").value, Some(0.5));
    assert_eq!(find(after, metric::RECONTEXT_PHASE, metric::ACKNOWLEDGE).value, Some(0.25));
}

#[test]
fn a_guest_that_is_dead_after_the_switch_has_no_downtime() {
    let mut trace = trace();
    trace.beats.retain(|beat| beat.at_ns < 8000 * MS);
    trace.pings.retain(|ping| ping.at_ns < 8000 * MS);
    let wanted = "no heartbeat came after the switch: the guest was silent for more than 2.9 s";
    assert_eq!(reason(migration(&trace), metric::DOWNTIME_PROBE), wanted);
    assert!(reason(migration(&trace), metric::DOWNTIME_PING).contains("silent for more than 2.9 s"));
    // The migration itself was one.
    close(value(migration(&trace), metric::MIGRATION_TOTAL), 8.0);
    trace.beats.clear();
    assert!(reason(migration(&trace), metric::DOWNTIME_PROBE).contains("no heartbeat came after"));
}

#[test]
fn a_blackout_without_a_sign_of_life_before_it_is_not_measured() {
    let mut trace = trace();
    trace.beats.retain(|beat| beat.at_ns >= 8400 * MS);
    assert_eq!(reason(migration(&trace), metric::DOWNTIME_PROBE), "no heartbeat came before the switch");
}

#[test]
fn a_silence_that_began_before_the_call_counts_whole() {
    let mut trace = trace();
    trace.pings.retain(|ping| ping.at_ns < 900 * MS || ping.at_ns >= 8400 * MS);
    close(value(migration(&trace), metric::DOWNTIME_PING), 8400.0 - 850.0 - 50.0);
}

#[test]
fn a_blackout_too_short_to_be_seen_is_not_zero() {
    let mut trace = trace();
    trace.beats = (0..240).map(|n| beat(n * 50, "remote")).collect();
    let sample = find(migration(&trace), metric::DOWNTIME_PROBE, "");
    assert!(sample.valid && sample.value.is_none(), "{sample:?}");
}

#[test]
fn what_the_program_is_silent_for_later_is_no_blackout() {
    let mut trace = trace();
    // Its file is replaced under it, long after the guest has arrived.
    trace.beats.retain(|beat| !(9100 * MS..9800 * MS).contains(&beat.at_ns));
    close(value(migration(&trace), metric::DOWNTIME_PROBE), 400.0);
}

#[test]
fn an_unsteady_start_is_a_reason() {
    let mut trace = trace();
    trace.observations.insert(0, at(1, What::Unsteady));
    assert!(reason_kept(&trace, metric::DOWNTIME_PROBE).contains("not steady"));
    assert!(reason_kept(&trace, metric::DOWNTIME_PING).contains("not steady"));
    close(value(migration(&trace), metric::MIGRATION_TOTAL), 8.0);
}

fn reason_kept(trace: &Trace, metric: &str) -> String {
    let sample = find(migration(trace), metric, "");
    assert!(!sample.valid);
    sample.reason
}

#[test]
fn with_recontextualization_is_never_less_than_its_own_migration() {
    // Xen's call returns after the guest runs and has its data.
    let mut trace = trace();
    for seen in &mut trace.observations {
        match &mut seen.what {
            What::MigrateReturned { .. } => seen.at_ns = 12_000 * MS,
            What::MigrateCalled { accounts, .. } => *accounts = false,
            _ => {}
        }
    }
    close(value(migration(&trace), metric::MIGRATION_TOTAL), 11.0);
    close(value(recontextualized(&trace, ASKED), metric::WITH_RECONTEXT_TOTAL), 11.0);
    close(value(recontextualized(&trace, ASKED), metric::CONTENT_VISIBLE), 1.12);
    assert!(samples(migration(&trace)).iter().all(|sample| sample.metric != metric::DOWNTIME));
}

#[test]
fn content_that_was_there_before_the_news_of_the_switch_is_signed() {
    let mut trace = trace();
    trace
        .beats
        .iter_mut()
        .filter(|beat| beat.at_ns >= 8400 * MS)
        .for_each(|beat| beat.head = "local\n".into());
    for seen in &mut trace.observations {
        if matches!(&seen.what, What::Lifecycle { change, .. } if change == "resumed") {
            seen.at_ns = 8600 * MS;
        }
    }
    close(value(recontextualized(&trace, ASKED), metric::CONTENT_VISIBLE), -0.2);
}

#[test]
fn without_the_news_of_the_switch_content_visible_is_invalid_and_the_rest_is_not() {
    let mut trace = trace();
    trace
        .observations
        .retain(|seen| !matches!(&seen.what, What::Lifecycle { change, .. } if change == "resumed"));
    assert_eq!(reason(recontextualized(&trace, ASKED), metric::CONTENT_VISIBLE), NO_SWITCH);
    close(value(recontextualized(&trace, ASKED), metric::CONTENT_VISIBLE_FROM_START), 8.5);
    close(value(migration(&trace), metric::DOWNTIME_PROBE), 400.0);
}

#[test]
fn what_was_missed_has_the_reason_that_the_trial_wrote_down() {
    let mut trace = trace();
    trace.observations.retain(|seen| !matches!(seen.what, What::Recontextualized { .. }));
    trace.beats.retain(|beat| beat.at_ns < 9500 * MS);
    let missed = |wanted, reason: &str| at(10_800, What::Missed { wanted, reason: reason.into() });
    trace.observations.push(missed(Wanted::Record, "none came"));
    trace.observations.push(missed(Wanted::Content, "it read \"remote\""));
    let after = || recontextualized(&trace, ASKED);
    assert_eq!(reason(after(), metric::WITH_RECONTEXT_TOTAL), "none came");
    assert_eq!(reason(after(), metric::RECONTEXT_TIME), "none came");
    assert_eq!(reason(after(), metric::CONTENT_VISIBLE), "it read \"remote\"");
}

#[test]
fn a_failed_recontextualization_gives_no_time_and_its_reason() {
    let mut trace = trace();
    for seen in &mut trace.observations {
        if matches!(seen.what, What::Recontextualized { .. }) {
            seen.what = record("failed", false);
        }
    }
    let said = reason(recontextualized(&trace, ASKED), metric::WITH_RECONTEXT_TOTAL);
    assert_eq!(said, "host b: recontextualization failed: it gave no reason");
}

#[test]
fn a_clock_that_runs_wrong_invalidates_what_it_measured_and_nothing_else() {
    let mut wrong = trace();
    wrong.observations.retain(|seen| !matches!(&seen.what, What::Clock { machine, .. } if machine == "a"));
    wrong.observations.insert(0, clock("a", 900, 10));
    wrong.observations.push(clock("a", 10_900, 50));
    for metric in [metric::DOWNTIME, metric::MIGRATION_TIME_LIBVIRT] {
        assert!(reason_kept(&wrong, metric).contains("the clock of host a ran at 4.000"), "{metric}");
    }
    close(value(migration(&wrong), metric::MIGRATION_TOTAL), 8.0);
    close(value(recontextualized(&wrong, ASKED), metric::RECONTEXT_TIME), 0.5);
    // One that was read once was not checked.
    wrong.observations.pop();
    assert!(reason_kept(&wrong, metric::DOWNTIME).contains("was not read before and after"));
}

#[test]
fn a_trial_that_was_broken_off_gives_what_it_had_seen() {
    let whole = trace();
    let until = |ms: u64| Trace {
        observations: whole.observations.iter().filter(|seen| seen.at_ns < ms * MS).cloned().collect(),
        ..whole.clone()
    };
    assert!(migration(&until(1000)).is_empty());
    assert!(migration(&until(8000)).is_empty(), "the guest has not arrived");
    let arrived = samples(migration(&until(8385)));
    assert_eq!(
        arrived.iter().map(|sample| sample.metric.as_str()).collect::<Vec<_>>(),
        [metric::DOWNTIME_PROBE, metric::DOWNTIME_PING]
    );
    let mut failed = until(8385);
    failed.observations.push(at(9000, What::MigrateReturned { error: Some("no route".into()) }));
    assert!(samples(migration(&failed)).iter().all(|sample| sample.metric != metric::MIGRATION_TOTAL));
    assert!(recontextualized(&failed, ASKED).is_empty());
}

#[test]
fn an_acknowledgement_is_missing_only_where_it_was_asked_for() {
    let without = |asked| {
        let mut trace = trace();
        for seen in &mut trace.observations {
            if matches!(seen.what, What::Recontextualized { .. }) {
                seen.what = record("done", false);
            }
        }
        samples(recontextualized(&trace, Asked { acknowledge: asked, ..ASKED }))
    };
    let acknowledgements =
        |all: Vec<Sample>| all.into_iter().filter(|s| s.phase == metric::ACKNOWLEDGE).collect::<Vec<_>>();
    assert!(acknowledgements(without(false)).is_empty());
    let lacking = acknowledgements(without(true));
    assert_eq!(
        lacking[0].reason,
        "the recontextualizer did not wait: it found no way on which the guest answers"
    );
    assert_eq!(Phase::Acknowledge.name(), metric::ACKNOWLEDGE);
}

#[test]
fn a_run_by_request_is_the_one_after_the_request() {
    let mut trace = trace();
    assert!(requested(&trace, false).is_empty(), "nobody asked");
    trace.observations.insert(9, at(9950, What::Requested { host: "b".into() }));
    assert_eq!(reason(requested(&trace, false), metric::RECONTEXT_TIME), "the trial ended before it came");
    trace.observations.insert(10, at(10_000, record("done", false)));
    close(value(requested(&trace, false), metric::RECONTEXT_TIME), 0.5);
}
