//! Drives that come, change and go, by the kernel's own events; loop devices stand for drives.

mod common;

use std::fs::File;
use std::io::Read;

use common::{Drive, Mounted, eventually, image};
use ffs::events::Step;

#[test]
fn a_disc_is_followed_through_eject_and_insert() {
    needs_mount!("a_disc_is_followed_through_eject_and_insert");
    let Some(mut drive) = Drive::with(&image("infrastructure", 9, 1, &[("site", "remote")])) else {
        eprintln!("SKIPPED a_disc_is_followed_through_eject_and_insert: no loop device");
        return;
    };
    let mounted = Mounted::with_config(
        &["--auto", "--auto-device", drive.name()],
        "[[hook]]\nname = \"note\"\npath = \"si*\"\nrun = [\"sh\", \"-c\", \"echo $FFS_CHANGED; exit 3\"]\n",
    );
    assert_eq!(mounted.read("site"), "remote");
    let layer = &mounted.status().layers[0];
    assert_eq!((layer.name.as_str(), layer.priority, layer.generation), ("infrastructure", 9, Some(1)));
    let mut held = File::open(mounted.at("site")).unwrap();

    drive.eject();
    // Between detach and attach there is no hole.
    assert_eq!(mounted.read("site"), "remote");
    drive.insert(&image("infrastructure", 9, 2, &[("site", "local")]));
    eventually("the new content", || (mounted.read("site") == "local").then_some(()));
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "remote");

    // In order, each stamped: reading, verified, visible, and the hook after that. The kernel may tell
    // of the disc more than once, and then it is read again, before or after the hook.
    let events = eventually("the hook", || {
        let events = mounted.events();
        let done = |event: &ffs::events::Event| matches!(event.step, Step::Hook { generation: 2, .. });
        events.iter().any(done).then_some(events)
    });
    let mut end = events.len();
    for pick in [
        |step: &Step| matches!(step, Step::Hook { generation: 2, .. }),
        |step: &Step| matches!(step, Step::Visible { layer_generation: Some(2), .. }),
        |step: &Step| matches!(step, Step::Verified { generation: Some(2), .. }),
        |step: &Step| matches!(step, Step::Read { .. }),
    ] {
        let before = events[..end].iter().rposition(|event| pick(&event.step));
        end = before.unwrap_or_else(|| panic!("nothing of the kind before {end}: {events:?}"));
    }
    assert!(events.windows(2).all(|pair| pair[0].mono_ns <= pair[1].mono_ns));
    eventually("the outcome", || {
        let hooks = mounted.status().hooks;
        hooks.first().is_some_and(|hook| hook.result == "exit 3").then_some(())
    });

    // An older generation never comes back.
    drive.eject();
    drive.insert(&image("infrastructure", 9, 1, &[("site", "remote")]));
    eventually("the refusal", || {
        let refused = |event: &ffs::events::Event| matches!(&event.step, Step::Refused { reason, .. } if reason.contains("older"));
        mounted.events().iter().any(refused).then_some(())
    });
    assert_eq!(mounted.read("site"), "local");
}

#[test]
fn another_device_takes_the_place_of_one_that_went() {
    needs_mount!("another_device_takes_the_place_of_one_that_went");
    let Some(first) = Drive::with(&image("infrastructure", 9, 1, &[("site", "remote"), ("old", "")])) else {
        eprintln!("SKIPPED another_device_takes_the_place_of_one_that_went: no loop device");
        return;
    };
    let Some(mut second) = Drive::with(&image("service", 1, 1, &[("site", "service"), ("key", "k")])) else {
        eprintln!("SKIPPED another_device_takes_the_place_of_one_that_went: one loop device only");
        return;
    };
    let mounted = Mounted::new(&["--auto", "--auto-device", first.name(), "--auto-device", second.name()]);
    assert_eq!(mounted.names(""), ["key", "old", "site"]);
    assert_eq!(mounted.read("site"), "remote");
    first.eject();
    second.eject();
    second.insert(&image("infrastructure", 9, 2, &[("site", "local")]));
    eventually("the new content", || (mounted.read("site") == "local").then_some(()));
    // The service's class stays although its drive now holds another.
    assert_eq!(mounted.names(""), ["key", "site"]);
    assert_eq!(mounted.status().layers.len(), 2);
}

#[test]
fn a_device_layer_of_a_plain_image_and_a_disc_that_is_no_image() {
    needs_mount!("a_device_layer_of_a_plain_image_and_a_disc_that_is_no_image");
    let Some(mut drive) = Drive::with(&vec![0; 1 << 20]) else {
        eprintln!("SKIPPED a_device_layer_of_a_plain_image_and_a_disc_that_is_no_image: no loop device");
        return;
    };
    let spec = format!("disc=device:{}", drive.device.display());
    let mounted = Mounted::new(&["--layer", &spec]);
    assert!(mounted.names("").is_empty());
    eventually("the refusal", || {
        let refused =
            |event: &ffs::events::Event| matches!(event.step, Step::Refused { .. } | Step::NotReady { .. });
        mounted.events().iter().any(refused).then_some(())
    });
    drive.eject();
    drive.insert(&image("service", 1, 1, &[("key", "k")]));
    eventually("the content", || mounted.at("key").exists().then_some(()));
    assert_eq!(mounted.read("key"), "k");
    // Nothing holds the device.
    eventually("the device is closed", || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", mounted.pid())).unwrap();
        let held = fds.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == drive.device));
        (!held).then_some(())
    });
}
