//! Which images a mount with keys takes, and what the host is told of it.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;

use common::{Drive, Mounted, eventually, signed_image};
use ctx_format::ack::{Ack, Verdict};
use ctx_format::sign::SecretKey;
use ffs::events::Step;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed(&[seed; 32])
}

/// Keys 1, for infrastructure alone, and 2, for service alone.
fn config(dir: &Path) -> String {
    let line = |seed, class: &str| key(seed).public().for_classes([class.parse().unwrap()]).to_string();
    std::fs::write(dir.join("site.pub"), format!("{}\n", line(1, "infrastructure"))).unwrap();
    std::fs::write(dir.join("owner.pub"), format!("{}\n", line(2, "service"))).unwrap();
    format!("trust = [\"{dir}/*.pub\"]\ntrust_state = \"{dir}/state/accepted.json\"\n", dir = dir.display())
}

fn infrastructure(generation: u64, site: &str, seed: Option<u8>) -> Vec<u8> {
    signed_image("infrastructure", 9, generation, &[("site", site)], seed.map(key).as_ref())
}

#[test]
fn a_drive_shows_only_what_a_key_for_its_class_vouches_for() {
    needs_mount!("a_drive_shows_only_what_a_key_for_its_class_vouches_for");
    let Some(mut drive) = Drive::with(&infrastructure(5, "remote", Some(1))) else {
        eprintln!("SKIPPED a_drive_shows_only_what_a_key_for_its_class_vouches_for: no loop device");
        return;
    };
    let keys = tempfile::tempdir().unwrap();
    let config = config(keys.path());
    let arguments = ["--auto", "--auto-device", drive.name()].map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mounted = Mounted::with_config(&arguments, &config);
    assert_eq!(mounted.read("site"), "remote");

    let mut altered = infrastructure(7, "local-", Some(1));
    let at = altered.windows(6).position(|bytes| bytes == b"local-").unwrap();
    altered[at] = b'L';
    let bad = [
        (infrastructure(6, "local", None), "not signed"),
        (infrastructure(6, "local", Some(3)), "not trusted here"),
        (infrastructure(6, "local", Some(2)), "not for class `infrastructure`"),
        (altered, "not what the manifest says"),
        (infrastructure(4, "remote", Some(1)), "older than 5"),
        (infrastructure(5, "other", Some(1)), "another content"),
    ];
    for (image, why) in bad {
        drive.eject();
        drive.insert(&image);
        let said = |text: &str| text.contains(why);
        eventually(why, || {
            let refused = |event: &ffs::events::Event| matches!(&event.step, Step::Refused { reason, .. } if said(reason));
            mounted.events().iter().any(refused).then_some(())
        });
        assert_eq!(mounted.read("site"), "remote", "{why}");
        eventually(why, || mounted.status().devices.iter().any(|device| said(&device.state)).then_some(()));
        let ack = eventually("the acknowledgement", || {
            mounted.acks().into_iter().find(|ack| ack.why.as_ref().is_some_and(|text| said(text.as_str())))
        });
        assert_eq!(ack.result, Verdict::Refused);
        assert!(ack.generation.is_some() && ack.class.is_some(), "{ack:?}");
    }

    drive.eject();
    drive.insert(&infrastructure(8, "local", Some(1)));
    eventually("the new content", || (mounted.read("site") == "local").then_some(()));
    let done = |ack: &Ack| ack.generation == Some(8) && ack.hooks.is_some();
    let acks = eventually("applied", || Some(mounted.acks()).filter(|acks| acks.iter().any(done)));
    assert_eq!(acks.len(), 1);
    assert_eq!(acks[0].result, Verdict::Applied);

    // Another process, the same memory: what it has seen does not come back.
    drop(mounted);
    drive.eject();
    drive.insert(&infrastructure(6, "remote", Some(1)));
    let mounted = Mounted::with_config(&arguments, &config);
    eventually("the refusal", || {
        let states = mounted.status().devices;
        states.iter().any(|device| device.state.contains("older than 8")).then_some(())
    });
    assert!(mounted.names("").is_empty());
}

