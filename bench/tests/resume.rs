//! Runs that were cut off, and how they go on: on this machine's own kernel, so that nothing boots.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test ends where it cannot go on, and says why it is skipped"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bench::model::Sample;
use bench::plan::{Plan, Trial};
use bench::scenario::Scenario;
use bench::store::{About, Environment, Outcome, RunFolder, StoredRun, kind, verify};
use serde_json::json;

const TEXT: &str = "title = \"t\"\nexperiment = \"migration\"\n\
    [design]\narms = [\"plain\", \"recontext\"]\nblocks = 1\nwarmup = 0\nseed = 7\n";

/// A run of [`TEXT`] that has begun.
fn begun(results: &Path) -> (RunFolder, Plan) {
    let scenario = Scenario::parse("resume.toml", TEXT, None).unwrap();
    let plan = Plan::new(&scenario);
    (RunFolder::create(results, &scenario, &plan, About::default()).unwrap(), plan)
}

fn sample(trial: &Trial, valid: bool) -> Sample {
    Sample {
        block: trial.block,
        arm: trial.arm.to_string(),
        order: trial.order,
        metric: bench::metric::MIGRATION_TOTAL.into(),
        phase: String::new(),
        value: Some(1.0),
        unit: "s".into(),
        valid,
        reason: if valid { "" } else { "late" }.into(),
        accelerator: "tcg".into(),
        hypervisor: "kvm".into(),
        dilation: 1.0,
    }
}

/// A run with all its trials, and without an end.
fn measured(results: &Path, valid: bool) -> PathBuf {
    let (run, plan) = begun(results);
    for trial in &plan.trials {
        run.trial_started(trial).unwrap();
        run.samples(&[sample(trial, valid)]).unwrap();
        run.trial_ended(trial, &Outcome::Completed).unwrap();
    }
    run.path().to_owned()
}

