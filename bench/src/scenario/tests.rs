use std::path::PathBuf;

use super::*;

const GOOD: &str = r#"
title = "Something"
experiment = "gluster"
figures = ["fig6"]
[design]
arms = ["recontext"]
blocks = 10
seed = 1
[network.remote]
rate = "25 Mbit/s"
delay = "10 ms"
jitter = "2 %"
correlation = "25 %"
[network.local]
rate = "500 Mbit/s"
delay = "1.02 ms"
[profile.quick.design]
blocks = 5
[profile.quick.network.remote]
delay = "20 ms"
"#;

const MIGRATION: &str = r#"
title = "Something"
experiment = "migration"
[design]
arms = ["plain", "recontext"]
blocks = 10
seed = 1
"#;

fn error(text: &str) -> String {
    let error = Scenario::parse("dir/test.toml", text, None).expect_err("an error");
    assert!(error.place().starts_with("dir/test.toml:"), "{}", error.place());
    assert!(!error.help().is_empty());
    error.render()
}

fn scenarios() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

#[test]
fn a_profile_is_laid_over_the_file() {
    let full = Scenario::parse("x/gluster-test.toml", GOOD, None).unwrap();
    assert_eq!((full.name(), full.design.blocks, full.design.warmup), ("gluster-test", 10, 1));
    assert_eq!(full, Scenario::parse("x/gluster-test.toml", GOOD, Some("full")).unwrap());
    assert_eq!(full.bonnie, Some(Bonnie::default()));
    assert_eq!(full.source.text, GOOD);

    let quick = Scenario::parse("x/gluster-test.toml", GOOD, Some("quick")).unwrap();
    assert_eq!(quick.design, Design { blocks: 5, ..full.design });
    let (quick, full) = (quick.network.unwrap(), full.network.unwrap());
    assert_eq!(quick.remote, Link { delay: Time::from_millis(20), ..full.remote });
    assert_eq!(quick.local, full.local);
}

#[test]
fn links_and_dilation_of_the_paper() {
    let scenario = Scenario::parse("t.toml", GOOD, None).unwrap();
    assert!((scenario.testbed.dilation_on(false) - 1.0).abs() < f64::EPSILON);
    assert!((scenario.testbed.dilation_on(true) - 5.0).abs() < f64::EPSILON);
    assert!((scenario.testbed.file_dilation_on(true) - 5.0).abs() < f64::EPSILON);
    let remote = scenario.network.unwrap().remote;
    let slow = remote.dilated(5.0);
    assert_eq!((slow.rate.to_string(), slow.delay.to_string()), ("5 Mbit/s".into(), "50 ms".into()));
    assert_eq!(slow.jitter, remote.jitter);
}

#[test]
fn the_committed_scenarios_are_good_in_every_profile() {
    for (file, profiles) in [
        ("paper/migration-kvm", &["quick"][..]),
        ("paper/gluster-kvm", &["quick"]),
        ("paper/migration-xen", &["quick"]),
        ("paper/gluster-xen", &["quick"]),
        ("beyond/ffs-peers", &["quick"]),
        ("smoke", &["xen", "xen-hvm", "swap", "xen-swap", "ack", "xen-ack"]),
    ] {
        let path = scenarios().join(file).with_extension("toml");
        for profile in profiles.iter().copied().map(Some).chain([None]) {
            if let Err(error) = Scenario::load(&path, profile) {
                panic!("{}", error.render());
            }
        }
    }
}

/// What a reader of both expects: the same evaluation, on another hypervisor.
#[test]
fn the_twins_on_xen_differ_in_the_hypervisor_and_what_it_cannot_do() {
    for name in ["migration", "gluster"] {
        let load = |hypervisor: &str| {
            Scenario::load(&scenarios().join(format!("paper/{name}-{hypervisor}.toml")), Some("quick"))
                .unwrap()
        };
        let (kvm, mut xen) = (load("kvm"), load("xen"));
        assert_eq!(xen.guest.kind_on(xen.testbed.hypervisor), GuestType::Pvh);
        xen.source = kvm.source.clone();
        xen.title = kvm.title.clone();
        xen.testbed.hypervisor = Hypervisor::Kvm;
        xen.guest.kind = None;
        // Limits that libxl does not take, and the time that a migration may take in all.
        xen.migration = kvm.migration.clone();
        assert_eq!(xen, kvm);
    }
}

