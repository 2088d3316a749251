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
