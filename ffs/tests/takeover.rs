//! Who takes over a mount that is in use, and who does not: `ffs upgrade`.
//!
//! What cannot take over leaves everything as it was; what was under way comes to its end; signals, drives,
//! hooks and the end of the mount are the next program's. Programs that use the mount: `upgrade.rs`.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{
    Drive, Mounted, OnDrop, eventually, image, succeeded, tree, usage, usage_at_rest, wait_for_disks,
};
use ffs::control::{Request, Response, Status};
use ffs::events::Step;

#[track_caller]
fn refused(mounted: &Mounted, program: &Path, says: &str) {
    let before = mounted.status();
    let output = mounted.upgrade(Some(program));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("nothing has changed") && error.contains(says), "{error}");
    let after = mounted.status();
    assert_eq!(
        (after.pid, after.generation, after.taken_over, &after.layers, after.rollback_to),
        (before.pid, before.generation, before.taken_over, &before.layers, before.rollback_to)
    );
}

#[test]
fn what_cannot_take_over_leaves_everything_as_it_was() {
    needs_mount!("what_cannot_take_over_leaves_everything_as_it_was");
    let dir = tempfile::tempdir().unwrap();
    let ffs = env!("CARGO_BIN_EXE_ffs");
    let script = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let lower = tree(&dir.path().join("lower"), &[("a", "1"), ("b", "2")]);
    std::fs::copy("/bin/true", lower.join("true")).unwrap();
    let mounted = Mounted::new(&["--layer", &format!("lower=dir:{}", lower.display())]);
    let held = File::open(mounted.at("a")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!((mounted.read("a"), mounted.names("").len()), ("1".to_owned(), 3));
            }
        });
        let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
        let before = usage_at_rest(mounted.pid());
        refused(&mounted, Path::new("/bin/false"), "exit status: 1");
        refused(&mounted, Path::new("/bin/true"), "it did not say why");
        refused(&mounted, Path::new("/nonexistent/ffs"), "No such file");
        refused(&mounted, &mounted.at("true"), "on this mount itself");
        refused(&mounted, &script("dies", "echo no way >&2; kill -9 $$"), "no way");
        let other = script(
            "other-format",
            &format!(
                "sed '1s/.*/ffs state 999/' < /proc/self/fd/$3 > {0}\nexec 9< {0}\nexec {ffs} take-over --state 9 $4 $5",
                dir.path().join("state").display()
            ),
        );
        refused(&mounted, &other, "the state has format 999");
        let unknown = script(
            "unknown-field",
            &format!(
                "sed 's/\"private\":/\"triplet\":1,\"private\":/' < /proc/self/fd/$3 > {0}\nexec 9< {0}\nexec {ffs} take-over --state 9 $4 $5",
                dir.path().join("state").display()
            ),
        );
        refused(&mounted, &unknown, "unknown field `triplet`");
        // One that is another when everybody has been stopped: they go on.
        let replaced = script("replaced", &format!("cp $0 $0.new && mv $0.new $0\nexec {ffs} \"$@\""));
        for _ in 0..3 {
            refused(&mounted, &replaced, "was replaced after it had said");
        }
        eventually("nothing is left of it", || {
            let now = usage(mounted.pid());
            (now.0 <= before.0 && now.1 <= before.1).then_some(())
        });
        // One that can, until it is for earnest.
        let fails = script(
            "fails",
            &format!(
                "case $4 in --rehearse) exec {ffs} \"$@\";; esac\nexec {ffs} take-over --state $3 --predecessor $5 /another"
            ),
        );
        refused(&mounted, &fails, "of another mount");
        refused(&mounted, &fails, "of another mount");
        succeeded(&mounted.upgrade(None));
    });
    let mut content = [0; 1];
    held.read_exact_at(&mut content, 0).unwrap();
    assert_eq!((content, mounted.status().taken_over), (*b"1", 1));
    let failures =
        mounted.events().iter().filter(|event| matches!(event.step, Step::NotTakenOver { .. })).count();
    assert_eq!(failures, 12);
}