#[test]
fn a_guest_that_the_hypervisor_does_not_run_is_refused() {
    let with = |guest: &str, rest: &str| error(&format!("{MIGRATION}[guest]\ntype = \"{guest}\"\n{rest}"));
    insta::assert_snapshot!("kvm_runs_no_pvh", with("pvh", ""));
    let rest = "[testbed]\nhypervisor = \"xen\"\n[recontext]\nstrategy = \"swap\"\n";
    insta::assert_snapshot!("pvh_has_no_drive", with("pvh", rest));
}

#[test]
fn a_file_that_is_not_there() {
    let error = Scenario::load(&scenarios().join("none.toml"), None).unwrap_err();
    assert!(error.to_string().contains("none.toml: the scenario cannot be read"), "{error}");
    assert!(error.help().contains("give the path"));
}

#[test]
fn an_unknown_profile() {
    let error = Scenario::parse("t.toml", GOOD, Some("fast")).unwrap_err();
    assert_eq!(error.message(), "there is no profile `fast` in this file");
    assert!(error.help().starts_with("use one of quick, full"), "{}", error.help());
}

#[test]
fn errors_of_form() {
    insta::assert_snapshot!("syntax", error(&GOOD.replace("blocks = 10", "blocks = = 10")));
    insta::assert_snapshot!("unknown_field", error(&GOOD.replace("blocks = 10", "block = 10")));
    insta::assert_snapshot!("unknown_table", error(&format!("{GOOD}\n[bonnnie]\nsize = \"1 MiB\"")));
    insta::assert_snapshot!("wrong_type", error(&GOOD.replace("blocks = 10", "blocks = \"ten\"")));
    insta::assert_snapshot!("negative_number", error(&GOOD.replace("blocks = 10", "blocks = -1")));
    insta::assert_snapshot!("negative_delay", error(&GOOD.replace("\"10 ms\"", "\"-10 ms\"")));
    insta::assert_snapshot!("negative_rate", error(&GOOD.replace("\"25 Mbit/s\"", "-25")));
    insta::assert_snapshot!("missing_field", error(&GOOD.replace("seed = 1", "")));
    insta::assert_snapshot!("missing_table", error("title = \"x\"\nexperiment = \"migration\"\n"));
    insta::assert_snapshot!("in_a_profile", error(&GOOD.replace("blocks = 5", "bloks = 5")));
}

#[test]
fn errors_of_names() {
    insta::assert_snapshot!(
        "unknown_class",
        error(&format!("{MIGRATION}[recontext]\nclasses = [\"service\", \"infra\"]"))
    );
    insta::assert_snapshot!("unknown_figure", error(&GOOD.replace("\"fig6\"", "\"fig9\"")));
    insta::assert_snapshot!(
        "unknown_hypervisor",
        error(&format!("{MIGRATION}[testbed]\nhypervisor = \"vmware\""))
    );
    insta::assert_snapshot!("unknown_arm", error(&MIGRATION.replace("\"plain\"", "\"none\"")));
}

#[test]
fn errors_of_meaning() {
    insta::assert_snapshot!("twin_arms", error(&MIGRATION.replace("\"recontext\"", "\"plain\"")));
    insta::assert_snapshot!(
        "arm_does_not_fit",
        error(&GOOD.replace("[\"recontext\"]", "[\"recontext\", \"plain\"]"))
    );
    insta::assert_snapshot!("no_blocks", error(&MIGRATION.replace("blocks = 10", "blocks = 0")));
    insta::assert_snapshot!("no_blocks_in_a_profile", error(&GOOD.replace("blocks = 5", "blocks = 0")));
    insta::assert_snapshot!("figure_does_not_fit", error(&GOOD.replace("\"fig6\"", "\"fig6\", \"fig1\"")));
    insta::assert_snapshot!("one_host", error(&format!("{MIGRATION}[testbed]\nhosts = 1")));
    insta::assert_snapshot!("bonnie_in_migration", error(&format!("{MIGRATION}[bonnie]\nfiles = 1")));
    let start = GOOD.find("[network").unwrap();
    insta::assert_snapshot!("no_network", error(&GOOD[..start]));
    insta::assert_snapshot!(
        "no_infrastructure",
        error(&format!("{MIGRATION}[recontext]\nclasses = [\"service\"]"))
    );
}

const LAYERS: &str = r#"
title = "Something"
experiment = "layers"
figures = ["peers"]
[testbed]
kind = "local"
[design]
arms = ["native", "fuse-overlayfs", "ffs"]
blocks = 6
seed = 1
"#;

