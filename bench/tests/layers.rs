//! Union file systems side by side on this machine, for real and as small as can be: all of them mounted, probed, reported.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TINY: &str = r#"
title = "As small as can be"
experiment = "layers"
figures = ["peers"]
[testbed]
kind = "local"
[design]
arms = ["native", "overlayfs", "fuse-overlayfs", "mergerfs", "mergerfs-passthrough", "unionfs-fuse", "ffs", "ffs-passthrough"]
blocks = 1
warmup = 0
seed = 1
[layers]
files = 100
large = "4 MiB"
mounts = 1
passes = 1
swaps = 5
cached = 100
storm = "300 ms"
many_files = 1000
many_looked_up = 100
"#;

/// Why this machine cannot do it, if so.
fn cannot(bench: &Path) -> Option<String> {
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return Some("needs root and /dev/fuse".into());
    }
    let ffs = bench.with_file_name("ffs");
    if !ffs.exists() {
        return Some(format!("{} is not built", ffs.display()));
    }
    None
}

fn derived(run: &Path) -> Vec<Vec<u8>> {
    ["report.html", "samples.csv", "figures/peers.svg", "figures/peers.png"]
        .iter()
        .map(|name| fs::read(run.join(name)).unwrap())
        .collect()
}

#[test]
fn all_file_systems_in_one_run() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_bench"));
    if let Some(reason) = cannot(&program) {
        eprintln!("SKIPPED layers::all_file_systems_in_one_run: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("tiny.toml");
    fs::write(&scenario, TINY).unwrap();
    let bench = |arguments: &[&Path]| Command::new(&program).args(arguments).output().unwrap();
    let results = folder.path().join("results");
    let output = bench(&["run".as_ref(), &scenario, "--results".as_ref(), &results]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");

    let run = fs::read_dir(results.join("tiny")).unwrap().next().unwrap().unwrap().path();
    let stored = bench::store::StoredRun::read(&run).unwrap();
    assert!(stored.samples.iter().all(|sample| sample.valid), "{:?}", stored.samples);
    let has = |arm: &str, metric: &str| stored.samples.iter().any(|s| s.arm == arm && s.metric == metric);
    let peers = &stored.manifest.peers;
    for arm in &stored.scenario.design.arms {
        let note = &peers[arm.name()];
        // On a release that lacks a program, its arm is absent, and no other is.
        let package = bench::workload::layers::peer::package(*arm);
        let installed = package.is_none_or(|(program, _)| bench::doctor::which(program).is_some());
        assert_eq!(note.version.is_empty(), !installed, "{arm}");
        assert!(installed || note.absent.is_some(), "{arm}");
        // Every metric has a value, or a reason why it has none.
        for metric in bench::metric::LAYERS.iter().chain(&bench::metric::FAULTS) {
            let reasoned = note.absent.is_some() || note.cannot.contains_key(*metric);
            assert!(has(arm.name(), metric) != reasoned, "{arm}, {metric}");
        }
    }
    let mergerfs = &peers["mergerfs"];
    assert!(mergerfs.absent.is_some() || mergerfs.cannot.contains_key(bench::metric::SWAP_EVENT_P99));
    assert!(!peers["ffs"].cannot.contains_key(bench::metric::SWAP_EVENT_P99));
    let before = derived(&run);
    assert!(bench(&["report".as_ref(), &run]).status.success());
    assert!(derived(&run) == before, "bench report gave other bytes");
    // Mounts and programs went with the namespaces.
    let mounts = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap()).into_owned();
    assert!(!mounts.contains(" - tmpfs bench "), "{mounts}");
}

/// A folder with links to all programs on the path but some.
fn path_without(programs: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for place in std::env::split_paths(&std::env::var_os("PATH").unwrap()).chain(["/usr/sbin".into()]) {
        for entry in fs::read_dir(place).into_iter().flatten().map(Result::unwrap) {
            if !programs.iter().any(|program| entry.file_name() == *program) {
                // The first on the path counts.
                let _ = std::os::unix::fs::symlink(entry.path(), folder.path().join(entry.file_name()));
            }
        }
    }
    folder
}

#[test]
fn a_peer_that_is_not_installed_is_absent_and_stops_nobody() {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_bench"));
    if let Some(reason) = cannot(&program) {
        eprintln!("SKIPPED layers::a_peer_that_is_not_installed_is_absent_and_stops_nobody: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("tiny.toml");
    let (before, after) = TINY.split_once("arms = [").unwrap();
    let (_, after) = after.split_once(']').unwrap();
    let arms = ["unionfs-fuse", "mergerfs", "mergerfs-passthrough", "fuse-overlayfs", "native", "ffs"];
    fs::write(&scenario, format!("{before}arms = {arms:?}{after}")).unwrap();
    let path = path_without(&["unionfs", "mergerfs", "fuse-overlayfs"]);
    let bench = |arguments: &[&Path]| {
        Command::new(&program).args(arguments).env("PATH", path.path()).output().unwrap()
    };
    let check = bench(&["check".as_ref(), &scenario]);
    let told = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{told}");
    let why = "the program unionfs is not installed (Debian package unionfs-fuse)";
    assert!(told.contains(&format!("unionfs-fuse will be absent: {why}.")), "{told}");

    let results = folder.path().join("results");
    let output = bench(&["run".as_ref(), &scenario, "--results".as_ref(), &results]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = fs::read_dir(results.join("tiny")).unwrap().next().unwrap().unwrap().path();
    let stored = bench::store::StoredRun::read(&run).unwrap();
    let with_samples: std::collections::BTreeSet<&str> =
        stored.samples.iter().map(|sample| sample.arm.as_str()).collect();
    assert_eq!(with_samples.into_iter().collect::<Vec<_>>(), ["ffs", "native"]);
    let peers = &stored.manifest.peers;
    assert_eq!(peers["unionfs-fuse"].absent.as_deref(), Some(why));
    assert!(arms[..4].iter().all(|arm| peers[*arm].absent.is_some()), "{peers:?}");
    assert!(peers["native"].absent.is_none() && peers["ffs"].absent.is_none());
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains(&format!("absent: {why}")));
}
