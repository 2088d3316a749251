//! Output that nobody reads, a full device, and what never ends.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn bench() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("bench"))
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// A device on which there is no space.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn quiet_or_said(words: &[&str]) {
    let output = bench().args(words).stdout(gone()).output().unwrap();
    assert_eq!((output.status.code(), says(&output)), (Some(0), String::new()), "{words:?}");
    let output = bench().args(words).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    let said = says(&output);
    assert!(said.starts_with("bench: cannot write to standard output: No space left on device"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn output_into_a_closed_pipe_is_quiet_and_into_a_full_device_fails() {
    let scenario = concat!(env!("CARGO_MANIFEST_DIR"), "/../scenarios/paper/migration-kvm.toml");
    for words in [&["--help"][..], &["--version"], &["run", "--help"], &["schema"], &["check", scenario]] {
        quiet_or_said(words);
    }
    for stderr in [gone, full] {
        assert_eq!(bench().stderr(stderr()).status().unwrap().code(), Some(64));
        let status = bench().args(["report", "/nonexistent"]).stderr(stderr()).status().unwrap();
        assert_eq!(status.code(), Some(1));
    }
}

#[test]
fn what_never_ends_is_refused_by_name_and_limit() {
    let dir = tempfile::tempdir().unwrap();
    let never = dir.path().join("never.toml");
    std::os::unix::fs::symlink("/dev/zero", &never).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("manifest.json")).unwrap();
    for (words, name, limit) in [
        (["check", never.to_str().unwrap()], "never.toml", "4 MiB"),
        (["report", dir.path().to_str().unwrap()], "manifest.json", "16 MiB"),
    ] {
        let output = bench().args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = says(&output);
        assert!(said.contains(name) && said.contains(limit), "{words:?}: {said}");
    }
}
