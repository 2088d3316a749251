//! A run says which programs measured, whatever repository its scenario is in.

#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bench::doctor::{Requirement, Subject, probe_with, require};
use bench::store::{StoredRun, verify};
use sha2::{Digest as _, Sha256};

/// As small as a run can be: this machine's own kernel, and no other program.
const TINY: &str = "title = 'tiny'\nexperiment = 'layers'\n[testbed]\nkind = 'local'\n\
    [design]\narms = ['native']\nblocks = 1\nwarmup = 0\nseed = 1\n\
    [layers]\nfiles = 100\nlarge = '1 MiB'\nmounts = 1\npasses = 1\nswaps = 5\ncached = 100\nstorm = '100 ms'\n\
    many_files = 1000\nmany_looked_up = 100\n";

/// Makes a folder a repository with one commit of the scenario, and gives its revision; none without git.
fn commit(folder: &Path) -> Option<String> {
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
            command.env_remove(name);
        }
        command.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-C"]);
        let output = command.arg(folder).args(words).output().ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    git(&["init", "--quiet"])?;
    git(&["add", "tiny.toml"])?;
    git(&["commit", "--quiet", "-m", "one"])?;
    git(&["rev-parse", "--short=12", "HEAD"])
}

#[test]
fn a_run_has_the_revision_of_the_bench_and_digests_of_its_programs() {
    let test = "a_run_has_the_revision_of_the_bench_and_digests_of_its_programs";
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("cache");
    let report = probe_with(&bench::doctor::Options { afresh: false, cache: Some(cache.clone()) });
    if let Err(unmet) = require(&report, &[Requirement::Works(Subject::Namespaces)]) {
        eprintln!("SKIPPED provenance::{test}: {}", unmet.to_string().replace('\n', " "));
        return;
    }
    fs::write(home.path().join("tiny.toml"), TINY).unwrap();
    // A repository that has nothing to do with the bench.
    let revision = commit(home.path());
    let program = env!("CARGO_BIN_EXE_bench");
    let output = Command::new(program)
        .args(["run", "tiny.toml"])
        .current_dir(home.path())
        .env("BENCH_CACHE", &cache)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 2)), "{said}");
    let run = fs::read_dir(home.path().join("results/tiny")).unwrap().next().unwrap().unwrap().path();
    let manifest = StoredRun::read(&run).unwrap().manifest;

    assert_eq!(manifest.git_revision, bench::provenance::revision());
    assert_eq!(manifest.scenario.git_revision, revision);
    assert!(revision.is_none() || manifest.git_revision != revision);
    let digest = |file: &str| -> String {
        Sha256::digest(fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    // No other program was used.
    assert_eq!(manifest.programs.keys().collect::<Vec<_>>(), ["bench"]);
    assert_eq!(manifest.programs["bench"], digest(program));
    let lock = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock");
    assert_eq!(manifest.cargo_lock, Some(digest(lock)));
    let tools = &manifest.tools;
    assert!(tools["libvirt"].as_str().unwrap().starts_with("libvirt.so"), "{tools}");
    assert_eq!(tools["ssh"].is_string(), bench::doctor::which("ssh").is_some(), "{tools}");
    for load in ["load_average", "load_average_after"] {
        assert_eq!(manifest.tools[load].as_str().unwrap().split(' ').count(), 5, "{}", manifest.tools);
    }
    let html = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(html.contains(&manifest.programs["bench"]), "the report does not say so");
    assert_eq!(verify(&run).unwrap(), []);

    let output = Command::new(program).arg("--version").output().unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    let known = manifest.git_revision.as_deref().unwrap_or("unknown");
    assert_eq!(version, format!("bench {} ({known})\n", env!("CARGO_PKG_VERSION")));
}
