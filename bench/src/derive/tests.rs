//! A run that is written down, stored, read and derived again.

use std::time::{Duration, Instant};

use bench_probe::{Beat, Seen};

use super::*;
use crate::metric;
use crate::observe::arrivals::arrivals;
use crate::observe::beats::Beats;
use crate::observe::pings::Pings;
use crate::observe::trace::{Recorder, What};
use crate::plan::Plan;
use crate::store::{About, Outcome, RunFolder};

const TEXT: &str = "title = \"t\"\nexperiment = \"migration\"\n\
    [design]\narms = [\"plain\"]\nblocks = 2\nwarmup = 0\nseed = 7\n";

const CONDITIONS: Conditions = Conditions { accelerator: "tcg", hypervisor: "kvm", dilation: 1.0 };

/// Signs of life each 50 ms from now on, but for those from 300 to 600 ms.
fn life() -> (Beats, Pings) {
    let now = Instant::now();
    let (beat, beats) = arrivals();
    let (ping, answers) = arrivals();
    for n in (0..40_u64).filter(|n| !(6..12).contains(n)) {
        let at = now + Duration::from_millis(n * 50);
        let seen = Seen::content(b"remote\n");
        beat.put_at(at, Beat { seq: n, skipped: 0, mono_ns: n, real_ns: n, read_ns: 1, seen });
        ping.put_at(at, n);
    }
    (beats, Pings::of(answers))
}

/// A trial as a driver does it, with a migration of a second, and whether it was done to its end.
fn trial(folder: &RunFolder, scenario: &Scenario, trial: &Trial, ended: bool) {
    let (beats, pings) = {
        folder.trial_started(trial).unwrap();
        life()
    };
    let recorder = Recorder::new(folder, trial);
    let start = Instant::now();
    let after = |ms: u64| start + Duration::from_millis(ms);
    recorder.note_at(after(200), What::MigrateCalled { from: "a".into(), to: "b".into(), accounts: false });
    recorder.note_at(after(1200), What::MigrateReturned { error: None });
    // Told after the return, and dated before it.
    let why = "migrated".to_owned();
    recorder.note_at(after(550), What::Lifecycle { host: "b".into(), change: "resumed".into(), why });
    if !ended {
        return;
    }
    let trace = recorder.end(&beats, &pings).unwrap();
    assert!(trace.observations.is_sorted_by_key(|seen| seen.at_ns));
    let values = values(&trace, scenario, trial);
    assert!(values.has(metric::MIGRATION_TOTAL) && values.has(metric::DOWNTIME_PROBE));
    folder.samples(&values.samples(trial, &CONDITIONS)).unwrap();
    folder.trial_ended(trial, &Outcome::Completed).unwrap();
}

#[test]
fn what_a_run_has_seen_gives_its_values_again() {
    let root = tempfile::tempdir().unwrap();
    let scenario = Scenario::parse("dir/derive-test.toml", TEXT, None).unwrap();
    let plan = Plan::new(&scenario);
    let about = About::default();
    let folder = RunFolder::create(root.path(), &scenario, &plan, about).unwrap();
    // An attempt that is cut off, and done again after the run was opened again.
    trial(&folder, &scenario, &plan.trials[0], false);
    let path = folder.path().to_owned();
    drop(folder);
    let folder = RunFolder::open(&path).unwrap();
    for one in &plan.trials {
        trial(&folder, &scenario, one, true);
    }
    folder.finish().unwrap();
    assert_eq!(crate::store::verify(&path).unwrap(), []);
    let run = StoredRun::read(&path).unwrap();
    assert_eq!(again(&run).unwrap(), []);
    let silent: Vec<_> = run.samples.iter().filter(|s| s.metric == metric::DOWNTIME_PING).collect();
    assert_eq!(silent.len(), 2);
    for sample in silent {
        assert!((sample.value.unwrap() - 300.0).abs() < 1e-6, "{sample:?}");
    }

    // Another value than the one that follows is told, and so is a missing one.
    let mut changed = run.clone();
    let total = |sample: &&mut Sample| sample.order == 1 && sample.metric == metric::MIGRATION_TOTAL;
    changed.samples.iter_mut().find(total).unwrap().value = Some(0.5);
    changed.samples.retain(|sample| sample.order != 0 || sample.metric != metric::DOWNTIME_PING);
    let told: Vec<String> = again(&changed).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("block 1, plain: downtime_ping is missing, and derived 300"), "{told:?}");
    assert_eq!(told[1], "block 2, plain: migration_total is 0.5 s, and derived 1 s");
}

#[test]
fn a_stream_that_was_changed_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let scenario = Scenario::parse("dir/derive-test.toml", TEXT, None).unwrap();
    let plan = Plan::new(&scenario);
    let about = About::default();
    let folder = RunFolder::create(root.path(), &scenario, &plan, about).unwrap();
    trial(&folder, &scenario, &plan.trials[0], true);
    let path = folder.path().to_owned();
    std::fs::write(path.join("streams/trial-0/beats.csv.gz"), "").unwrap();
    let error = again(&StoredRun::read(&path).unwrap()).unwrap_err().to_string();
    assert!(error.contains("streams/trial-0/beats.csv.gz"), "{error}");
    // The report has the values all the same.
    drop(folder);
    let made = crate::report::report(&[&path], None).unwrap();
    assert!(made.otherwise.iter().any(|line| line.contains("streams/trial-0/beats.csv.gz")), "{made:?}");
}

