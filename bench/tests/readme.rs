//! The README's commands exist, and its scenarios are read.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::path::Path;

use assert_cmd::Command;

const README: &str = include_str!("../../README.md");

/// Lines of the README that run a program of ours, without the prompt and the remark behind them.
fn commands() -> Vec<Vec<&'static str>> {
    README
        .lines()
        .filter_map(|line| line.strip_prefix("$ target/dist/bench "))
        .map(|line| line.split('#').next().unwrap().split_whitespace().collect())
        .collect()
}

#[test]
fn every_command_of_the_readme_is_one() {
    let commands = commands();
    assert!(commands.len() > 6, "{commands:?}");
    for words in commands {
        let known: Vec<&str> = match words[0] {
            "testbed" => words[..2].to_vec(),
            _ => words[..1].to_vec(),
        };
        Command::cargo_bin("bench").unwrap().args(&known).arg("--help").assert().success();
        for option in words.iter().filter(|word| word.starts_with("--")) {
            let help = Command::cargo_bin("bench").unwrap().args(&known).arg("--help").output().unwrap();
            assert!(String::from_utf8_lossy(&help.stdout).contains(option), "{words:?}");
        }
    }
}

#[test]
fn every_scenario_of_the_readme_can_be_checked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let named: Vec<&str> = README
        .split('`')
        .filter(|word| word.starts_with("scenarios/") && Path::new(word).extension().is_some())
        .collect();
    assert!(named.len() >= 3, "{named:?}");
    for name in named {
        Command::cargo_bin("bench").unwrap().arg("check").arg(root.join(name)).assert().success();
    }
}

#[test]
fn wrong_usage_is_status_64_and_help_is_0() {
    Command::cargo_bin("bench").unwrap().arg("run").assert().code(64);
    Command::cargo_bin("bench").unwrap().arg("frobnicate").assert().code(64);
    Command::cargo_bin("bench").unwrap().arg("--help").assert().code(0);
    Command::cargo_bin("bench").unwrap().args(["run", "nothere.toml"]).assert().code(1);
}

/// A scenario with steps is read and told step by step; it is not run, and nothing is begun for it.
#[test]
fn a_scenario_with_steps_is_checked_and_not_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = tempfile::tempdir().unwrap();
    let bench = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bench"));
        command.args(words).current_dir(home.path()).env("BENCH_CACHE", home.path().join("cache"));
        command.stdin(std::process::Stdio::null()).output().unwrap()
    };
    let smoke = root.join("docs/steps/smoke.toml");
    let smoke = smoke.to_str().unwrap();
    let output = bench(&["check", smoke, "--profile", "xen"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in
        ["host b: xen, site b", "move               migrate vm to b  [within 5 min]", "cannot run them yet"]
    {
        assert!(said.contains(line), "{line} is not in: {said}");
    }
    assert_eq!(bench(&["check", smoke, "--profile", "none"]).status.code(), Some(64));
    let output = bench(&["run", smoke]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot run them yet"), "{output:?}");
    assert!(!home.path().join("results").exists());
}