/// Another mount stands for a disk that does not answer.
#[test]
fn a_request_that_takes_long_is_answered_by_the_program_that_has_it() {
    needs_mount!("a_request_that_takes_long_is_answered_by_the_program_that_has_it");
    let dir = tempfile::tempdir().unwrap();
    let lower = tree(&dir.path().join("lower"), &[("a", "1")]);
    let large: Vec<u8> = (0..251).cycle().take(3 << 20).collect();
    std::fs::write(lower.join("large"), &large).unwrap();
    let disk = Mounted::new(&["--layer", &format!("lower=dir:{}", lower.display())]);
    let mounted = Mounted::new(&["--layer", &format!("disk=dir:{},watch=off", disk.at("").display())]);
    std::thread::scope(|scope| {
        // However this ends, the disk answers in the end.
        let stopped = disk.stopped();
        let reader = scope.spawn(|| std::fs::read(mounted.at("large")).unwrap());
        eventually("a thread reads from the disk", || (wait_for_disks(mounted.pid()) > 0).then_some(()));
        refused(&mounted, Path::new(env!("CARGO_BIN_EXE_ffs")), "was not answered within");
        assert_eq!(mounted.read("a"), "1");
        assert!(!reader.is_finished());
        drop(stopped);
        assert!(reader.join().unwrap() == large);
    });
    succeeded(&mounted.upgrade(None));
    assert!(std::fs::read(mounted.at("large")).unwrap() == large);
}

#[test]
fn the_program_that_was_installed_meanwhile_takes_over_and_ends_as_any_other() {
    needs_mount!("the_program_that_was_installed_meanwhile_takes_over_and_ends_as_any_other");
    let dir = tempfile::tempdir().unwrap();
    let (program, new) = (dir.path().join("ffs"), dir.path().join("new"));
    std::fs::copy(env!("CARGO_BIN_EXE_ffs"), &program).unwrap();
    let lower = tree(&dir.path().join("lower"), &[("a", "1")]);
    let mut mounted = Mounted::of(&program, &["--layer", &format!("lower=dir:{}", lower.display())], "");
    let exe = || std::fs::read_link(format!("/proc/{}/exe", mounted.pid())).unwrap();
    // As package managers do it, twice.
    for _ in 0..2 {
        std::fs::copy(env!("CARGO_BIN_EXE_ffs"), &new).unwrap();
        std::fs::rename(&new, &program).unwrap();
        assert!(exe().to_string_lossy().ends_with(" (deleted)"));
        succeeded(&mounted.ffs(&["upgrade", mounted.at("").to_str().unwrap()]));
        assert_eq!(exe(), program.canonicalize().unwrap());
    }
    // Directories are followed on, and SIGHUP and SIGTERM mean what they did.
    std::fs::write(lower.join("a"), "2").unwrap();
    eventually("the change", || (mounted.read("a") == "2").then_some(()));
    let pid = nix::unistd::Pid::from_raw(mounted.pid().cast_signed());
    std::fs::write(lower.join("b"), "").unwrap();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    eventually("the reload", || mounted.at("b").exists().then_some(()));
    assert_eq!(mounted.terminate(), Some(0));
    assert!(!mounted.is_mounted() && !mounted.dir.path().join("socket").exists());
}

#[test]
fn a_mount_in_the_background_ends_with_its_unmount_after_an_upgrade() {
    needs_mount!("a_mount_in_the_background_ends_with_its_unmount_after_an_upgrade");
    let dir = tempfile::tempdir().unwrap();
    let (mnt, socket) = (dir.path().join("mnt"), dir.path().join("socket"));
    std::fs::create_dir(&mnt).unwrap();
    let lower = tree(&dir.path().join("lower"), &[("a", "1")]);
    std::fs::write(dir.path().join("ffs.toml"), "ack = \"off\"\n").unwrap();
    let ffs = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ffs"));
        command.args(words).arg(&mnt).arg("--socket").arg(&socket).output().unwrap()
    };
    let config = dir.path().join("ffs.toml");
    let layer = format!("lower=dir:{}", lower.display());
    succeeded(&ffs(&["mount", "--config", config.to_str().unwrap(), "--layer", &layer]));
    let status = |output: Output| serde_json::from_slice::<Status>(&output.stdout).unwrap();
    let before = status(ffs(&["status", "--json"]));
    succeeded(&ffs(&["upgrade"]));
    assert_eq!(status(ffs(&["status", "--json"])).pid, before.pid);
    assert_eq!(std::fs::read_to_string(mnt.join("a")).unwrap(), "1");
    // As umount(8) does it, whom nobody has told of ffs.
    nix::mount::umount2(&mnt, nix::mount::MntFlags::empty()).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", before.pid));
    // Nobody may be there to wait for it: then it stays as a zombie, without a program.
    eventually("the program's end", || std::fs::read_link(proc.join("exe")).is_err().then_some(()));
    assert!(!socket.exists());
}

