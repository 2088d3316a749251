//! Cache folders, results and scenarios of any path: programs are never handed them.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where it cannot go on")]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bench::doctor::{Requirement, Subject, probe_with, require};
use bench::image::Cache;

/// What some program reads as its own, what is no text, and what is too long for a socket.
fn names() -> Vec<OsString> {
    let mut names: Vec<OsString> =
        ["a b", "a,b", "a=b:c", "100%h", "$HOME", "it's \"so\"", "two\nlines", "-dash", "a?b*c", "#&<\\"]
            .map(OsString::from)
            .into();
    names.push(OsString::from_vec(b"\xff\xfe".to_vec()));
    names.push("x".repeat(200).into());
    names
}

fn bench(arguments: &[&OsStr], cache: &OsStr, folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command
        .args(arguments)
        .env("BENCH_CACHE", cache)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Whether a testbed can be begun here; else it says why not.
fn possible(test: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let report = probe_with(&bench::doctor::Options { afresh: false, cache: Some(folder.path().into()) });
    let mut needed = [Subject::Qemu, Subject::Namespaces, Subject::Networks, Subject::Ssh]
        .map(Requirement::Works)
        .to_vec();
    needed.push(Requirement::program("mke2fs", "e2fsprogs"));
    match require(&report, &needed) {
        Ok(()) => true,
        Err(unmet) => {
            eprintln!("SKIPPED paths::{test}: {}", unmet.to_string().replace('\n', " "));
            false
        }
    }
}

#[test]
fn qemu_opens_all_its_files_whatever_the_cache_s_path() {
    if !possible("qemu_opens_all_its_files_whatever_the_cache_s_path") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    for name in names() {
        let cache = home.path().join(&name);
        common::plant(&cache);
        // What the probe has found, so that it is not made for each.
        let known = home.path().join("virtualization.json");
        if known.exists() {
            std::fs::copy(&known, cache.join("virtualization.json")).unwrap();
        }
        // By its name alone, as somebody may set it.
        let words = ["testbed", "up", "--hosts", "1", "--servers", "1"].map(OsStr::new);
        let output = bench(&words, &name, home.path());
        std::fs::copy(cache.join("virtualization.json"), &known).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name:?}: {said}");
        // The kernel is looked at after the drives, the console and QMP's socket.
        assert!(said.contains("it ended while it was booting (QEMU: "), "{name:?}: {said}");
        assert!(said.contains("linux kernel too old"), "{name:?}: {said}");
    }
}

#[test]
fn the_doctor_s_report_is_json_whatever_the_cache_s_path() {
    let home = tempfile::tempdir().unwrap();
    let cache = OsString::from_vec(b"\xff cache".to_vec());
    let output = bench(&["doctor", "--json"].map(OsStr::new), &cache, home.path());
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["facts"]["cache"].as_str().unwrap().ends_with("\u{fffd} cache"));
}

#[test]
fn a_machine_s_name_is_one_of_five_and_no_option_of_ssh() {
    let home = tempfile::tempdir().unwrap();
    for name in ["-oProxyCommand=true", "c", "a b", ""] {
        let words = ["testbed", "ssh", "--", name].map(OsStr::new);
        let output = bench(&words, OsStr::new("cache"), home.path());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{name:?}: {said}");
        assert!(said.contains("server-remote"), "{name:?}: {said}");
    }
    let words = ["testbed", "ssh", "a", "-oProxyCommand=true"].map(OsStr::new);
    let output = bench(&words, OsStr::new("cache"), home.path());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no testbed is up"), "{output:?}");
}

#[test]
fn a_relative_cache_is_where_the_caller_is() {
    let home = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"-cache");
    let output = bench(&["image", "list"].map(OsStr::new), name, home.path());
    assert!(output.status.success(), "{output:?}");
    assert!(home.path().join("-cache/images").is_dir());
    assert!(Cache::at(&home.path().join("-cache")).unwrap().list().unwrap().is_empty());
}
