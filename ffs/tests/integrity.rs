//! Nobody writes and nobody commands, from wherever the mount is seen: `attack.py` tries it all from each place.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Mounted, eventually, image, in_time, succeeded, tree};
use ffs::events::Step;
use nix::mount::{MsFlags, mount};

/// A user who owns a file of the layer and has no other rights.
const OWNER: u32 = 65534;

/// The content, which is as long as a page at least.
fn content() -> String {
    "server = good.example\n".repeat(400)
}

/// A mount namespace of this thread's own in which the place of temporary folders is shared with others, as everything is where
/// systemd is process 1.
fn shared_place() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let (none, tmp) = (None::<&str>, std::env::temp_dir());
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some(&tmp), &tmp, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &tmp, none, MsFlags::MS_SHARED, none).unwrap();
}

/// Another mount namespace, which receives what is mounted here.
struct Elsewhere(Child);

impl Elsewhere {
    /// `unshare` are its options besides.
    fn new(unshare: &[&str]) -> Self {
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "slave"])
            .args(unshare)
            .args(["sh", "-c", "echo there; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        Self(child)
    }

    /// The command that runs another one there.
    fn enter(&self) -> Vec<String> {
        let pid = self.0.id().to_string();
        ["nsenter", "--target", &pid, "--mount"].map(str::to_owned).into()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a container's process 1 has at most: root's number and no capability.
fn powerless() -> Vec<String> {
    let words = "setpriv --bounding-set -all --inh-caps -all --ambient-caps -all --no-new-privs";
    words.split(' ').map(str::to_owned).collect()
}

fn as_owner() -> Vec<String> {
    let id = OWNER.to_string();
    ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(str::to_owned).into()
}

/// Runs something behind the words that bring it to its place, which takes a minute at most.
fn run(place: &[String], command: &[&str]) -> std::process::Output {
    Command::new("timeout").arg("60").args(place).args(command).stdin(Stdio::null()).output().unwrap()
}

/// What came of each way to attack a file at the top of a mount.
#[track_caller]
fn attack(place: &[String], point: &Path, name: &str) -> BTreeMap<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attack.py");
    // The folder of the build may be closed to others.
    let open = tempfile::tempdir().unwrap();
    std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let copy = open.path().join("attack.py");
    std::fs::copy(script, &copy).unwrap();
    let output = run(place, &["/usr/bin/python3", copy.to_str().unwrap(), point.to_str().unwrap(), name]);
    succeeded(&output);
    let text = String::from_utf8(output.stdout).unwrap();
    let result = |line: &str| line.split_once(' ').map(|(what, result)| (what.to_owned(), result.to_owned()));
    let results: BTreeMap<_, _> = text.lines().map(|line| result(line).unwrap()).collect();
    assert!(results.len() > 25, "{results:?}");
    results
}

/// Checks that nothing can be done from a place, and that the daemon goes on.
#[track_caller]
fn assert_withstands(mounted: &Mounted, place: &[String]) {
    // Whose file it is may write to it.
    let name = if place.ends_with(&as_owner()) { "own" } else { "conf" };
    for (what, result) in attack(place, &mounted.at(""), name) {
        // What is opened for ioctl(2) alone can be neither read nor written, and is open on any read-only mount.
        assert!(result == "EROFS" || what == "open-ioctl", "{what} by {place:?}: {result}");
    }
    assert_unchanged(mounted, name);
    assert!(mounted.status().reduced.iter().all(|line| !line.contains("writ")), "{:?}", mounted.status());
}

#[track_caller]
fn assert_unchanged(mounted: &Mounted, name: &str) {
    let path = mounted.at(name);
    let seen = in_time("a read", move || std::fs::read_to_string(path).unwrap());
    assert!(seen == content() || seen == content().repeat(20), "{}", &seen[..40]);
    let status = mounted.status();
    assert_eq!((status.layers.len(), status.generation), (1, 0));
}

/// A layer with a file of root's and one that a user owns.
fn layer(at: &Path, content: &str) -> String {
    let layer = tree(&at.join("layer"), &[("conf", content), ("own", content), ("dir/x", "")]);
    std::os::unix::fs::chown(layer.join("own"), Some(OWNER), Some(OWNER)).unwrap();
    for open in [at, &layer] {
        std::fs::set_permissions(open, PermissionsExt::from_mode(0o755)).unwrap();
    }
    format!("a=dir:{}", layer.display())
}

/// Lets others into the folder that the mount is in.
fn let_in(mounted: &Mounted) {
    std::fs::set_permissions(mounted.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
}

/// Root's number in the same file systems, without power over the mount: no capabilities, or a user namespace's.
fn powerless_with_the_socket() -> [Vec<String>; 2] {
    [powerless(), ["unshare", "--user", "--map-root-user"].map(str::to_owned).into()]
}

#[test]
fn who_is_root_without_capabilities_may_look_and_not_command() {
    needs_mount!("who_is_root_without_capabilities_may_look_and_not_command");
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(&["--layer", &layer(dir.path(), &content())]);
    let program = env!("CARGO_BIN_EXE_ffs");
    let point = mounted.at("").display().to_string();
    let socket = mounted.dir.path().join("socket").display().to_string();
    let evil = dir.path().join("evil");
    let proof = dir.path().join("proof");
    std::fs::write(&evil, format!("#!/bin/sh\n: > {}\n", proof.display())).unwrap();
    std::fs::set_permissions(&evil, PermissionsExt::from_mode(0o755)).unwrap();
    let evil = evil.display().to_string();
    let commands: [&[&str]; 7] = [
        &["upgrade", &point, "--program", &evil],
        &["layer", "add", &point, "h=dir:/etc"],
        &["layer", "replace", &point, "a=dir:/etc"],
        &["layer", "remove", &point, "a"],
        &["rollback", &point],
        &["reload", &point],
        &["umount", &point],
    ];
    for place in powerless_with_the_socket() {
        let asked = |command: &[&str]| run(&place, &[&[program], command, &["--socket", &socket]].concat());
        succeeded(&asked(&["status", &point]));
        for command in commands {
            let output = asked(command);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{place:?} {command:?}");
            assert!(
                said.contains("may look at this mount and not change it"),
                "{place:?} {command:?}: {said}"
            );
        }
        assert!(!proof.exists(), "somebody else's program ran as root");
        assert_unchanged(&mounted, "conf");
    }
    // Who has the capabilities commands.
    succeeded(&mounted.ffs(&["reload", &point]));
}

/// The flags of the mount in a namespace.
fn flags_in(elsewhere: &Elsewhere, point: &Path) -> MsFlags {
    let table = std::fs::read(format!("/proc/{}/mountinfo", elsewhere.0.id())).unwrap();
    let found = ffs::kernel::mountinfo::parse(&table).find(|entry| entry.point == point);
    found.expect("the mount was propagated").flags
}

#[test]
fn nobody_writes_from_any_namespace_also_after_an_upgrade() {
    needs_mount!("nobody_writes_from_any_namespace_also_after_an_upgrade");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let before = Elsewhere::new(&[]);
    let contained = Elsewhere::new(&["--user", "--map-root-user"]);
    let mounted = Mounted::new(&["--layer", &layer(dir.path(), &content())]);
    let_in(&mounted);
    let after = Elsewhere::new(&[]);
    let point = mounted.dir.path().join("mnt");
    for elsewhere in [&before, &after, &contained] {
        let flags = flags_in(elsewhere, &point);
        assert!(flags.contains(MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV), "{flags:?}");
    }
    let places = [
        vec![],
        before.enter(),
        after.enter(),
        powerless(),
        [before.enter(), powerless()].concat(),
        [after.enter(), powerless()].concat(),
        as_owner(),
        [before.enter(), as_owner()].concat(),
        [contained.enter(), vec!["--user".to_owned(), "--preserve-credentials".to_owned()]].concat(),
    ];
    // The first reader is answered that opens need not be asked for.
    assert_eq!(mounted.read("conf"), content());
    for place in &places {
        assert_withstands(&mounted, place);
    }
    // Root of a container cannot make its copy writable.
    let there = [contained.enter(), vec!["--user".to_owned(), "--preserve-credentials".to_owned()]].concat();
    let remount = ["mount", "-i", "-o", "remount,bind,rw", point.to_str().unwrap()];
    assert!(!run(&there, &remount).status.success());
    assert!(flags_in(&contained, &point).contains(MsFlags::MS_RDONLY));

    succeeded(&mounted.upgrade(None));
    assert_eq!(mounted.status().taken_over, 1);
    assert!(mounted.status().abilities.iter().any(|able| able == "inotify"), "the private mount goes along");
    for place in &places {
        assert_withstands(&mounted, place);
    }
    // A copy of a copy is not writable either.
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    mount(Some(&point), &copy, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    assert_eq!(attack(&powerless(), &copy, "conf")["open-both"], "EROFS");
    nix::mount::umount(&copy).unwrap();
}

#[test]
fn a_signed_or_verified_image_is_as_safe() {
    needs_mount!("a_signed_or_verified_image_is_as_safe");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.iso");
    std::fs::write(&path, image("i", 1, 1, &[("conf", &content()), ("dir/x", "")])).unwrap();
    let before = Elsewhere::new(&[]);
    let mounted = Mounted::new(&["--layer", &format!("i=iso:{}", path.display())]);
    assert_eq!(mounted.read("conf"), content());
    assert_withstands(&mounted, &[before.enter(), powerless()].concat());
}

#[test]
fn nobody_writes_to_what_the_kernel_reads_by_itself() {
    needs_mount!("nobody_writes_to_what_the_kernel_reads_by_itself");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let spec = layer(dir.path(), &content().repeat(20));
    let before = Elsewhere::new(&[]);
    let mounted = Mounted::new(&["--passthrough", "--layer", &spec]);
    let_in(&mounted);
    assert_eq!(mounted.read("conf"), content().repeat(20));
    for place in [vec![], before.enter(), [before.enter(), powerless()].concat(), as_owner()] {
        assert_withstands(&mounted, &place);
    }
    let below = std::fs::read_to_string(dir.path().join("layer/own")).unwrap();
    assert_eq!(below, content().repeat(20), "the layer's own file");
}

#[test]
fn what_root_writes_after_a_remount_elsewhere_is_refused_and_dropped() {
    needs_mount!("what_root_writes_after_a_remount_elsewhere_is_refused_and_dropped");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    for passthrough in [false, true] {
        let spec = layer(dir.path(), &content().repeat(if passthrough { 20 } else { 1 }));
        let elsewhere = Elsewhere::new(&[]);
        let args: &[&str] = if passthrough { &["--passthrough"] } else { &[] };
        let mounted = Mounted::new(&[args, &["--layer", &spec]].concat());
        // Where the kernel cannot, opens are not asked for.
        let passthrough = mounted.status().abilities.iter().any(|able| able == "passthrough");
        let shown = mounted.read("conf");
        let point = mounted.dir.path().join("mnt");
        let remount = ["mount", "-i", "-o", "remount,bind,rw", point.to_str().unwrap()];
        succeeded(&run(&elsewhere.enter(), &remount));
        assert!(!flags_in(&elsewhere, &point).contains(MsFlags::MS_RDONLY));
        for round in 0..2 {
            let results = attack(&elsewhere.enter(), &point, "conf");
            for (what, result) in &results {
                // The kernel opens by itself, unless opens are asked for; what comes of it is refused.
                let opens =
                    ["open-write", "open-both", "open-append", "open-direct", "open-ioctl", "open-again"];
                let may = !passthrough && (opens.contains(&what.as_str()) || what == "store");
                assert!(may || result != "DONE", "{what}: {results:?}");
            }
            for what in [
                "write",
                "ftruncate",
                "chmod",
                "create",
                "unlink",
                "rename",
                "command-layers",
                "command-reload",
            ] {
                assert_eq!(results[what], "EROFS", "{what}: {results:?}");
            }
            eventually("the layer's content", || (mounted.read("conf") == shown).then_some(()));
            assert_unchanged(&mounted, "conf");
            let said = mounted.status().reduced.iter().any(|line| line.contains("writable copy"));
            assert_eq!(said, !passthrough, "{:?}", mounted.status().reduced);
            if round == 0 {
                succeeded(&mounted.upgrade(None));
            }
        }
        // The mount that everybody else sees is as it was.
        for (what, result) in attack(&[], &point, "conf") {
            assert!(result == "EROFS" || what == "open-ioctl", "{what}: {result}");
        }
    }
}

/// Stores into a shared map and has it written back, without end.
const STORING: &str = "import mmap, os, sys
shared = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0)
print('storing', flush=True)
while True:
    shared[:4] = b'EVIL'
    try:
        shared.flush()
    except OSError:
        pass
";

#[test]
fn who_writes_without_end_holds_up_nobody() {
    needs_mount!("who_writes_without_end_holds_up_nobody");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Elsewhere::new(&[]);
    let mounted = Mounted::new(&["--layer", &layer(dir.path(), &content())]);
    assert_eq!(mounted.read("conf"), content());
    let point = mounted.dir.path().join("mnt");
    let remount = ["mount", "-i", "-o", "remount,bind,rw", point.to_str().unwrap()];
    succeeded(&run(&elsewhere.enter(), &remount));
    let words = elsewhere.enter();
    let mut storing = Command::new(&words[0])
        .args(&words[1..])
        .args(["/usr/bin/python3", "-c", STORING, point.join("conf").to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(storing.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "storing\n");
    // It goes on, whoever answers.
    for upgrades in 1..=3 {
        eventually("refused writes", || {
            mounted.status().reduced.iter().any(|line| line.contains("writable copy")).then_some(())
        });
        succeeded(&mounted.upgrade(None));
        let status = mounted.status();
        assert_eq!(status.taken_over, upgrades);
        let said = status.reduced.iter().any(|line| line.contains("writable copy"));
        assert!(said, "it is known after the upgrade too: {:?}", status.reduced);
        assert_eq!(mounted.read("own"), content());
    }
    storing.kill().unwrap();
    storing.wait().unwrap();
    eventually("the layer's content", || (mounted.read("conf") == content()).then_some(()));
}

/// The flags of the mount, as this thread sees it.
fn flags_here(point: &Path) -> MsFlags {
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap();
    let found = ffs::kernel::mountinfo::parse(&table).find(|entry| entry.point == point);
    found.unwrap().flags
}

#[test]
fn a_remount_that_cannot_be_undone_yet_is_said_and_undone_later() {
    needs_mount!("a_remount_that_cannot_be_undone_yet_is_said_and_undone_later");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(&["--layer", &layer(dir.path(), &content())]);
    let point = mounted.dir.path().join("mnt");
    // From then on opens are not asked for.
    assert_eq!(mounted.read("conf"), content());
    let writer = {
        let _stopped = mounted.stopped();
        let remount = ["mount", "-i", "-o", "remount,bind,rw", point.to_str().unwrap()];
        succeeded(&run(&[], &remount));
        let path = mounted.at("conf");
        in_time("an open", move || std::fs::File::options().write(true).open(path).unwrap())
    };
    let said = |what: &str| mounted.status().reduced.iter().any(|line| line.contains(what));
    eventually("the status", || said("cannot be made read-only again").then_some(()));
    assert!(!flags_here(&point).contains(MsFlags::MS_RDONLY));
    let error = std::io::Write::write(&mut &writer, b"EVIL").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
    assert_unchanged(&mounted, "conf");
    drop(writer);
    eventually("read-only again", || flags_here(&point).contains(MsFlags::MS_RDONLY).then_some(()));
    eventually("the status", || said("read-only again: 1 times").then_some(()));
    assert!(!said("cannot be made read-only again"));
}

#[test]
fn a_remount_here_is_undone() {
    needs_mount!("a_remount_here_is_undone");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(&["--noexec", "--layer", &layer(dir.path(), &content())]);
    let point = mounted.dir.path().join("mnt");
    let flags = || flags_here(&point);
    let at_first = flags();
    let remount =
        ["mount", "-i", "-o", "remount,bind,rw,noexec,nosuid,nodev,noatime", point.to_str().unwrap()];
    for time in 1..=2 {
        succeeded(&run(&[], &remount));
        eventually("read-only again", || (flags() == at_first).then_some(()));
        let said = format!("read-only again: {time} times");
        eventually("the status", || {
            mounted.status().reduced.iter().any(|line| line.contains(&said)).then_some(())
        });
        if time == 1 {
            assert_eq!(attack(&[], &point, "conf")["store"], "EROFS");
        }
    }
    // Also where another program has taken over, and for copies that were made here.
    succeeded(&mounted.upgrade(None));
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let none = None::<&str>;
    mount(Some(&point), &copy, none, MsFlags::MS_BIND, none).unwrap();
    mount(none, &copy, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND, none).unwrap();
    eventually("read-only again", || {
        let table = std::fs::read("/proc/thread-self/mountinfo").unwrap();
        let read_only = ffs::kernel::mountinfo::parse(&table)
            .filter(|entry| entry.point == copy || entry.point == point)
            .all(|entry| entry.is_read_only());
        read_only.then_some(())
    });
    nix::mount::umount(&copy).unwrap();
    assert_unchanged(&mounted, "conf");
    let undone = mounted.events().into_iter().filter_map(|event| match event.step {
        Step::MadeReadOnly { point } => Some(point),
        _ => None,
    });
    let [point, copy] = [point, copy].map(|path| path.display().to_string());
    assert_eq!(undone.collect::<Vec<_>>(), [point.clone(), point, copy]);
}

/// As on a kernel before Linux 5.2, or in a container whose filter does not know the calls: `fsopen(2)` fails.
#[test]
fn without_a_private_mount_the_file_system_itself_is_read_only() {
    needs_mount!("without_a_private_mount_the_file_system_itself_is_read_only");
    shared_place();
    let dir = tempfile::tempdir().unwrap();
    let before = Elsewhere::new(&[]);
    let program = dir.path().join("old-kernel");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/old_kernel.py");
    let text = format!("#!/bin/sh\nexec /usr/bin/python3 {script} {} \"$@\"\n", env!("CARGO_BIN_EXE_ffs"));
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mounted = Mounted::of(&program, &["--layer", &layer(dir.path(), &content())], "");
    let_in(&mounted);
    let status = mounted.status();
    assert!(!status.abilities.iter().any(|able| able == "inotify"), "{:?}", status.abilities);
    let said = status.reduced.iter().find(|line| line.contains("inotify")).unwrap();
    assert!(said.contains("Linux 5.4") && said.contains("itself is read-only"), "{said}");
    assert_eq!(mounted.read("conf"), content());
    let attacked = |round: u32| {
        for place in [vec![], before.enter(), [before.enter(), powerless()].concat(), as_owner()] {
            let name = if place.ends_with(&as_owner()) { "own" } else { "conf" };
            for (what, result) in attack(&place, &mounted.at(""), name) {
                assert_eq!(result, "EROFS", "{what} by {place:?} in round {round}");
            }
            assert_unchanged(&mounted, name);
        }
    };
    attacked(0);
    // The flag of the file system holds for a mount that is remounted, too.
    let point = mounted.dir.path().join("mnt");
    let remount = ["mount", "-i", "-o", "remount,bind,rw", point.to_str().unwrap()];
    succeeded(&run(&before.enter(), &remount));
    attacked(1);
    succeeded(&mounted.upgrade(None));
    attacked(2);
}

#[test]
fn noexec_and_nosymfollow_are_obeyed() {
    needs_mount!("noexec_and_nosymfollow_are_obeyed");
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(dir.path(), &[("x", "1")]);
    std::fs::copy("/bin/true", layer.join("prog")).unwrap();
    std::os::unix::fs::symlink("x", layer.join("link")).unwrap();
    let spec = format!("a=dir:{}", layer.display());
    let denied = |mounted: &Mounted| {
        let runs = Command::new(mounted.at("prog")).status().err().and_then(|error| error.raw_os_error());
        let follows = std::fs::read(mounted.at("link")).err().and_then(|error| error.raw_os_error());
        (runs, follows)
    };
    let (access, loops) = (Some(nix::libc::EACCES), Some(nix::libc::ELOOP));
    assert_eq!(denied(&Mounted::new(&["--layer", &spec])), (None, None));
    assert_eq!(denied(&Mounted::new(&["--noexec", "--layer", &spec])), (access, None));
    if common::linux() < (5, 14) {
        return eprintln!("SKIPPED the half about nosymfollow: needs Linux 5.14");
    }
    assert_eq!(denied(&Mounted::new(&["--nosymfollow", "--layer", &spec])), (None, loops));
    let both = Mounted::with_config(&["--layer", &spec], "noexec = true\nnosymfollow = true\n");
    assert_eq!(denied(&both), (access, loops));
    succeeded(&both.upgrade(None));
    assert_eq!(denied(&both), (access, loops));
}