#[test]
fn image_files_are_held_to_the_same() {
    needs_mount!("image_files_are_held_to_the_same");
    let keys = tempfile::tempdir().unwrap();
    let iso = keys.path().join("a.iso");
    let spec = format!("a=iso:{}", iso.display());
    std::fs::write(&iso, infrastructure(1, "one", Some(1))).unwrap();
    // A state that cannot be kept is said.
    let config = config(keys.path()).replace("/state/", "/site.pub/");
    let mounted = Mounted::with_config(&["--layer", &spec], &config);
    assert_eq!(mounted.read("site"), "one");
    assert!(mounted.status().reduced.iter().any(|text| text.contains("only until ffs ends")));
    std::fs::write(&iso, infrastructure(2, "two", None)).unwrap();
    let output = mounted.ffs(&["layer", "replace", mounted.at("").to_str().unwrap(), &spec]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("not signed"), "{output:?}");
    assert_eq!(mounted.read("site"), "one");
    std::fs::write(&iso, infrastructure(2, "two", Some(1))).unwrap();
    mounted.layer("replace", &spec);
    assert_eq!(mounted.read("site"), "two");
}

/// A pseudo-terminal stands for the port: what the kernel passes on is the same.
#[test]
fn a_host_that_asks_is_told_everything_again() {
    needs_mount!("a_host_that_asks_is_told_everything_again");
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut raw = nix::sys::termios::tcgetattr(&pty.slave).unwrap();
    nix::sys::termios::cfmakeraw(&mut raw);
    nix::sys::termios::tcsetattr(&pty.slave, nix::sys::termios::SetArg::TCSANOW, &raw).unwrap();
    let port =
        std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pty.slave))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let iso = dir.path().join("a.iso");
    std::fs::write(&iso, infrastructure(1, "one", None)).unwrap();
    let config = format!(
        "ack = \"virtio-serial:{}\"\n[[hook]]\nname = \"note\"\npath = \"site\"\nrun = [\"sh\", \"-c\", \"exit 3\"]\n",
        port.display()
    );
    let mounted = Mounted::with_config(&[], &config);
    mounted.layer("add", &format!("infrastructure=iso:{},priority=3", iso.display()));
    let mut host = BufReader::new(File::from(pty.master.as_fd().try_clone_to_owned().unwrap()));
    let (to, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while host.read_until(b'\n', &mut line).is_ok() && to.send(std::mem::take(&mut line)).is_ok() {}
    });
    let next = || Ack::parse(&lines.recv_timeout(common::DEADLINE).unwrap()).unwrap();
    let mut ack = next();
    while ack.hooks.is_none() {
        ack = next();
    }
    assert_eq!((ack.generation, ack.result), (Some(1), Verdict::Applied));
    assert_eq!(ack.hooks.as_ref().unwrap()[0].result.as_str(), "exit 3");
    let ask = || File::from(pty.master.try_clone().unwrap()).write_all(ctx_format::ack::QUESTION).unwrap();
    ask();
    assert_eq!(next(), ack);
    // Another program knows what this one did, and has the port, which no two can open; it says nothing
    // twice unless it is asked.
    let output = mounted.upgrade(None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ask();
    assert_eq!(next(), ack);
    std::fs::write(&iso, infrastructure(2, "two", None)).unwrap();
    mounted.layer("replace", &format!("infrastructure=iso:{},priority=3", iso.display()));
    assert_eq!(next().generation, Some(2));
}

/// A file with an image of generation `n` that says `vN`, and a configuration that shows that of 1.
fn two_generations(dir: &Path) -> String {
    for generation in [1, 2] {
        let image = infrastructure(generation, &format!("v{generation}"), Some(1));
        std::fs::write(dir.join(format!("g{generation}.iso")), image).unwrap();
    }
    let layer = format!("[[layer]]\nname = \"infra\"\nsource = \"iso:{}/g1.iso\"\n", dir.display());
    config(dir) + &layer
}