#[test]
fn an_attempt_that_did_not_end_has_no_values_to_miss() {
    let root = tempfile::tempdir().unwrap();
    let scenario = Scenario::parse("dir/derive-test.toml", TEXT, None).unwrap();
    let plan = Plan::new(&scenario);
    let folder = RunFolder::create(root.path(), &scenario, &plan, About::default()).unwrap();
    trial(&folder, &scenario, &plan.trials[0], true);
    // The second, and then the first again: both are cut off.
    trial(&folder, &scenario, &plan.trials[1], false);
    trial(&folder, &scenario, &plan.trials[0], false);
    let run = StoredRun::read(folder.path()).unwrap();
    assert_eq!(again(&run).unwrap(), []);
    let traces = Trace::all(&run).unwrap();
    assert_eq!(traces.keys().collect::<Vec<_>>(), [&0]);
    assert!(!traces[&0].beats.is_empty(), "the attempt that ended is kept");
}

#[test]
fn runs_of_before_observations_have_nothing_to_derive() {
    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/reference/smoke");
    let run = StoredRun::read(&reference).unwrap();
    assert!(!run.samples.is_empty());
    assert_eq!(again(&run).unwrap(), []);
}

fn stored(root: &std::path::Path) -> std::path::PathBuf {
    let scenario = Scenario::parse("dir/derive-test.toml", TEXT, None).unwrap();
    let plan = Plan::new(&scenario);
    let folder = RunFolder::create(root, &scenario, &plan, About::default()).unwrap();
    for one in &plan.trials {
        trial(&folder, &scenario, one, true);
    }
    folder.finish().unwrap()
}

#[test]
fn a_metric_that_is_defined_later_is_reported_beside_the_run() {
    let root = tempfile::tempdir().unwrap();
    let path = stored(&root.path().join("results"));
    let file = root.path().join("m.toml");
    std::fs::write(
        &file,
        "[[metric]]\nname = 'until_resumed'\ntitle = 'Until it runs there'\nunit = 's'\n\
         from = 'migrate_called'\nto = 'lifecycle'\n",
    )
    .unwrap();
    let definitions = definition::read(&file).unwrap();
    let out = root.path().join("out");
    let made = crate::report::report_with(&[&path], Some(&out), &definitions).unwrap();
    let html = std::fs::read_to_string(made.html).unwrap();
    assert!(html.contains("Until it runs there"));
    let samples = crate::store::read_samples(&out.join("samples.csv")).unwrap();
    let own: Vec<_> = samples.iter().filter(|sample| sample.metric == "until_resumed").collect();
    assert_eq!(own.len(), 2);
    for sample in own {
        assert!((sample.value.unwrap() - 0.35).abs() < 1e-9 && sample.valid, "{sample:?}");
        assert_eq!((sample.hypervisor.as_str(), sample.unit.as_str()), ("kvm", "s"));
    }
    // The run itself is as it was.
    assert_eq!(crate::store::verify(&path).unwrap(), []);
    assert!(!StoredRun::read(&path).unwrap().samples.iter().any(|sample| sample.metric == "until_resumed"));
    let own = crate::report::report_with(&[&path], Some(&path), &definitions);
    assert!(matches!(own, Err(crate::report::ReportError::NoFolder)));
}

#[test]
fn a_metric_that_no_trial_has_is_an_error_and_one_that_a_trial_lacks_a_sample() {
    let root = tempfile::tempdir().unwrap();
    let path = stored(root.path());
    let run = StoredRun::read(&path).unwrap();
    let metric = |body: &str| {
        let text = format!("[[metric]]\nname = 'own'\ntitle = 'Own'\nunit = 's'\n{body}\n");
        definition::parse(std::path::Path::new("m.toml"), &text).unwrap()
    };
    let nowhere = metric("from = 'migrate_called'\nto = 'recontextualized'");
    let error = evaluate::samples(&run, &nowhere).unwrap_err().to_string();
    assert!(error.contains("no trial of run") && error.contains("event `recontextualized`"), "{error}");
    let several = metric("from = 'migrate_called'\nto = { stream = 'beats' }");
    let error = evaluate::samples(&run, &several).unwrap_err().to_string();
    assert!(error.contains("say which with `pick`"), "{error}");

    let mut changed = run.clone();
    let first = |event: &&crate::store::Event| event.payload["what"] == "lifecycle";
    let at = changed.events.iter().position(|event| first(&event)).unwrap();
    changed.events.remove(at);
    let samples = evaluate::samples(&changed, &metric("from = 'migrate_called'\nto = 'lifecycle'")).unwrap();
    assert_eq!(samples.iter().map(|sample| sample.valid).collect::<Vec<_>>(), [false, true]);
    assert_eq!(samples[0].reason, "there is no event `lifecycle`");

    let reference = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/reference/smoke");
    let old = StoredRun::read(&reference).unwrap();
    let error = evaluate::samples(&old, &metric("count = { event = 'clock' }")).unwrap_err().to_string();
    assert!(error.contains("kept no events or streams"), "{error}");
}

#[test]
fn a_last_digit_is_no_difference_and_a_millionth_is() {
    assert!(equal(Some(1.725_524_105), Some(1.725_524_104_999_999_9)));
    assert!(equal(Some(0.0), Some(0.0)) && equal(None, None));
    assert!(!equal(Some(1.0), Some(1.000_001)));
    assert!(!equal(Some(0.0), Some(1e-9)) && !equal(Some(1.0), None) && !equal(None, Some(1.0)));
    assert!(!equal(Some(f64::NAN), Some(f64::NAN)));
}
