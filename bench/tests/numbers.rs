//! Numbers of any size, through the program: refused with the setting's name and its range, never a panic.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::process::{Command, Output, Stdio};

fn bench(folder: &tempfile::TempDir, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
    command.args(words).current_dir(folder).env("BENCH_CACHE", "cache").stdin(Stdio::null()).output().unwrap()
}

#[test]
fn arguments_out_of_their_range_are_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        (&["gate", "old", "new", "--margin"][..], "above 0 and up to 1000"),
        (&["testbed", "up", "--hosts"], "from 1 to 2"),
        (&["testbed", "up", "--servers"], "from 0 to 2"),
    ];
    for (words, range) in arguments {
        let mut values = vec!["NaN", "inf", "-1", "1e300", "99999999999999999999"];
        values.extend((!range.contains("from 0 ")).then_some("0"));
        for value in values {
            let words: Vec<&str> = words.iter().copied().chain([value]).collect();
            let output = bench(&folder, &words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{words:?}: {said}");
            let name = words[words.len() - 2];
            assert!(said.contains(name) && said.contains(range), "{words:?}: {said}");
        }
    }
}

#[test]
fn names_that_nothing_has_are_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s.toml"), MIGRATION).unwrap();
    let cases: [(&[&str], &str); 3] = [
        (&["check", "s.toml", "--profile", "nope"], "there is no profile `nope`"),
        (&["run", "s.toml", "--profile", "nope"], "there is no profile `nope`"),
        (&["image", "build", "nope"], "nope"),
    ];
    for (words, reason) in cases {
        let output = bench(&folder, words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{words:?}: {said}");
        assert!(said.contains(reason), "{words:?}: {said}");
    }
    std::fs::write(folder.path().join("m.toml"), "").unwrap();
    let output = bench(&folder, &["report", "run", "--metrics", "m.toml"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && said.contains("--out"), "{said}");
    // What is wrong in the file is no wrong usage.
    std::fs::write(folder.path().join("s.toml"), "title = 'x'").unwrap();
    assert_eq!(bench(&folder, &["check", "s.toml"]).status.code(), Some(1));
}

/// Tables in which each setting stands, with `SETTING` for it.
const MIGRATION: &str =
    "title = 'x'\nexperiment = 'migration'\n[design]\narms = ['plain']\nblocks = 1\nseed = 1\n";
const GLUSTER: &str = "title = 'x'\nexperiment = 'gluster'\n[design]\narms = ['recontext']\nblocks = 1\nseed = 1\n\
    [network.remote]\nrate = '25 Mbit/s'\ndelay = '10 ms'\n[network.local]\nrate = '25 Mbit/s'\ndelay = '10 ms'\n";
const LAYERS: &str = "title = 'x'\nexperiment = 'layers'\n[testbed]\nkind = 'local'\n[design]\narms = ['native']\nblocks = 1\nseed = 1\n";

/// A scenario with one setting set; what else the table has stays.
fn with(scenario: &str, table: &str, name: &str, value: &str) -> String {
    let mut document: toml::Table = scenario.parse().unwrap();
    let mut at = &mut document;
    for part in table.split('.') {
        at = at.entry(part).or_insert_with(|| toml::Table::new().into()).as_table_mut().unwrap();
    }
    at.insert(name.into(), "SETTING".into());
    toml::to_string(&document).unwrap().replace("\"SETTING\"", value)
}

#[test]
fn settings_of_a_scenario_out_of_their_range_are_told_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        std::fs::write(folder.path().join("s.toml"), text).unwrap();
        let output = bench(&folder, &["check", "s.toml"]);
        // A message is broken into lines where it is long.
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.split_whitespace().filter(|word| *word != "│").collect::<Vec<_>>().join(" ");
        (output.status.code(), said)
    };
    let numbers = [
        (MIGRATION, "testbed", "hosts", "16"),
        (MIGRATION, "testbed", "dilation", "100"),
        (MIGRATION, "testbed", "emulated_dilation", "100"),
        (MIGRATION, "testbed", "file_dilation", "100"),
        (MIGRATION, "guest", "vcpus", "64"),
        (MIGRATION, "design", "blocks", "10000"),
        (MIGRATION, "design", "warmup", "100"),
        (MIGRATION, "design", "seed", "9223372036854775807"),
        (GLUSTER, "bonnie", "seeks", "1000000"),
        (GLUSTER, "bonnie", "files", "1000"),
        (GLUSTER, "bonnie", "file_blocks", "10000"),
        (LAYERS, "layers", "files", "100000"),
        (LAYERS, "layers", "mounts", "100"),
        (LAYERS, "layers", "passes", "1000"),
        (LAYERS, "layers", "swaps", "10000"),
        (LAYERS, "layers", "cached", "100000"),
        (LAYERS, "layers", "storm_rate", "1000"),
        (LAYERS, "layers", "many_files", "10000000"),
        (LAYERS, "layers", "many_layers", "100"),
        (LAYERS, "layers", "many_looked_up", "10000000"),
    ];
    let zero_is_one = ["warmup", "seed", "files", "file_blocks", "many_looked_up"];
    for (scenario, table, name, most) in numbers {
        let mut values = vec!["nan", "inf", "-1", "1e300", "99999999999999999999"];
        values.extend((!zero_is_one.contains(&name) || table == "layers" && name == "files").then_some("0"));
        for value in values {
            let (status, said) = check(&with(scenario, table, name, value));
            assert_eq!(status, Some(1), "{name} = {value}: {said}");
            assert!(said.contains(name) && said.contains(most), "{name} = {value}: {said}");
        }
    }
    // Quantities: nothing, next to nothing, and more than a program can count with.
    let quantities = [
        (MIGRATION, "guest", "memory", &["0 B", "63 MiB", "1025 GiB", "9999999999 GiB"][..], "1024 GiB"),
        (MIGRATION, "recontext", "payload", &["601 MiB", "9999999999 GiB"], "600 MiB"),
        (MIGRATION, "migration", "max_downtime", &["0 s", "1 us", "2001 s", "999999 h"], "2000 s"),
        (MIGRATION, "migration", "timeout", &["0 s", "1 ms", "25 h", "999999 h"], "24 h"),
        (GLUSTER, "network.remote", "rate", &["0 bit/s", "101 Gbit/s", "9999999999 Gbit/s"], "100 Gbit/s"),
        (GLUSTER, "network.local", "delay", &["5 s", "999999 h"], "4 s"),
        (GLUSTER, "network.local", "jitter", &["101 %"], "100 %"),
        (GLUSTER, "network.local", "correlation", &["101 %"], "100 %"),
        (GLUSTER, "network", "tolerance", &["0 %", "101 %"], "30 %"),
        (GLUSTER, "bonnie", "size", &["0 MiB", "1025 GiB", "9999999999 GiB"], "1024 GiB"),
        (GLUSTER, "bonnie", "chunk", &["0 B", "2 MiB"], "1 MiB"),
        (GLUSTER, "bonnie", "per_char", &["9 MiB", "9999999999 GiB"], "`size`"),
        (LAYERS, "layers", "large", &["0 B", "5 GiB"], "4 GiB"),
        (LAYERS, "layers", "storm", &["0 s", "11 min"], "10 min"),
    ];
    for (scenario, table, name, values, range) in quantities {
        for value in values.iter().copied().chain(["99999999999999999999 GiB", "-1 ms", "NaN s", "1e300 %"]) {
            let (status, said) = check(&with(scenario, table, name, &format!("'{value}'")));
            assert_eq!(status, Some(1), "{name} = {value}: {said}");
            assert!(said.contains(name), "{name} = {value}: {said}");
            // What is no quantity at all is told with the units.
            assert!(
                !values.contains(&value) || said.contains(range) || said.contains("too large"),
                "{name} = {value}: {said}"
            );
        }
    }
}

#[test]
fn the_most_that_a_scenario_may_ask_for_is_counted_without_overflow() {
    let folder = tempfile::tempdir().unwrap();
    let mut text = with(MIGRATION, "guest", "memory", "'1024 GiB'");
    text = with(&text, "testbed", "hosts", "16");
    text = with(&text, "migration", "timeout", "'24 h'");
    std::fs::write(folder.path().join("s.toml"), with(&text, "design", "blocks", "10000")).unwrap();
    let output = bench(&folder, &["run", "s.toml"]);
    // It is refused, for it needs more memory or more hosts than there are.
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
}