#[test]
fn a_change_that_is_refused_leaves_the_ledger_alone() {
    needs_mount!("a_change_that_is_refused_leaves_the_ledger_alone");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    let mut mounted = Mounted::with_config(&[], &config);
    let ledger = dir.path().join("state/accepted.json");
    let before = std::fs::read_to_string(&ledger).unwrap();
    let script = format!("replace infra=iso:{}/g2.iso\nadd x=dir:/nonexistent\n", dir.path().display());
    std::fs::write(dir.path().join("script"), script).unwrap();
    let point = mounted.at("").display().to_string();
    let output = mounted.ffs(&["layer", "apply", &point, dir.path().join("script").to_str().unwrap()]);
    assert!(!output.status.success());
    assert_eq!(mounted.read("site"), "v1");
    assert_eq!(std::fs::read_to_string(&ledger).unwrap(), before);
    common::succeeded(&mounted.ffs(&["reload", &point]));
    assert_eq!(mounted.read("site"), "v1");
    assert!(!mounted.events().iter().any(|event| matches!(event.step, Step::Refused { .. })));
    mounted.terminate();
    // The next start takes what was shown.
    let again = Mounted::with_config(&[], &config);
    assert_eq!(again.read("site"), "v1");
}

#[test]
fn a_rollback_survives_a_restart() {
    needs_mount!("a_rollback_survives_a_restart");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    let mut mounted = Mounted::with_config(&[], &config);
    mounted.layer("replace", &format!("infra=iso:{}/g2.iso", dir.path().display()));
    assert_eq!(mounted.read("site"), "v2");
    common::succeeded(&mounted.ffs(&["rollback", mounted.at("").to_str().unwrap()]));
    assert_eq!(mounted.read("site"), "v1");
    mounted.terminate();
    let again = Mounted::with_config(&[], &config);
    assert_eq!(again.read("site"), "v1");
}

#[test]
fn a_rollback_shows_nothing_that_a_removed_key_vouched_for() {
    needs_mount!("a_rollback_shows_nothing_that_a_removed_key_vouched_for");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    let mounted = Mounted::with_config(&[], &config);
    let point = mounted.at("").display().to_string();
    let iso = dir.path().join("g3.iso");
    let next = SecretKey::from_seed(&[4; 32]);
    std::fs::write(&iso, infrastructure(3, "v3", Some(4))).unwrap();
    std::fs::write(dir.path().join("next.pub"), next.public().to_string()).unwrap();
    common::succeeded(&mounted.ffs(&["reload", &point]));
    mounted.layer("replace", &format!("infra=iso:{}", iso.display()));
    let ledger = std::fs::read_to_string(dir.path().join("state/accepted.json")).unwrap();
    std::fs::remove_file(dir.path().join("site.pub")).unwrap();
    common::succeeded(&mounted.ffs(&["reload", &point]));
    let output = mounted.ffs(&["rollback", &point]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("which is not trusted here"), "{said}");
    assert_eq!(mounted.read("site"), "v3");
    assert_eq!(std::fs::read_to_string(dir.path().join("state/accepted.json")).unwrap(), ledger);
    assert!(mounted.status().rollback_to.is_some(), "what was kept stays");
}

#[test]
fn a_mount_that_fails_leaves_the_ledger_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    std::fs::write(dir.path().join("ffs.toml"), config).unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let mut ffs = std::process::Command::new(env!("CARGO_BIN_EXE_ffs"));
    ffs.args(["mount", "--foreground", "--config"])
        .arg(dir.path().join("ffs.toml"))
        .arg(dir.path().join("file"));
    assert!(!ffs.output().unwrap().status.success());
    assert!(!dir.path().join("state").exists());
}

#[test]
fn two_images_of_a_class_are_not_shown_together() {
    needs_mount!("two_images_of_a_class_are_not_shown_together");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    let mut mounted = Mounted::with_config(&[], &config);
    let point = mounted.at("").display().to_string();
    let output =
        mounted.ffs(&["layer", "add", &point, &format!("extra=iso:{}/g2.iso", dir.path().display())]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && said.contains("layers `extra` (generation 2) and `infra` (generation 1) are both of class")
            && said.contains("replace or remove `infra` first"),
        "{said}"
    );
    assert_eq!(mounted.status().layers.len(), 1);
    mounted.terminate();
    // The ledger has stayed at what is shown.
    let again = Mounted::with_config(&[], &config);
    assert_eq!(again.read("site"), "v1");
}