/// `bench resume` without a program that it could start, so that it cannot boot anything.
fn resume_alone(run: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command
        .arg("resume")
        .arg(run)
        .env("PATH", "/nonexistent")
        .env("BENCH_CACHE", run.with_file_name("cache"));
    command.stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn resumes(run: &Path, missing: &str, status: i32) {
    let output = resume_alone(run);
    assert_eq!(output.status.code(), Some(status), "{missing}: {}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("report: "), "{missing}: {output:?}");
    let stored = StoredRun::read(run).unwrap();
    assert!(stored.manifest.ended_utc.is_some() && stored.is_finished(), "{missing}");
    assert!(run.join("report.html").is_file(), "{missing}");
    assert_eq!(verify(run).unwrap(), [], "{missing}");
}

/// The manifest as it was before the run ended.
fn unend(run: &Path) {
    let path = run.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let ended = StoredRun::read(run).unwrap().manifest.ended_utc.unwrap();
    fs::write(&path, text.replace(&format!("\"ended_utc\": \"{ended}\""), "\"ended_utc\": null")).unwrap();
}

#[test]
fn a_run_without_a_trial_left_is_finished_wherever_it_was_killed() {
    let root = tempfile::tempdir().unwrap();
    let run = measured(root.path(), true);
    resumes(&run, "after the last trial", 0);
    for missing in ["report.html", "checksums.sha256", "samples.csv"] {
        fs::remove_file(run.join(missing)).unwrap();
        resumes(&run, missing, 0);
        assert!(run.join(missing).is_file());
    }
    // After the event of its end, and before the manifest has it.
    unend(&run);
    fs::remove_file(run.join("checksums.sha256")).unwrap();
    fs::remove_file(run.join("report.html")).unwrap();
    resumes(&run, "the end in the manifest", 0);
    resumes(&run, "nothing", 0);
}

#[test]
fn a_finished_run_ends_as_it_would_have_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let run = measured(root.path(), false);
    resumes(&run, "after the last trial", 2);
    fs::remove_file(run.join("report.html")).unwrap();
    resumes(&run, "report.html", 2);
}

/// All files of a folder with their bytes.
fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn another_machine_is_refused_with_all_that_differs_before_anything_is_done() {
    let root = tempfile::tempdir().unwrap();
    let (run, _) = begun(root.path());
    let environment = Environment {
        accelerator: Some("tcg".into()),
        tools: json!({ "kernel": "Linux 2.6.32", "processor": "Z80", "qemu": "QEMU emulator version 0.9" }),
        images: json!({ "host": { "digest": "d" }, "guest": { "digest": "e" } }),
        ..Environment::default()
    };
    run.environment(environment).unwrap();
    run.update_manifest(|manifest| manifest.tool_version = "0.0.1".into()).unwrap();
    let path = run.path().to_owned();
    drop(run);
    let run = path;
    // A torn line stays, too: the run may go on elsewhere.
    let mut log = fs::read(run.join("events.jsonl")).unwrap();
    log.extend(b"{\"seq\":2,");
    fs::write(run.join("events.jsonl"), log).unwrap();
    let before = content(&run);
    let cache = tempfile::tempdir().unwrap();
    common::plant(cache.path());
    let resume = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        command.arg("resume").arg(&run).env("BENCH_CACHE", cache.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        said(&output)
    };
    let told = resume();
    let mut lines = vec![
        "tool_version: stored \"0.0.1\", here ",
        "tools.kernel: stored \"Linux 2.6.32\", here \"Linux ",
        "images.host.digest: stored \"d\", here ",
        "images.guest.digest: stored \"e\", here ",
        "`bench run`",
    ];
    if bench::doctor::which("qemu-system-x86_64").is_some() {
        lines.push("tools.qemu: stored \"QEMU emulator version 0.9\", here \"QEMU emulator version ");
    }
    for line in lines {
        assert!(told.contains(line), "{line} is not in: {told}");
    }
    assert!(
        told.starts_with(&format!("bench: {} was begun in another environment:\n", run.display())),
        "{told}"
    );
    assert_eq!(content(&run), before);
    // An image that would have to be built again is another one.
    fs::remove_dir_all(cache.path().join("images")).unwrap();
    let told = resume();
    assert!(told.contains("images.host.digest: stored \"d\", here \"not in the cache\""), "{told}");
}

#[test]
fn another_plan_and_a_scenario_that_is_refused_now_do_not_go_on() {
    let root = tempfile::tempdir().unwrap();
    let (run, plan) = begun(root.path());
    let path = run.path().to_owned();
    run.update_manifest(|manifest| manifest.plan.trials.reverse()).unwrap();
    drop(run);
    let output = resume_alone(&path);
    let line = format!(
        "plan.trials.0: stored block 1, {}, here block 1, {}\n",
        plan.trials[1].arm, plan.trials[0].arm
    );
    assert!(output.status.code() == Some(1) && said(&output).contains(&line), "{output:?}");

    // Stored by a version that took it.
    let (run, _) = begun(root.path());
    let path = run.path().to_owned();
    let text = format!("{TEXT}[guest]\nmemory = \"300 MB\"\n");
    run.update_manifest(|manifest| {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(&text);
        manifest.scenario.sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        manifest.scenario.text = text;
    })
    .unwrap();
    drop(run);
    let output = resume_alone(&path);
    let told = said(&output);
    assert!(output.status.code() == Some(1) && told.contains("300 MB would be rounded"), "{told}");
    assert!(told.contains("begin a new run with `bench run`"), "{told}");
    // Its report is drawn all the same.
    let report = Command::new(env!("CARGO_BIN_EXE_bench")).arg("report").arg(&path).output().unwrap();
    assert_eq!(report.status.code(), Some(0), "{}", said(&report));
}

const LOCAL: &str = r#"
title = "One file system"
experiment = "layers"
[testbed]
kind = "local"
[design]
arms = ["native"]
blocks = 3
warmup = 1
seed = 1
[layers]
files = 10
large = "1 MiB"
mounts = 1
passes = 1
swaps = 2
cached = 10
storm = "100 ms"
many_files = 10
many_layers = 2
many_looked_up = 0
"#;

/// Whether namespaces can be had here; else it says why not.
fn possible(test: &str) -> bool {
    match bench::testbed::namespace::flags() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED resume::{test}: {error}");
            false
        }
    }
}

