//! Scenarios that are taken, and mistakes that are told with their places.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::*;
use refused::compiled;

/// Two hosts, a guest that moves, and what is measured of it.
const MOVE: &str = r#"title = "t"
[[host]]
name = "a"
[[host]]
name = "b"
[[server]]
name = "s"
[[guest]]
name = "vm"
at = "a"
[[link]]
name = "wan"
rate = "25 Mbit/s"
delay = "10 ms"
[parameters]
rate = 8
[[arm]]
name = "idle"
[[arm]]
name = "busy"
rate = 16
[[workload]]
name = "load"
command = "stress ${rate}"
[[workload.value]]
name = "rounds"
unit = "1"
regex = "(?<value>[0-9]+)"
[[step]]
place = "vm"
[[step]]
run = "load"
on = "vm"
only = ["busy"]
[[step]]
name = "move"
migrate = "vm"
to = "b"
[[metric]]
name = "total"
title = "Migration"
unit = "s"
from = "move.migrate_called"
to = "move.migrate_returned"
[[compare]]
name = "load"
from = { arm = "idle" }
to = { arm = "busy" }
[[figure]]
name = "fig"
title = "Migrations"
kind = "strip"
metrics = ["total"]
[design]
blocks = 2
warmup = 0
seed = 1
"#;

fn plan_of(text: &str) -> Plan {
    compiled(text).unwrap_or_else(|error| panic!("{}", error.render()))
}

#[track_caller]
fn refused(from: &str, to: &str) -> String {
    assert!(MOVE.contains(from), "{from}");
    let error = compiled(&MOVE.replacen(from, to, 1)).expect_err(to);
    format!("{error}; {}", error.help())
}

#[test]
fn every_example_is_compiled_with_each_profile() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/steps");
    let mut plans = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let compiled = load(&path, None).unwrap_or_else(|error| panic!("{}", error.render()));
            plans.insert(compiled.plan.name.clone(), compiled.plan);
        }
    }
    // The same order as the experiments have.
    for (name, profile) in [("migration-kvm", "quick"), ("gluster-xen", "quick")] {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let new = load(&folder.join(format!("docs/steps/{name}.toml")), Some(profile)).unwrap().plan.trials;
        let path = folder.join(format!("../scenarios/paper/{name}.toml"));
        let old =
            crate::plan::Plan::new(&crate::scenario::Scenario::load(&path, Some(profile)).unwrap()).trials;
        let new: Vec<_> = new.iter().map(|trial| (trial.block, trial.arm.clone())).collect();
        let old: Vec<_> = old.iter().map(|trial| (trial.block, trial.arm.to_string())).collect();
        assert_eq!(new, old, "{name}");
    }
    // What an arm does not do is no metric of it.
    let has = |arm: usize, metric: &str| {
        let plan = &plans["migration-kvm"];
        definitions::given(plan.metric(metric).unwrap(), &plan.arms[arm]).is_ok()
    };
    for metric in ["with_recontext_total", "recontext_time", "recontext_phase", "content_visible"] {
        assert_eq!([0, 1, 2].map(|arm| has(arm, metric)), [false, false, true], "{metric}");
    }
    assert!([0, 1, 2].iter().all(|arm| has(*arm, "migration_total")));
    assert_eq!(plans["evacuate"].arms[0].guests.len(), 4);
    let names: Vec<_> = plans["memory-size"].arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(
        names,
        ["recontext, memory = 128 MiB", "recontext, memory = 256 MiB", "recontext, memory = 512 MiB"]
    );
    let payloads: Vec<_> =
        plans["payload"].arms.iter().map(|arm| arm.hosts.get("b").map(|host| host.payload)).collect();
    let size = |text: &str| Some(text.parse().unwrap());
    assert_eq!(payloads, [size("16 KiB"), None, size("16 MiB")], "1 MiB is what the host has anyway");
}

/// All events that the steps of the examples can give.
fn plan_events() -> std::collections::BTreeSet<&'static str> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/steps");
    let plan = load(&folder.join("gluster-kvm.toml"), None).unwrap().plan;
    let verbs = plan.arms[0].program.iter().filter_map(|step| crate::step::Verb::of(step).unwrap());
    verbs.flat_map(|verb| verb.events()).copied().chain(crate::step::OF_ALL).collect()
}

/// The blocks of the tutorial, one behind the other, are a scenario.
#[test]
fn the_tutorial_is_a_scenario() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/steps");
    let document = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let blocks: Vec<&str> =
        document.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 5, "{}", blocks.len());
    let fetch = |path: &Path| std::fs::read_to_string(path);
    let compiled = parse(folder.join("my-test.toml"), &blocks.join("\n"), None, &fetch);
    let plan = compiled.unwrap_or_else(|error| panic!("{}", error.render())).plan;
    assert_eq!((plan.arms.len(), plan.trials.len()), (2, 14));
    for event in plan_events() {
        assert!(document.contains(&format!("`{event}`")), "{event}");
    }
    // Its tables name every verb, and every workload of the bench.
    for name in crate::step::VERBS.iter().chain(&crate::workload::definitions::names()) {
        assert!(document.contains(&format!("`{name}")), "{name}");
    }
}