#[test]
fn two_mounts_with_one_ledger_do_not_set_it_back() {
    needs_mount!("two_mounts_with_one_ledger_do_not_set_it_back");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    let (one, other) = (Mounted::with_config(&[], &config), Mounted::with_config(&[], &config));
    one.layer("replace", &format!("infra=iso:{}/g2.iso", dir.path().display()));
    let point = other.at("").display().to_string();
    let back = format!("infra=iso:{}/g1.iso", dir.path().display());
    let output = other.ffs(&["layer", "replace", &point, &back]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("older than 2, which was accepted"), "{said}");
}

/// A file with an image of class `service`.
fn service(path: &Path, generation: u64, text: &str) {
    let image = signed_image("service", 8, generation, &[("port", text)], Some(&key(2)));
    std::fs::write(path, image).unwrap();
}

#[test]
fn a_rollback_is_not_undone_by_another_mount() {
    needs_mount!("a_rollback_is_not_undone_by_another_mount");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    service(&dir.path().join("s1.iso"), 1, "80");
    service(&dir.path().join("s2.iso"), 2, "81");
    let mut one = Mounted::with_config(&[], &config);
    one.layer("replace", &format!("infra=iso:{}/g2.iso", dir.path().display()));
    // Mounted while the state says 2.
    let of_service = config.replace("infra", "s").replace("g1.iso", "s1.iso");
    let other = Mounted::with_config(&[], &of_service);
    common::succeeded(&one.ffs(&["rollback", one.at("").to_str().unwrap()]));
    other.layer("replace", &format!("s=iso:{}/s2.iso", dir.path().display()));
    one.terminate();
    let again = Mounted::with_config(&[], &config);
    assert_eq!(again.read("site"), "v1");
    // Nor has that one undone the other's.
    let output = again.ffs(&[
        "layer",
        "add",
        again.at("").to_str().unwrap(),
        &format!("s=iso:{}/s1.iso", dir.path().display()),
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("generation 1 of class `service` is older than 2, which was accepted"), "{said}");
}

#[test]
fn a_rollback_whose_state_cannot_be_written_is_written_later() {
    needs_mount!("a_rollback_whose_state_cannot_be_written_is_written_later");
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    service(&dir.path().join("s1.iso"), 1, "80");
    let mut mounted = Mounted::with_config(&[], &config);
    mounted.layer("replace", &format!("infra=iso:{}/g2.iso", dir.path().display()));
    let (state, aside) = (dir.path().join("state"), dir.path().join("aside"));
    std::fs::rename(&state, &aside).unwrap();
    std::fs::write(&state, "").unwrap();
    common::succeeded(&mounted.ffs(&["rollback", mounted.at("").to_str().unwrap()]));
    assert!(mounted.status().reduced.iter().any(|text| text.contains("only until ffs ends")));
    std::fs::remove_file(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    mounted.layer("add", &format!("s=iso:{}/s1.iso", dir.path().display()));
    assert!(mounted.status().reduced.is_empty());
    mounted.terminate();
    let again = Mounted::with_config(&[], &config);
    assert_eq!(again.read("site"), "v1");
}

#[test]
fn a_drive_whose_class_another_layer_shows_is_refused_for_that() {
    needs_mount!("a_drive_whose_class_another_layer_shows_is_refused_for_that");
    let Some(drive) = Drive::with(&infrastructure(3, "v3", Some(1))) else {
        eprintln!("SKIPPED a_drive_whose_class_another_layer_shows_is_refused_for_that: no loop device");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let config = two_generations(dir.path());
    let mounted = Mounted::with_config(&["--auto", "--auto-device", drive.name()], &config);
    let why = "layers `infrastructure` (generation 3) and `infra` (generation 1) are both of class `infrastructure`";
    eventually("the refusal", || {
        mounted.status().devices.iter().any(|device| device.state.contains(why)).then_some(())
    });
    eventually("the acknowledgement", || {
        let told = |ack: &Ack| ack.result == Verdict::Refused && ack.generation == Some(3);
        mounted.acks().iter().any(told).then_some(())
    });
    assert_eq!(mounted.read("site"), "v1");
    let point = mounted.at("").display().to_string();
    common::succeeded(&mounted.ffs(&["layer", "remove", &point, "infra"]));
    common::succeeded(&mounted.ffs(&["reload", &point]));
    eventually("the drive's image", || mounted.names("").contains(&"site".to_owned()).then_some(()));
    assert_eq!(mounted.read("site"), "v3");
}

/// The reasons that the event log has for images and directories that were refused, and of what.
fn refusals(mounted: &Mounted) -> Vec<(String, String)> {
    let refused = |event: ffs::events::Event| match event.step {
        Step::Refused { origin, reason } => Some((origin, reason)),
        _ => None,
    };
    mounted.events().into_iter().filter_map(refused).collect()
}

#[test]
fn an_image_that_is_in_conflict_at_a_reload_holds_up_nothing_else() {
    needs_mount!("an_image_that_is_in_conflict_at_a_reload_holds_up_nothing_else");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = config(dir.path());
    let put = |name: &str, generation: u64| {
        std::fs::write(at(name), infrastructure(generation, &format!("v{generation}"), Some(1))).unwrap();
    };
    put("z.iso", 1);
    service(&at("s.iso"), 1, "80");
    std::fs::create_dir(at("d")).unwrap();
    std::fs::write(at("d/f"), "old").unwrap();
    let layers = ["z=iso", "s=iso", "d=dir"].map(|layer| match layer {
        "d=dir" => format!("{layer}:{},watch=off", at("d").display()),
        _ => format!("{layer}:{}.iso", at(&layer[..1]).display()),
    });
    let arguments: Vec<&str> = layers.iter().flat_map(|layer| ["--layer", layer]).collect();
    let mounted = Mounted::with_config(&arguments, &config);
    let point = mounted.at("").display().to_string();
    let reload = |mounted: &Mounted| common::succeeded(&mounted.ffs(&["reload", &point]));

    // One comes to a class that another layer shows, whose image is a newer one, too.
    std::fs::write(at("d/f"), "new").unwrap();
    put("z.iso", 2);
    put("s.iso", 3);
    reload(&mounted);
    let shown = ["f", "site", "port"].map(|name| mounted.read(name));
    assert_eq!(shown, ["new", "v2", "80"]);
    let why = "layers `s` (generation 3) and `z` (generation 2) are both of class `infrastructure`";
    let refused = refusals(&mounted);
    let [(origin, reason)] = &refused[..] else { panic!("{refused:?}") };
    assert!(origin.starts_with("iso:") && origin.ends_with("/s.iso") && reason.contains(why), "{refused:?}");
    let said = |mounted: &Mounted| {
        mounted
            .status()
            .reduced
            .iter()
            .any(|text| text.contains("layer `s` shows what it did") && text.contains(why))
    };
    assert!(said(&mounted), "{:?}", mounted.status().reduced);
    // Another program says it, too.
    common::succeeded(&mounted.upgrade(None));
    assert!(said(&mounted), "{:?}", mounted.status().reduced);

    // One that is older than what was accepted, and one that cannot be read, hold up nothing either.
    put("z.iso", 1);
    std::fs::write(at("s.iso"), "none").unwrap();
    std::fs::write(at("d/f"), "newer").unwrap();
    reload(&mounted);
    assert_eq!(["f", "site", "port"].map(|name| mounted.read(name)), ["newer", "v2", "80"]);
    assert_eq!(mounted.status().reduced.len(), 2, "{:?}", mounted.status().reduced);

    // Two that change places are both shown: they are judged together.
    put("s.iso", 3);
    service(&at("z.iso"), 2, "81");
    reload(&mounted);
    assert_eq!(["site", "port"].map(|name| mounted.read(name)), ["v3", "81"]);
    assert!(mounted.status().reduced.is_empty(), "{:?}", mounted.status().reduced);
}
