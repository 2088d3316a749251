//! Runs whose trials are all done and whose last files could not be written: on a full disk, say.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bench::plan::Plan;
use bench::scenario::Scenario;
use bench::store::{About, Outcome, RunFolder, StoredRun, verify};

const TEXT: &str = "title = \"t\"\nexperiment = \"migration\"\n\
    [design]\narms = [\"plain\", \"recontext\"]\nblocks = 1\nwarmup = 0\nseed = 7\n";

/// A run with all its trials, and without an end.
fn measured(results: &Path) -> PathBuf {
    let scenario = Scenario::parse("resume.toml", TEXT, None).unwrap();
    let plan = Plan::new(&scenario);
    let run = RunFolder::create(results, &scenario, &plan, About::default()).unwrap();
    for trial in &plan.trials {
        run.trial_started(trial).unwrap();
        run.trial_ended(trial, &Outcome::Completed).unwrap();
    }
    run.path().to_owned()
}

#[track_caller]
fn resumes(run: &Path, missing: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_bench")).arg("resume").arg(run).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{missing}: {said}");
    let stored = StoredRun::read(run).unwrap();
    assert!(stored.manifest.ended_utc.is_some() && stored.is_finished(), "{missing}");
    assert!(run.join("report.html").is_file(), "{missing}");
    assert_eq!(verify(run).unwrap(), [], "{missing}");
}

#[test]
fn a_run_without_a_trial_left_is_finished() {
    let root = tempfile::tempdir().unwrap();
    let run = measured(root.path());
    resumes(&run, "the end in the manifest");
    for missing in ["report.html", "checksums.sha256"] {
        fs::remove_file(run.join(missing)).unwrap();
        resumes(&run, missing);
        assert!(run.join(missing).is_file());
    }
    resumes(&run, "nothing");
}
