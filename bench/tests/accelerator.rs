//! What runs the hosts, as it is chosen on the command line, with a QEMU that is a script: it notes how it is called.

#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bench::doctor::{Requirement, Subject, probe_with, require};

/// A bench with programs of its own beside it, images of which only the names are right, and a QEMU whose kernels do what `kernel` says.
struct Home(tempfile::TempDir);

impl Home {
    fn new(kernel: &str) -> Self {
        let home = Self(tempfile::tempdir_in("/tmp").unwrap());
        let bin = home.path("bin");
        fs::create_dir(&bin).unwrap();
        common::plant(&home.path("cache"));
        let calls = home.path("calls");
        let script = format!(
            "#!/bin/sh\n[ \"$1\" = --version ] || echo \"$*\" >>'{}'\ncase \"$*\" in\n--version) echo 'QEMU emulator version 9.9.9' ;;\n\
             *-qmp*) echo 'no machine' >&2; exit 1 ;;\n*-kernel*) {kernel} ;;\n*) exit 133 ;;\nesac\n",
            calls.display()
        );
        let program = |name: &str, text: &str| {
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        };
        program("qemu-system-x86_64", &script);
        for name in ["ctx", "ffs", "bench-probe"] {
            program(name, "#!/bin/sh\n");
        }
        let own = Path::new(env!("CARGO_BIN_EXE_bench"));
        if fs::hard_link(own, bin.join("bench")).is_err() {
            fs::copy(own, bin.join("bench")).unwrap();
        }
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bench(&self, words: &[&str]) -> (Option<i32>, String) {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(self.path("bin/bench"));
        let Output { status, stdout, stderr } = command
            .args(words)
            .current_dir(self.0.path())
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("BENCH_CACHE", self.path("cache"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    /// How machines of a testbed were called for, since the last time.
    fn machines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("calls"));
        text.lines().filter(|line| line.contains("-qmp")).map(str::to_owned).collect()
    }
}

const SCENARIO: &str =
    "title = 't'\nexperiment = 'migration'\n[design]\narms = ['plain']\nblocks = 1\nseed = 1\n";

/// Whether a testbed can be begun here; else it says why not.
fn possible(test: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let report = probe_with(&bench::doctor::Options { afresh: false, cache: Some(folder.path().into()) });
    let mut needed = [Subject::Namespaces, Subject::Networks, Subject::Ssh].map(Requirement::Works).to_vec();
    needed.push(Requirement::program("mke2fs", "e2fsprogs"));
    require(&report, &needed)
        .map_err(|unmet| eprintln!("SKIPPED accelerator::{test}: {}", unmet.to_string().replace('\n', " ")))
        .is_ok()
}

/// Whether `/dev/kvm` can be opened; else it says so.
fn kvm(test: &str) -> bool {
    let device = fs::File::options().read(true).write(true).open("/dev/kvm");
    device.map_err(|error| eprintln!("SKIPPED accelerator::{test}: /dev/kvm: {error}")).is_ok()
}

#[test]
fn hardware_virtualization_that_cannot_be_had_is_refused_before_anything_is_booted() {
    if !possible("hardware_virtualization_that_cannot_be_had_is_refused_before_anything_is_booted") {
        return;
    }
    let home = Home::new("echo KVM internal error. Suberror: 1; exec sleep 600");
    fs::write(home.path("s.toml"), SCENARIO).unwrap();
    let asking = SCENARIO.replace("[design]", "[testbed]\naccelerator = 'kvm'\n[design]");
    fs::write(home.path("asks.toml"), asking).unwrap();
    for words in [
        &["run", "s.toml", "--accelerator", "kvm"][..],
        &["run", "asks.toml"],
        &["testbed", "up", "--accelerator", "kvm"],
    ] {
        let (status, said) = home.bench(words);
        assert_eq!(status, Some(1), "{words:?}: {said}");
        assert!(said.contains("cannot run with the accelerator kvm ("), "{words:?}: {said}");
        assert!(said.contains("auto or tcg"), "{words:?}: {said}");
        assert_eq!(home.machines(), [""; 0], "{words:?}");
    }
    assert!(!home.path("results").exists(), "a run was begun");
}

#[test]
fn emulation_is_taken_although_hardware_virtualization_works() {
    let test = "emulation_is_taken_although_hardware_virtualization_works";
    if !possible(test) || !kvm(test) {
        return;
    }
    let home = Home::new("echo 'bench-init: a program runs'; exec sleep 600");
    for (choice, accelerator) in [("auto", "kvm"), ("kvm", "kvm"), ("tcg", "tcg")] {
        let (status, said) = home.bench(&["testbed", "up", "--hosts", "1", "--accelerator", choice]);
        assert_eq!(status, Some(1), "{choice}: {said}");
        assert!(said.contains("no machine"), "{choice}: {said}");
        let machines = home.machines();
        assert_eq!(machines.len(), 1, "{choice}: {machines:?}");
        assert!(machines[0].contains(&format!("-accel {accelerator}")), "{choice}: {machines:?}");
    }
}

#[test]
fn a_scenario_chooses_and_the_command_line_goes_before_it() {
    let test = "a_scenario_chooses_and_the_command_line_goes_before_it";
    if !possible(test) || !kvm(test) {
        return;
    }
    let home = Home::new("echo 'bench-init: a program runs'; exec sleep 600");
    let asking = SCENARIO.replace("[design]", "[testbed]\naccelerator = 'tcg'\n[design]");
    fs::write(home.path("s.toml"), asking).unwrap();
    for (words, accelerator, asked) in [
        (&["run", "s.toml", "--results", "of-scenario"][..], "tcg", None),
        (&["run", "s.toml", "--results", "of-option", "--accelerator", "kvm"], "kvm", Some("kvm")),
    ] {
        let (status, said) = home.bench(words);
        assert_eq!(status, Some(1), "{words:?}: {said}");
        let machines = home.machines();
        assert!(!machines.is_empty(), "{words:?}: {said}");
        let expected = format!("-accel {accelerator}");
        assert!(machines.iter().all(|line| line.contains(&expected)), "{words:?}: {machines:?}");
        // The run is there, and says what was asked for.
        let run = fs::read_dir(home.path(words[3]).join("s")).unwrap().next().unwrap().unwrap().path();
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(run.join("manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest.get("accelerator_asked").and_then(|asked| asked.as_str()), asked);
        let programs: Vec<&String> = manifest["programs"].as_object().unwrap().keys().collect();
        assert_eq!(programs, ["bench", "bench-probe", "ctx", "ffs"]);
    }
}

#[test]
fn who_boots_no_hosts_chooses_no_accelerator() {
    let home = Home::new("exit 1");
    let local = "title = 't'\nexperiment = 'layers'\n[testbed]\nkind = 'local'\n[design]\narms = ['native']\nblocks = 1\nseed = 1\n";
    fs::write(home.path("local.toml"), local).unwrap();
    for choice in ["auto", "kvm", "tcg"] {
        let (status, said) = home.bench(&["run", "local.toml", "--accelerator", choice]);
        assert_eq!(status, Some(64), "{said}");
        assert!(said.contains("boots no hosts"), "{said}");
    }
    for words in [&["run", "s.toml", "--accelerator", "xen"][..], &["testbed", "up", "--accelerator", "xen"]]
    {
        let (status, said) = home.bench(words);
        assert_eq!(status, Some(64), "{words:?}: {said}");
        assert!(said.contains("auto, kvm, tcg"), "{words:?}: {said}");
    }
}

#[test]
fn check_says_how_long_a_run_takes_on_what_the_scenario_asks_for() {
    let home = Home::new("exit 1");
    let said = |accelerator: &str| {
        let text =
            SCENARIO.replace("[design]", &format!("[testbed]\naccelerator = '{accelerator}'\n[design]"));
        fs::write(home.path("s.toml"), text).unwrap();
        let (status, said) = home.bench(&["check", "s.toml"]);
        assert_eq!(status, Some(0), "{said}");
        (said.contains("on emulated hosts"), said.contains("with hardware virtualization"))
    };
    assert_eq!(said("auto"), (true, true));
    assert_eq!(said("tcg"), (true, false));
    assert_eq!(said("kvm"), (false, true));
    assert!(home.machines().is_empty() && !home.path("calls").exists(), "something was started");
}
