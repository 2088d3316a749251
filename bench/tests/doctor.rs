//! What the doctor says of hardware virtualization, with a QEMU that is a script: machines differ, and here each kind is one.

#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// Boot sectors come up and see SVM: (0x42 << 1) | 1. Kernels do what `kernel` says.
fn plant_qemu(folder: &Path, kernel: &str) {
    std::fs::create_dir_all(folder).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n--version) echo 'QEMU emulator version 9.9.9' ;;\n*-kernel*) {kernel} ;;\n*) exit 133 ;;\nesac\n"
    );
    let file = folder.join("qemu-system-x86_64");
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The report, and the status and evidence of the finding about hardware virtualization.
fn doctor(home: &Path) -> (serde_json::Value, String, String) {
    let path = std::env::var("PATH").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["doctor", "--json"])
        .env("PATH", format!("{}:{path}", home.join("bin").display()))
        .env("BENCH_CACHE", home.join("cache"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = report["findings"].as_array().unwrap();
    let found = found.iter().find(|found| found["subject"] == "hardware-virtualization").unwrap();
    let text = |name: &str| found[name].as_str().unwrap().to_owned();
    let (status, evidence) = (text("status"), text("evidence"));
    (report, status, evidence)
}

fn skip(test: &str) -> bool {
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &kvm {
        eprintln!("SKIPPED doctor::{test}: /dev/kvm: {error}");
    }
    kvm.is_err()
}

#[test]
fn a_boot_sector_alone_is_not_hardware_virtualization() {
    if skip("a_boot_sector_alone_is_not_hardware_virtualization") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    plant_qemu(&home.path().join("bin"), "echo KVM internal error. Suberror: 1; exec sleep 600");
    let (report, status, evidence) = doctor(home.path());
    if evidence.contains("there is no kernel to boot") {
        assert_eq!(status, "unknown", "{evidence}");
        assert!(report["accelerator"].is_null(), "{report}");
    } else {
        // The kernel that runs here was booted.
        assert_eq!(status, "degraded", "{evidence}");
    }
    // The image's kernel is another, so what was found before does not hold.
    common::plant(&home.path().join("cache"));
    let (report, status, evidence) = doctor(home.path());
    assert_eq!((status.as_str(), &report["accelerator"]), ("degraded", &"tcg".into()), "{evidence}");
    assert!(evidence.contains("the Linux kernel of image guest did not come up"), "{evidence}");
    assert!(evidence.contains("KVM internal error"), "{evidence}");
}

/// A QEMU that notes each boot in `boots`.
fn plant_noting_qemu(home: &Path) {
    plant_qemu(&home.join("bin"), "exit 1");
    let file = home.join("bin/qemu-system-x86_64");
    let script = std::fs::read_to_string(&file).unwrap();
    let noting =
        format!("#!/bin/sh\n[ \"$1\" = --version ] || echo boot >>'{}'\n", home.join("boots").display());
    std::fs::write(&file, script.replacen("#!/bin/sh\n", &noting, 1)).unwrap();
}

#[test]
fn in_user_namespaces_below_each_other_one_answer_holds() {
    let test = "in_user_namespaces_below_each_other_one_answer_holds";
    let below: Vec<&str> = "unshare --user --map-user=1000 --map-group=1000 --".split(' ').collect();
    // Inside of one in which the user has a number, as outside of the bench's own, one in which the same user is root.
    let root = ["unshare", "--user", "--map-root-user", "--"];
    let chain = |words: &[&str]| {
        let words: Vec<&str> = below.iter().chain(words).copied().collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        command
    };
    let possible = chain(&[&root[..], &["true"]].concat()).output();
    if !possible.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED doctor::{test}: no user namespaces here");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    plant_noting_qemu(home.path());
    let boots = || std::fs::read_to_string(home.path().join("boots")).unwrap_or_default().lines().count();
    let path = std::env::var("PATH").unwrap();
    let ask = |words: &[&str]| {
        let words = [words, &[env!("CARGO_BIN_EXE_bench"), "doctor", "--json"]].concat();
        let mut command = chain(&words);
        command.env("PATH", format!("{}:{path}", home.path().join("bin").display()));
        let output = command.env("BENCH_CACHE", home.path().join("cache")).output().unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&output.stdout).is_ok(), "{output:?}");
        boots()
    };
    let first = ask(&[]);
    assert!(first > 0, "nothing was booted");
    assert!(home.path().join("cache/virtualization.json").is_file());
    assert_eq!(ask(&[]), first, "the answer is not kept");
    assert_eq!(ask(&root), first, "it is not taken inside");
}

#[test]
fn what_auto_takes_is_said_with_the_reason() {
    let home = tempfile::tempdir().unwrap();
    plant_noting_qemu(home.path());
    let (report, ..) = doctor(home.path());
    for hypervisor in ["kvm", "xen"] {
        let auto = &report["auto"][hypervisor];
        // The script boots no kernel. Where there is no kernel to boot, nothing is known.
        assert_eq!(auto["accelerator"], "tcg", "{auto}");
        assert!(!auto["why"].as_str().unwrap().is_empty(), "{auto}");
    }
    let how = report["possible"][1]["how"].as_str().unwrap();
    let why = report["auto"]["xen"]["why"].as_str().unwrap();
    assert!(how.contains(why) || how.contains("not before this is cured"), "{how}: {why}");
}

#[test]
fn a_kernel_that_comes_up_is_and_the_answer_is_kept() {
    if skip("a_kernel_that_comes_up_is_and_the_answer_is_kept") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    common::plant(&home.path().join("cache"));
    plant_qemu(&home.path().join("bin"), "echo 'bench-init: a program runs'; exec sleep 600");
    let (report, status, evidence) = doctor(home.path());
    assert_eq!((status.as_str(), &report["accelerator"]), ("ok", &"kvm".into()), "{evidence}");
    // Nothing is booted again.
    plant_qemu(&home.path().join("bin"), "exit 1");
    let (_, status, evidence) = doctor(home.path());
    assert_eq!(status, "ok", "{evidence}");
}