fn bench(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn a_run_that_goes_on_warms_up_again_and_keeps_what_its_manifest_says() {
    if !possible("a_run_that_goes_on_warms_up_again_and_keeps_what_its_manifest_says") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let scenario = root.path().join("local.toml");
    fs::write(&scenario, LOCAL).unwrap();
    let results = root.path().join("results");
    let output = bench(&["run".as_ref(), &scenario, "--results".as_ref(), &results]);
    assert!(output.status.success(), "{}", said(&output));
    let run = fs::read_dir(results.join("local")).unwrap().next().unwrap().unwrap().path();

    // As it was when the first block had ended, and in the middle of an event of the second.
    unend(&run);
    for file in ["checksums.sha256", "report.html", "samples.csv"] {
        fs::remove_file(run.join(file)).unwrap();
    }
    let log = fs::read_to_string(run.join("events.jsonl")).unwrap();
    let ended = log.match_indices("\"kind\":\"trial_ended\"").nth(1).unwrap().0;
    let cut = ended + log[ended..].find('\n').unwrap() + 1 + 20;
    fs::write(run.join("events.jsonl"), &log[..cut]).unwrap();
    let manifest = fs::read_to_string(run.join("manifest.json")).unwrap();

    // On another machine it stays as it is, and is not begun.
    let kernel = StoredRun::read(&run).unwrap().manifest.tools["kernel"].as_str().unwrap().to_owned();
    let native = StoredRun::read(&run).unwrap().manifest.peers["native"].version.clone();
    let other = manifest.replace(&kernel, "Linux 1").replace(&format!("\"{native}\""), "\"Linux 1.0\"");
    fs::write(run.join("manifest.json"), &other).unwrap();
    let before = content(&run);
    let output = bench(&["resume".as_ref(), &run]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for line in [
        format!("tools.kernel: stored \"Linux 1\", here \"{kernel}\"\n"),
        format!("peers.native.version: stored \"Linux 1.0\", here \"{native}\"\n"),
    ] {
        assert!(told.contains(&line), "{line} is not in: {told}");
    }
    assert_eq!(content(&run), before);

    fs::write(run.join("manifest.json"), &manifest).unwrap();
    let output = bench(&["resume".as_ref(), &run]);
    let told = said(&output);
    assert_eq!(output.status.code(), Some(0), "{told}");
    let torn = "in the middle of this line (20 bytes); it is cut off";
    assert_eq!(told.matches(torn).count(), 1, "{told}");

    unend(&run);
    // But for the load after the run, which has ended again.
    let but_load = |text: &str| {
        let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert!(value["tools"].as_object_mut().unwrap().remove("load_average_after").is_some());
        value
    };
    assert_eq!(but_load(&fs::read_to_string(run.join("manifest.json")).unwrap()), but_load(&manifest));
    let stored = StoredRun::read(&run).unwrap();
    let begun = |event: &&bench::store::Event| event.kind == kind::TRIAL_STARTED;
    let orders: Vec<_> =
        stored.events.iter().filter(begun).map(|event| event.payload["order"].as_u64().unwrap()).collect();
    // Warm-up and the first block; then warm-up again, and the two blocks that were left.
    assert_eq!(orders, [0, 1, 0, 2, 3]);
    assert_eq!(stored.events.iter().filter(|event| event.kind == kind::ENVIRONMENT).count(), 2);
    assert!(stored.samples.iter().all(|sample| sample.valid && sample.order == sample.block));
    for (block, count) in [(0, 2), (1, 1), (2, 1), (3, 1)] {
        let of = |s: &&Sample| s.block == block && s.metric == bench::metric::STAT_WARM;
        assert_eq!(stored.samples.iter().filter(of).count(), count, "block {block}");
    }
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("4 of 4 ended"));
}