#[test]
fn arms_have_their_own_parameters_steps_and_workloads() {
    let plan = plan_of(MOVE);
    let [idle, busy] = &plan.arms[..] else { panic!("{:?}", plan.arms) };
    assert_eq!((idle.program.len(), busy.program.len()), (2, 3));
    assert!(idle.workloads.is_empty());
    assert_eq!(busy.workloads[0].command, "stress 16");
    assert_eq!(busy.program[1].name, "run");
    assert_eq!(busy.program[2].place, "x.toml:35");
    // A value of a workload is a metric.
    assert!(plan.metric("rounds").is_some_and(|metric| metric.value.is_some()));
}

#[test]
fn steps_are_repeated_for_names_and_grouped() {
    let text = MOVE.replace(
        "[[step]]\nplace = \"vm\"\n",
        "[[step]]\nname = \"at\"\nfor = \"g in guests\"\nplace = \"${g}\"\n\
         [[step]]\ntogether = [[{ mark = \"x\" }], [{ wait = \"time\", time = \"1 s\" }]]\n[[step]]\nwait = \"life\"\n",
    );
    let program = &plan_of(&text).arms[0].program;
    let names: Vec<_> = program.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["at-vm", "together", "wait-2", "move"]);
    assert_eq!(program[1].chains[0][0].name, "x");
}

#[test]
fn what_tools_do_not_take_is_told() {
    for (from, to, told) in [
        ("place = \"vm\"", "place = \"vm\"\ndeadline = \"1 ms\"", "use \"1 s\" to"),
        ("place = \"vm\"", "mount = \"x\"\nlayers = \"small\"", "a nested testbed cannot `mount`"),
        ("place = \"vm\"", "service = \"web\"\non = \"s\"", "the bench knows no service `web`"),
        ("place = \"vm\"", "shape = [\"vm\", \"a\"]\nlink = \"wan\"", "neither end of the link is a server"),
        ("rate = \"25 Mbit/s\"", "rate = \"9 bit/s\"", "out of its range"),
        ("at = \"a\"", "at = \"a\"\nmemory = \"63 MiB\"", "memory = \"63 MiB\" is out of its range"),
        ("at = \"a\"", "at = \"a\"\nmemory = \"300 MB\"", "would be rounded"),
        ("blocks = 2", "blocks = 0", "blocks = 0 is out of its range; use 1 to 10000"),
        ("blocks = 2", "blocks = 9999", "are more than 10000"),
        ("[[host]]", "[host]", "this is not TOML"),
    ] {
        let said = refused(from, to);
        assert!(said.contains(told), "{to}: {said}");
    }
}

#[test]
fn a_library_may_define_more_than_a_scenario_has() {
    let text = MOVE.replace("title = \"t\"", "title = \"t\"\ninclude = [\"lib.toml\"]");
    let library = "[[metric]]\nname = \"asked\"\ntitle = \"A\"\nunit = \"s\"\nfrom = \"requested\"\nto = \"attached\"\n";
    let fetch = |_: &Path| Ok(library.to_owned());
    assert!(parse("t.toml", &text, None, &fetch).is_ok());
    // But what a figure shows must be there.
    let shown = text.replace("metrics = [\"total\"]", "metrics = [\"asked\"]");
    let error = parse("t.toml", &shown, None, &fetch).unwrap_err().to_string();
    assert!(error.contains("no arm has metric `asked`"), "{error}");
}

#[test]
fn a_workload_of_the_bench_takes_settings_and_fields() {
    let text = MOVE.replace(
        "command = \"stress ${rate}\"\n[[workload.value]]\nname = \"rounds\"\nunit = \"1\"\nregex = \"(?<value>[0-9]+)\"\n",
        "use = \"bonnie\"\nsize = \"6 MiB\"\nper_char = \"1 MiB\"\ntimed = false\n",
    );
    let plan = plan_of(&text);
    let workload = &plan.arms[1].workloads[0];
    assert!(
        workload.command.contains("-s \"6:64k:100\"") && workload.command.contains("per_char=-f1"),
        "{}",
        workload.command
    );
    assert!(!workload.timed && workload.values.len() == 6);
    // What it would be told rounded has no whole number.
    let error = compiled(&text.replace("6 MiB", "100 KiB")).unwrap_err().to_string();
    assert!(error.contains("there is no parameter `size.mib`"), "{error}");
}

mod refused;
mod shape;
