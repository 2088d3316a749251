//! Each check of a scenario: what it refuses, in which words, and at which place.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::super::*;

/// Two hosts, a guest, a server with a link, two arms and one migration: nothing is wrong with it.
pub(super) const WHOLE: &str = r#"title = "t"

[parameters]
size = 4

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

[[arm]]
name = "plain"

[[arm]]
name = "recontext"

[design]
blocks = 2
seed = 1

[[workload]]
name = "work"
command = "echo x ${size}"

[[workload.value]]
name = "speed"
unit = "MB/s"
regex = "x (?<value>[0-9.]+)"

[[metric]]
name = "total"
title = "Total"
unit = "s"
from = "move.migrate_called"
to = "move.migrate_returned"

[[step]]
shape = ["vm", "s"]
link = "wan"

[[step]]
name = "home"
run = "work"
on = "vm"
phase = "home"

[[step]]
name = "move"
migrate = "vm"
to = "b"
deadline = "5 min"

[[step]]
wait = "content"
since = "move"
only = ["recontext"]

[[compare]]
name = "cost"
metrics = ["total"]
from = { arm = "plain" }
to = { arm = "recontext" }

[[figure]]
name = "fig"
title = "t"
kind = "bars"
metrics = ["total"]

[[claim]]
name = "little"
compare = "cost"
metric = "total"
what = "It costs little"
source = "nowhere"
says = "little"
statistic = "difference"
relation = "at_most"
expected = 1
tolerance = 1
"#;

pub(super) fn compiled(text: &str) -> Result<Plan, ScenarioError> {
    with_files(text, &[])
}