#[test]
fn drives_hooks_and_what_was_rolled_back_go_on() {
    needs_mount!("drives_hooks_and_what_was_rolled_back_go_on");
    let disc = |generation: u64| image("infrastructure", 9, generation, &[("disc", &generation.to_string())]);
    let Some(mut drive) = Drive::with(&disc(1)) else {
        eprintln!("SKIPPED drives_hooks_and_what_was_rolled_back_go_on: no loop device");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (ran, go) = (dir.path().join("ran"), dir.path().join("go"));
    let hook = format!(
        "[[hook]]\nname = \"slow\"\npath = \"**\"\ntimeout_ms = 300000\n\
         run = [\"sh\", \"-c\", \"echo begin >> {0}; until [ -e {1} ]; do sleep 0.02; done; echo $FFS_GENERATION >> {0}\"]\n",
        ran.display(),
        go.display()
    );
    let mounted = Mounted::with_config(
        &["--layer", &format!("infrastructure=device:{}", drive.device.display())],
        &hook,
    );
    let shows = |generation: &str| {
        eventually("the disc", || (mounted.read("disc") == generation).then_some(()));
    };
    shows("1");
    eventually("the hook", || std::fs::read_to_string(&ran).is_ok_and(|text| !text.is_empty()).then_some(()));
    drive.eject();
    drive.insert(&disc(2));
    shows("2");
    // A hook runs: it is waited for, and what it came to is known afterwards. Of two upgrades one is refused at once, for the
    // other one is under way: it waits then.
    let outputs = std::thread::scope(|scope| {
        let (to, outputs) = std::sync::mpsc::channel();
        for _ in 0..2 {
            let (to, mounted) = (to.clone(), &mounted);
            scope.spawn(move || to.send(mounted.upgrade(None)).unwrap());
        }
        // However this ends, the hook does.
        let _end = OnDrop(|| std::fs::write(&go, "").unwrap());
        let refused = outputs.recv_timeout(common::DEADLINE).unwrap();
        assert!(
            String::from_utf8_lossy(&refused.stderr).contains("another upgrade is under way"),
            "{refused:?}"
        );
        assert_eq!(std::fs::read_to_string(&ran).unwrap(), "begin\n");
        std::fs::write(&go, "").unwrap();
        outputs.recv_timeout(common::DEADLINE).unwrap()
    });
    succeeded(&outputs);
    // The round under way came to its end, and the one that waited is run by the next program.
    assert!(std::fs::read_to_string(&ran).unwrap().starts_with("begin\n1\n"));
    eventually("the second round", || {
        (std::fs::read_to_string(&ran).unwrap() == "begin\n1\nbegin\n2\n").then_some(())
    });
    let status = mounted.status();
    assert_eq!(status.hooks.first().map(|hook| hook.result.as_str()), Some("ok"));
    assert!(status.devices[0].state.contains("generation 2"), "{:?}", status.devices);
    let acks = || mounted.acks().into_iter().map(|ack| ack.generation).collect::<Vec<_>>();
    eventually("the acknowledgement", || (acks() == [Some(2)]).then_some(()));

    // What is rolled back is held back by the next program, too.
    let response = mounted.ask(&Request::Rollback { to: None, if_generation: None });
    assert!(matches!(response, Response::Status(_)), "{response:?}");
    shows("1");
    succeeded(&mounted.upgrade(None));
    drive.eject();
    drive.insert(&disc(2));
    eventually("the refusal", || {
        mounted.status().devices.iter().any(|device| device.state.contains("rolled back")).then_some(())
    });
    assert_eq!(mounted.read("disc"), "1");
    drive.eject();
    drive.insert(&disc(3));
    shows("3");
    eventually("the acknowledgement", || (acks() == [Some(3)]).then_some(()));
    eventually("the last round", || {
        std::fs::read_to_string(&ran)
            .unwrap()
            .ends_with(&format!("\n{}\n", mounted.status().generation))
            .then_some(())
    });
}
