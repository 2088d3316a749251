//! Scenarios that are taken, and mistakes that are told with their places.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;

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

fn compiled(text: &str) -> Result<Plan, ScenarioError> {
    let none = |_: &Path| Err(io::ErrorKind::NotFound.into());
    parse("t.toml", text, None, &none).map(|compiled| compiled.plan)
}

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
    assert_eq!(busy.program[2].place, "t.toml:35");
    // A value of a workload is a metric.
    assert!(plan.metric("rounds").is_some_and(|metric| metric.value.is_some()));
}

#[test]
fn a_matrix_multiplies_arms_and_names_them() {
    let plan =
        plan_of(&MOVE.replace("[design]", "[matrix]\nrate = [1, 2]\n\"guest.vm.vcpus\" = [1, 2]\n[design]"));
    assert_eq!(plan.arms.len(), 8);
    assert_eq!(plan.arms[1].name, "idle, rate = 1, vcpus = 2");
    assert_eq!(plan.arms[1].guests[0].vcpus, 2);
    assert_eq!(plan.arms[1].factors["rate"].number, Some(1.0));
    assert_eq!(plan.trials.len(), 16);
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
fn names_that_are_not_there_are_told() {
    for (from, to, told) in [
        ("place = \"vm\"", "place = \"vn\"", "t.toml:29:1: step `place` names a guest `vn`"),
        ("to = \"b\"", "to = \"c\"", "names a host `c` that the file does not have; there are a, b"),
        ("run = \"load\"", "run = \"lood\"", "names a workload `lood`"),
        ("place = \"vm\"", "shape = [\"vm\", \"s\"]\nlink = \"lan\"", "names a link `lan`"),
        ("on = \"vm\"", "on = \"vx\"", "names a machine `vx`"),
        ("only = [\"busy\"]", "only = [\"bussy\"]", "there is no arm `bussy`; arms are idle, busy"),
        ("only = [\"busy\"]", "only = [{ size = 1 }]", "`size` is no factor"),
        ("rate = 16", "rat = 16", "`rat` is no parameter"),
        ("${rate}", "${rata}", "there is no parameter `rata`; parameters are rate"),
        ("at = \"a\"", "at = \"c\"", "starts at a host `c`"),
        ("name = \"busy\"", "name = \"idle\"", "arm `idle` is there twice"),
        ("from = { arm = \"idle\" }", "from = { arm = \"none\" }", "there is no arm `none`"),
        (
            "metrics = [\"total\"]",
            "metrics = [\"totl\"]",
            "figure `fig`: there is no metric `totl`; metrics are total, rounds",
        ),
        ("place = \"vm\"", "wait = \"life\"\nsince = \"go\"", "waits since a step `go`"),
        ("\"move.migrate_called\"", "\"move.called\"", "no step of any arm can give event `move.called`"),
        (
            "\"move.migrate_called\"",
            "\"go.migrate_called\"",
            "no step of any arm can give event `go.migrate_called`",
        ),
    ] {
        let said = refused(from, to);
        assert!(said.contains(told), "{to}: {said}");
    }
}

#[test]
fn what_makes_no_sense_is_told() {
    for (from, to, told) in [
        ("place = \"vm\"", "plaze = \"vm\"", "no key of this step is a verb (plaze)"),
        ("place = \"vm\"", "place = \"vm\"\nwhere = \"a\"", "unknown field `where`"),
        ("migrate = \"vm\"\nto = \"b\"", "migrate = \"vm\"", "missing field `to`"),
        ("name = \"move\"", "name = \"place\"", "two steps are called `place`"),
        ("place = \"vm\"", "place = \"vm\"\ndeadline = \"1 ms\"", "use \"1 s\" to"),
        ("place = \"vm\"", "place = \"vm\"\nblocks = \"3..1\"", "no range of blocks"),
        ("place = \"vm\"", "mount = \"x\"\nlayers = \"small\"", "a nested testbed cannot `mount`"),
        ("place = \"vm\"", "service = \"web\"\non = \"s\"", "the bench knows no service `web`"),
        ("place = \"vm\"", "shape = [\"vm\", \"a\"]\nlink = \"wan\"", "neither end of the link is a server"),
        ("regex = \"(?<value>[0-9]+)\"", "regex = \"([0-9]+)\"", "no group `value`"),
        ("regex = \"(?<value>[0-9]+)\"", "regex = \"(\"", "value `rounds`: regex parse error"),
        ("regex = \"(?<value>[0-9]+)\"", "json = \"x\"", "no JSON pointer"),
        ("regex = \"(?<value>[0-9]+)\"", "", "read in no way, or in several"),
        (
            "command = \"stress ${rate}\"",
            "use = \"stress\"",
            "the bench has no such workload; the bench has bonnie",
        ),
        ("kind = \"strip\"", "kind = \"curve\"\nx = \"rate\"", "`rate` is no numeric factor"),
        ("unit = \"s\"\nfrom", "unit = \"min\"\nfrom", "is no unit of time"),
        ("rate = \"25 Mbit/s\"", "rate = \"9 bit/s\"", "out of its range"),
        ("at = \"a\"", "at = \"a\"\nmemory = \"63 MiB\"", "memory = \"63 MiB\" is out of its range"),
        ("at = \"a\"", "at = \"a\"\nmemory = \"300 MB\"", "would be rounded"),
        ("at = \"a\"", "at = \"a\"\ntype = \"pvh\"", "KVM runs no guest of type `pvh`"),
        ("rate = 16", "host.b.vcpus = 2", "changes what host `b` is booted with"),
        ("blocks = 2", "blocks = 0", "blocks = 0 is out of its range; use 1 to 10000"),
        ("blocks = 2", "blocks = 9999", "are more than 10000"),
        ("name = \"s\"", "name = \"a\"", "two machines are called `a`"),
        ("title = \"t\"", "title = \"t\"\nexperiment = \"migration\"", "unknown field `experiment`"),
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

proptest! {
    /// Whatever a file has, it is taken or refused.
    #[test]
    fn no_text_brings_the_compiler_down(body in "[a-z_ ={}\\[\\]'\"0-9.,$\\n]{0,160}", at in 0_usize..40) {
        let lines: Vec<&str> = MOVE.lines().collect();
        let text = format!("{}\n{body}\n{}", lines[..at].join("\n"), lines[at..].join("\n"));
        let _ = compiled(&text);
        let _ = compiled(&body);
    }
}

mod refused;
mod shape;