pub(super) fn with_files(text: &str, files: &[(&str, &str)]) -> Result<Plan, ScenarioError> {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let fetch = |path: &Path| {
        let text = path.to_str().and_then(|path| files.get(path));
        text.map(|text| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    parse("x.toml", text, None, &fetch).map(|compiled| compiled.plan)
}

/// The scenario with one part of it written otherwise.
pub(super) fn otherwise(from: &str, to: &str) -> String {
    assert_eq!(WHOLE.matches(from).count(), 1, "`{from}` stands once in the scenario");
    WHOLE.replacen(from, to, 1)
}

/// Checks that a scenario is refused with these words, and a caret on a line that has `at`.
#[track_caller]
fn refused(text: &str, words: &str, at: &str) {
    let Err(error) = compiled(text) else { panic!("taken, and not refused with `{words}`") };
    assert!(error.message().contains(words), "expected `{words}`, told:\n{}", error.render());
    assert!(!error.help().is_empty(), "no help:\n{}", error.render());
    let mut place = error.place().rsplit(':').skip(1);
    let line: usize = place.next().unwrap().parse().unwrap();
    let told = text.lines().nth(line - 1).unwrap_or_default();
    assert!(told.contains(at), "expected a line with `{at}`, told:\n{}", error.render());
}

#[test]
fn nothing_is_wrong_with_the_whole_scenario() {
    let plan = compiled(WHOLE).unwrap_or_else(|error| panic!("{}", error.render()));
    assert_eq!(plan.arms.iter().map(|arm| arm.program.len()).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(plan.arms[0].workloads[0].command, "echo x 4");
    assert!(plan.metric("speed").is_some(), "a workload's value is a metric");
}

#[test]
fn names_that_a_step_uses_are_there() {
    refused(&otherwise("migrate = \"vm\"", "migrate = \"mv\""), "names a guest `mv`", "[[step]]");
    refused(&otherwise("to = \"b\"", "to = \"c\""), "names a host `c`", "[[step]]");
    refused(&otherwise("link = \"wan\"", "link = \"lan\""), "names a link `lan`", "[[step]]");
    refused(&otherwise("run = \"work\"", "run = \"walk\""), "names a workload `walk`", "[[step]]");
    refused(&otherwise("on = \"vm\"", "on = \"v\""), "names a machine `v`", "[[step]]");
    refused(&otherwise("since = \"move\"", "since = \"mover\""), "waits since a step `mover`", "[[step]]");
    refused(
        &otherwise("wait = \"content\"\nsince = \"move\"", "wait = \"content\"\nsince = \"late\""),
        "`late`",
        "[[step]]",
    );
    refused(&otherwise("since = \"move\"", "since = \"wait\""), "does not have before it", "[[step]]");
    refused(&otherwise("only = [\"recontext\"]", "only = [\"other\"]"), "no arm `other`", "only = ");
    refused(&otherwise("only = [\"recontext\"]", "only = [{ rate = 1 }]"), "`rate` is no factor", "only = ");
    refused(&otherwise("${size}", "${sise}"), "no parameter `sise`", "command = ");
}

#[test]
fn a_step_is_one_verb_with_its_own_keys() {
    refused(&otherwise("migrate = \"vm\"", "migrat = \"vm\""), "no key of this step is a verb", "[[step]]");
    refused(
        &otherwise("migrate = \"vm\"", "migrate = \"vm\"\nmark = \"x\""),
        "unknown field `mark`",
        "mark = ",
    );
    refused(
        &otherwise("migrate = \"vm\"", "migrate = \"vm\"\nrun = \"work\""),
        "unknown field `run`",
        "run = ",
    );
    refused(&otherwise("deadline = \"5 min\"", "deadline = \"5 mim\""), "5 mim", "deadline = ");
    refused(&otherwise("deadline = \"5 min\"", "deadline = \"999 ms\""), "999 ms", "deadline = ");
    refused(&otherwise("deadline = \"5 min\"", "blocks = \"5..1\""), "no range of blocks", "blocks = ");
    refused(&otherwise("deadline = \"5 min\"", "repeat = 0"), "repeat = 0", "");
    refused(&otherwise("name = \"home\"", "name = \"move\""), "two steps are called `move`", "[[step]]");
    refused(
        &otherwise("name = \"home\"", "for = \"g in ghosts\""),
        "not what a step can be done for",
        "for = ",
    );
    refused(&otherwise("migrate = \"vm\"\nto = \"b\"", "together = [1]"), "a list of lists", "together");
}

#[test]
fn what_is_computed_and_drawn_can_be_there() {
    let other = "to = { arm = \"other\" }";
    refused(&otherwise("to = { arm = \"recontext\" }", other), "no arm `other`", "to = ");
    let phase = "to = { phase = \"away\" }";
    refused(&otherwise("to = { arm = \"recontext\" }", phase), "no phase `away`", "to = ");
    refused(
        &otherwise("from = { arm = \"plain\" }", "from = { arm = \"recontext\" }"),
        "both sides",
        "to = ",
    );
    let kind = "kind = \"bars\"\nmetrics = ";
    refused(
        &otherwise("kind = \"bars\"\nmetrics = [\"total\"]", &format!("{kind}[\"none\"]")),
        "no metric `none`",
        "metrics",
    );
    refused(&otherwise("kind = \"bars\"", "kind = \"curve\""), "a curve has an axis", "kind = ");
    refused(&otherwise("kind = \"bars\"", "kind = \"curve\"\nx = \"arm\""), "no numeric factor", "x = ");
    refused(&otherwise("compare = \"cost\"", "compare = \"gain\""), "no compare `gain`", "compare = ");
    refused(
        &otherwise("from = \"move.migrate_called\"", "from = \"move.called\""),
        "move.called",
        "[[metric]]",
    );
    refused(
        &otherwise("from = \"move.migrate_called\"", "from = \"go.migrate_called\""),
        "go.migrate_called",
        "[[metric]]",
    );
}

/// Metrics stand behind the steps in most scenarios; their place changes nothing.
#[test]
fn a_metric_behind_the_steps_is_checked_as_well() {
    let metric = "\n[[metric]]\nname = \"last\"\ntitle = \"Last\"\nunit = \"s\"\nfrom = \"go.began\"\nto = \"go.ended\"\n";
    refused(&format!("{WHOLE}{metric}"), "go.began", "[[metric]]");
}

#[test]
fn values_are_read_in_one_way_that_makes_sense() {
    let regex = "regex = \"x (?<value>[0-9.]+)\"";
    refused(&otherwise(regex, ""), "in no way, or in several", "[[workload]]");
    refused(
        &otherwise(regex, "json = \"/a\"\nregex = \"(?<value>x)\""),
        "in no way, or in several",
        "[[workload]]",
    );
    refused(&otherwise(regex, "regex = \"(\""), "value `speed`", "[[workload]]");
    refused(&otherwise(regex, "regex = \"x\""), "no group `value`", "[[workload]]");
    refused(&otherwise(regex, "json = \"a\""), "no JSON pointer", "[[workload]]");
    refused(&otherwise("command = \"echo x ${size}\"", "use = \"none\""), "no such workload", "use = ");
}

#[test]
fn machines_are_what_tools_can_make() {
    let guest = |key: &str| otherwise("at = \"a\"", &format!("at = \"a\"\n{key}"));
    refused(&guest("memory = \"63 MiB\""), "out of its range", "memory = ");
    refused(&guest("memory = \"100.5 MiB\""), "whole MiB", "memory = ");
    refused(&guest("type = \"pv\""), "KVM runs no guest of type", "type = ");
    refused(&otherwise("at = \"a\"", "at = \"z\""), "starts at a host `z`", "at = ");
    refused(
        &otherwise("rate = \"25 Mbit/s\"", "rate = \"25000001 bit/s\""),
        "whole bytes a second",
        "rate = ",
    );
    refused(&otherwise("to = \"b\"", "to = \"b\"\nmax_downtime = \"1500 us\""), "max_downtime", "[[step]]");
    refused(&format!("{WHOLE}[[server]]\nname = \"S_1\"\n"), "cannot be the name of a machine", "name = ");
    refused(&format!("{WHOLE}[[server]]\nname = \"vm\"\n"), "two machines are called `vm`", "name = ");
    let hosts: String = (0..15).map(|index| format!("[[host]]\nname = \"h{index}\"\n")).collect();
    refused(&format!("{WHOLE}{hosts}"), "17 hosts", "[[host]]");
    let guests: String =
        (0..16).map(|index| format!("[[guest]]\nname = \"g{index}\"\nat = \"a\"\n")).collect();
    refused(&format!("{WHOLE}{guests}"), "17 guests", "[[guest]]");
    let servers: String = (0..16).map(|index| format!("[[server]]\nname = \"z{index}\"\n")).collect();
    refused(&format!("{WHOLE}{servers}"), "17 servers", "[[server]]");
}

#[test]
fn a_guest_moves_between_hosts_of_one_kind() {
    refused(
        &otherwise("name = \"b\"", "name = \"b\"\nhypervisor = \"xen\""),
        "guest `vm` runs on kvm",
        "[[step]]",
    );
}

#[test]
fn a_testbed_does_what_it_can() {
    refused(
        &otherwise("title = \"t\"\n\n[p", "title = \"t\"\ntestbed = { kind = \"local\" }\n\n[p"),
        "a local testbed has no host",
        "[[host]]",
    );
    let local = "title = \"t\"\ntestbed = { kind = \"local\" }\n[[arm]]\nname = \"x\"\n[design]\nblocks = 1\nseed = 1\n";
    refused(&format!("{local}[[step]]\nname = \"m\"\nwait = \"content\"\n"), "cannot `wait`", "[[step]]");
    let mount = otherwise("run = \"work\"\non = \"vm\"", "mount = \"x\"\nat = \"y\"");
    assert!(compiled(&mount).is_err());
}

#[test]
fn arms_set_what_can_be_set() {
    let arm = |key: &str| otherwise("name = \"recontext\"", &format!("name = \"recontext\"\n{key}"));
    refused(&arm("speed = 1"), "`speed` is no parameter", "speed = ");
    refused(&arm("server.s.memory = \"1 GiB\""), "cannot be set by an arm", "server.s");
    refused(&arm("guest.mv.memory = \"1 GiB\""), "no guest `mv`", "guest.mv");
    refused(&arm("step.none.deadline = \"1 s\""), "no step `none`", "step.none");
    refused(&arm("host.b.memory = \"2 GiB\""), "booted with", "[[host]]");
    refused(
        &otherwise("name = \"recontext\"\n\n", "name = \"plain\"\n\n"),
        "arm `plain` is there twice",
        "name = ",
    );
}

#[test]
fn a_matrix_has_points_with_names_of_their_own() {
    let matrix = |text: &str| format!("{WHOLE}\n[matrix]\n{text}\n");
    refused(&matrix("size = []"), "lists of values", "size = ");
    refused(&matrix("none = [1]"), "`none` is no parameter", "none = ");
    refused(&matrix("size = [1, 1]"), "the value 1 twice", "size = ");
    let many: Vec<String> = (0..2600).map(|value| value.to_string()).collect();
    refused(&matrix(&format!("size = [{}]", many.join(", "))), "10000", "");
}

/// All arms share the links, the servers and what is computed: an arm cannot change them by the way of a parameter.
#[test]
fn a_parameter_that_arms_set_reaches_all_that_uses_it() {
    let matrix = "\n[matrix]\nsize = [10, 20]\n";
    let link = otherwise("delay = \"10 ms\"", "delay = \"${size} ms\"") + matrix;
    refused(&link, "link `wan` would be another one in arm `plain, size = 10`", "[[link]]");
    let server = otherwise("name = \"s\"", "name = \"s\"\nsite = \"site-${size}\"") + matrix;
    refused(&server, "server `s` would be another one", "[[server]]");
    let metric =
        otherwise("to = \"move.migrate_returned\"", "to = \"move.migrate_returned\"\nscale = \"${size}\"")
            + matrix;
    refused(&metric, "metric `total` would be another one", "[[metric]]");
}

#[test]
fn a_circle_of_files_is_told_where_it_closes() {
    let error =
        with_files("include = [\"l.toml\"]\n", &[("l.toml", "\ninclude = [\"x.toml\"]\n")]).unwrap_err();
    assert_eq!((error.place(), error.message()), ("l.toml:2:12", "x.toml includes itself"));
    let deep: Vec<(String, String)> =
        (0..9).map(|n| (format!("{n}.toml"), format!("include = [\"{}.toml\"]\n", n + 1))).collect();
    let deep: Vec<(&str, &str)> = deep.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let error = with_files("include = [\"0.toml\"]\n", &deep).unwrap_err();
    assert!(error.message().contains("8 files deep"), "{}", error.render());
}

/// A mistake in an included file is told in that file.
#[test]
fn an_included_file_has_its_own_places() {
    let library =
        "[[metric]]\nname = \"m\"\ntitle = \"M\"\nunit = \"s\"\nfrm = \"move.began\"\nto = \"move.ended\"\n";
    let error = with_files(&format!("include = [\"l.toml\"]\n{WHOLE}"), &[("l.toml", library)]).unwrap_err();
    assert_eq!(error.place(), "l.toml:5:1", "{}", error.render());
}