#[test]
fn a_local_testbed_is_for_layers_and_has_no_hosts() {
    let scenario = Scenario::parse("t.toml", LAYERS, None).unwrap();
    assert_eq!(scenario.layers, Some(Layers::default()));
    assert_eq!(scenario.design.arms, [Arm::Native, Arm::FuseOverlayfs, Arm::Ffs]);
    insta::assert_snapshot!("hosts_of_local", error(&LAYERS.replace("\"local\"", "\"local\"\nhosts = 2")));
    insta::assert_snapshot!("layers_in_hosts", error(&LAYERS.replace("\"local\"", "\"nested\"")));
    insta::assert_snapshot!("local_migration", error(&format!("{MIGRATION}[testbed]\nkind = \"local\"")));
    insta::assert_snapshot!("guest_of_local", error(&format!("{LAYERS}[guest]\nvcpus = 1")));
    insta::assert_snapshot!("layers_arm", error(&LAYERS.replace("\"ffs\"", "\"recontext\"")));
    insta::assert_snapshot!("no_native", error(&LAYERS.replace("\"native\", ", "")));
    insta::assert_snapshot!("few_swaps", error(&format!("{LAYERS}[layers]\nswaps = 1")));
    insta::assert_snapshot!("layers_of_migration", error(&format!("{MIGRATION}[layers]\nswaps = 10")));
}

/// A scenario says what is done.
#[test]
fn what_a_tool_would_round_is_refused_at_its_place() {
    #[track_caller]
    fn refused(text: &str, value: &str, message: &str, help: &str) {
        let error = Scenario::parse("dir/test.toml", text, None).expect_err("an error");
        let before = &text[..text.find(value).unwrap()];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1;
        assert_eq!(error.place(), format!("dir/test.toml:{line}:{column}"));
        assert_eq!((error.message(), error.help()), (message, help));
    }
    let set = |table: &str, line: &str| format!("{GOOD}[{table}]\n{line}\n");
    refused(
        &set("bonnie", "per_char = \"64 KiB\""),
        "\"64 KiB\"",
        "Bonnie++ takes whole MiB, and 64 KiB would be rounded",
        "use \"1 MiB\"",
    );
    refused(
        &set("bonnie", "size = \"8200 KiB\""),
        "\"8200 KiB\"",
        "Bonnie++ takes whole MiB, and 8200 KiB would be rounded",
        "use \"8 MiB\" or \"9 MiB\"",
    );
    refused(
        &set("bonnie", "chunk = \"256 B\""),
        "\"256 B\"",
        "the bench tells Bonnie++ whole KiB, and 256 B would be rounded",
        "use \"1 KiB\"",
    );
    refused(
        &set("guest", "memory = \"300 MB\""),
        "\"300 MB\"",
        "libvirt is told memory in whole MiB, and 300 MB would be rounded",
        "use \"286 MiB\" or \"287 MiB\"",
    );
    refused(
        &set("migration", "max_downtime = \"1500 us\""),
        "\"1500 us\"",
        "QEMU takes whole milliseconds, and 1.5 ms would be rounded",
        "use \"1 ms\" or \"2 ms\"",
    );
    refused(
        &set("migration", "timeout = \"2.0005 s\""),
        "\"2.0005 s\"",
        "the bench waits for whole milliseconds, and 2.0005 s would be rounded",
        "use \"2 s\" or \"2.001 s\"",
    );
    refused(
        &GOOD.replace("\"25 Mbit/s\"", "\"25000001 bit/s\""),
        "\"25000001 bit/s\"",
        "netem takes whole bytes a second, and 25.000001 Mbit/s would be rounded",
        "use \"25 Mbit/s\" or \"25.000008 Mbit/s\"",
    );
    refused(
        &GOOD.replace("\"1.02 ms\"", "\"1020001 ns\""),
        "\"1020001 ns\"",
        "half of a delay is in each direction, in whole nanoseconds, and 1.020001 ms would be rounded",
        "use \"1.02 ms\" or \"1.020002 ms\"",
    );
    refused(
        &format!("{LAYERS}[layers]\nstorm = \"500 ms\"\nstorm_rate = 3\n"),
        "\"500 ms\"",
        "500 ms are no whole number of changes at 3 a second",
        "use storm = \"1 s\"",
    );
    // In a profile, too.
    refused(
        &set("profile.quick.bonnie", "per_char = \"1.5 MiB\""),
        "\"1.5 MiB\"",
        "Bonnie++ takes whole MiB, and 1536 KiB would be rounded",
        "use \"1 MiB\" or \"2 MiB\"",
    );
}

#[test]
fn a_stored_run_is_read_whatever_its_tools_rounded() {
    let text = format!("{GOOD}[bonnie]\nper_char = \"64 KiB\"\nchunk = \"256 B\"\n");
    assert!(Scenario::parse("t.toml", &text, None).is_err());
    let stored = Scenario::parse_stored("t.toml", &text, None).unwrap();
    assert_eq!(stored.bonnie.unwrap().per_char.to_string(), "64 KiB");
}

#[test]
fn deadlines_and_processors_are_checked() {
    let design = |more: &str| MIGRATION.replace("seed = 1", &format!("seed = 1\n{more}"));
    let good = design("trial_deadline = \"10 min\"\nrun_deadline = \"2 h\"");
    let good = Scenario::parse("t.toml", &format!("{good}[testbed]\nhost_vcpus = 16\n"), None).unwrap();
    assert_eq!(good.design.trial_deadline, Some(Time::from_secs(600)));
    assert_eq!(good.design.run_deadline, Some(Time::from_secs(7200)));
    assert_eq!(good.testbed.host_vcpus, 16);
    let none = Scenario::parse("t.toml", MIGRATION, None).unwrap();
    assert_eq!(
        (none.design.trial_deadline, none.design.run_deadline, none.testbed.host_vcpus),
        (None, None, 1)
    );
    for (text, place, message) in [
        (
            design("trial_deadline = \"0 s\""),
            "trial_deadline",
            "trial_deadline = \"0 s\" gives up everything, or nothing",
        ),
        (
            design("run_deadline = \"900 h\""),
            "run_deadline",
            "run_deadline = \"900 h\" gives up everything, or nothing",
        ),
        (design("run_deadline = 5"), "run_deadline", "a time as a text with its unit"),
        (
            design("trial_deadline = \"2 h\"\nrun_deadline = \"1 h\""),
            "trial_deadline",
            "a trial may take \"2 h\", and the run that it is in \"1 h\"",
        ),
        (
            design("trial_deadline = \"5 min\""),
            "trial_deadline",
            "is no longer than migration.timeout, \"5 min\"",
        ),
        (format!("{MIGRATION}[testbed]\nhost_vcpus = 0"), "host_vcpus", "0 virtual processors a host"),
        (format!("{MIGRATION}[testbed]\nhost_vcpus = 17"), "host_vcpus", "17 virtual processors a host"),
        (
            LAYERS.replace("kind = \"local\"", "kind = \"local\"\nhost_vcpus = 2"),
            "host_vcpus",
            "a local testbed has no host_vcpus",
        ),
    ] {
        let said = error(&text);
        assert!(said.contains(message) && said.contains(place), "{place}, {message}: {said}");
    }
}

#[test]
fn xen_can_be_asked_for() {
    let scenario =
        Scenario::parse("t.toml", &format!("{MIGRATION}[testbed]\nhypervisor = \"xen\""), None).unwrap();
    assert_eq!(scenario.testbed.hypervisor, Hypervisor::Xen);
}

#[test]
fn what_runs_the_hosts_can_be_chosen_where_the_bench_boots_them() {
    let with = |testbed: &str| format!("{MIGRATION}[testbed]\n{testbed}");
    let of = |testbed: &str| Scenario::parse("t.toml", &with(testbed), None).unwrap().testbed.accelerator;
    assert_eq!(of(""), AcceleratorChoice::Auto);
    for choice in [AcceleratorChoice::Auto, AcceleratorChoice::Kvm, AcceleratorChoice::Tcg] {
        assert_eq!(of(&format!("accelerator = \"{choice}\"")), choice);
    }
    let told = error(&with("accelerator = \"xen\""));
    assert!(told.contains("auto") && told.contains("tcg"), "{told}");
    let told = error(&with("kind = \"inventory\"\ninventory = \"hosts.toml\"\naccelerator = \"kvm\""));
    assert!(told.contains("they have their accelerator"), "{told}");
    let told = error(&LAYERS.replace("\"local\"", "\"local\"\naccelerator = \"tcg\""));
    assert!(told.contains("a local testbed has no accelerator"), "{told}");
}

#[test]
fn the_committed_schema_is_current() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schema/scenario.schema.json");
    let now = format!("{}\n", serde_json::to_string_pretty(&schema()).unwrap());
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == now,
        "run UPDATE_SCHEMA=1 cargo test -p bench schema, and commit {}",
        path.display()
    );
}

#[test]
fn a_scenario_survives_its_own_serialization() {
    let scenario = Scenario::parse("t.toml", GOOD, None).unwrap();
    let text = toml::to_string(&scenario).unwrap();
    let again = Scenario::parse("t.toml", &text, None).unwrap();
    assert_eq!(
        Scenario { source: Source::default(), ..again },
        Scenario { source: Source::default(), ..scenario }
    );
}
