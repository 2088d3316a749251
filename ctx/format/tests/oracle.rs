//! Independent readers see the tree that was written.
//!
//! `xorriso` (libisofs) and `isoinfo` (cdrkit) share no code with the writer or with each other.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use ctx_format::manifest::{Manifest, Mode};
use ctx_format::{ContextData, File, ImageOptions, Label, Priority, RelPath, write_iso};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn missing(test: &str, program: &str) -> bool {
    let absent = Command::new(program).arg("-version").output().is_err();
    if absent {
        eprintln!("SKIPPED {test}: {program} is not installed");
    }
    absent
}

/// Trees with long, non-ASCII, case-only-different and dotted names, deep directories, odd sizes.
fn trees() -> impl Strategy<Value = BTreeMap<RelPath, File>> {
    let component = prop_oneof![
        6 => "[a-zA-Z0-9._ -]{1,12}",
        1 => "[a-zäß€]{1,40}",
        1 => "[A-Za-z]{100,230}",
        1 => Just(".wh.gone".to_owned()),
    ];
    let path = proptest::collection::vec(component, 1..11).prop_map(|parts| parts.join("/"));
    let path = path.prop_filter_map("no path", |text| RelPath::new(text).ok());
    let content = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..64),
        1 => (0usize..3).prop_map(|n| vec![0xa5; 2047 + n]),
        1 => (1usize..200_000).prop_map(|n| vec![7; n]),
    ];
    let file = (content, prop_oneof![Just(0o600u16), Just(0o644), Just(0o755), Just(0o400)])
        .prop_map(|(content, mode)| File { content, mode: Mode::new(mode).unwrap() });
    proptest::collection::btree_map(path, file, 0..12)
}

fn data(files: BTreeMap<RelPath, File>) -> Option<ContextData> {
    let data = ContextData {
        class: "infrastructure".parse().unwrap(),
        priority: Priority(200),
        generation: 9,
        instance_id: "oracle".parse().unwrap(),
        files,
    };
    data.check_tree().is_ok().then_some(data)
}

/// Every regular file below `dir`, with its content and mode; checks the directories' mode.
fn read_tree(dir: &Path, prefix: &str, into: &mut BTreeMap<String, (Vec<u8>, u32)>) {
    for item in fs::read_dir(dir).unwrap() {
        let item = item.unwrap();
        let path = format!("{prefix}{}", item.file_name().into_string().unwrap());
        let meta = item.metadata().unwrap();
        if meta.is_dir() {
            assert_eq!(meta.mode() & 0o7777, 0o700, "{path}");
            read_tree(&item.path(), &format!("{path}/"), into);
        } else {
            into.insert(path, (fs::read(item.path()).unwrap(), meta.mode() & 0o7777));
        }
    }
}

#[test]
fn xorriso_sees_the_same_tree() {
    if missing("xorriso_sees_the_same_tree", "xorriso") {
        return;
    }
    let mut runner = TestRunner::new(Config { cases: 24, ..Config::default() });
    runner
        .run(&trees(), |files| {
            let Some(data) = data(files) else { return Ok(()) };
            let image = write_iso(&data, &ImageOptions { label: Label::Rectx }).unwrap();
            prop_assert_eq!(&image, &write_iso(&data, &ImageOptions { label: Label::Rectx }).unwrap());

            let dir = tempfile::tempdir().unwrap();
            let (iso, out) = (dir.path().join("x.iso"), dir.path().join("out"));
            fs::write(&iso, &image).unwrap();
            // The root's mode is not part of the format, so the two trees are taken apart.
            for tree in ["data", ".ctx"] {
                let run = Command::new("xorriso")
                    .args(["-osirrox", "on", "-indev"])
                    .arg(&iso)
                    .args(["-extract", &format!("/{tree}")])
                    .arg(out.join(tree))
                    .output()
                    .unwrap();
                prop_assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            }
            let mut seen = BTreeMap::new();
            read_tree(&out.join("data"), "", &mut seen);
            let written: BTreeMap<String, (Vec<u8>, u32)> = data
                .files
                .iter()
                .map(|(path, file)| (path.to_string(), (file.content.clone(), u32::from(file.mode.bits()))))
                .collect();
            prop_assert_eq!(&seen, &written);

            let manifest = Manifest::parse(&fs::read(out.join(".ctx/manifest.json")).unwrap()).unwrap();
            prop_assert_eq!(&manifest, &data.manifest());
            let contents: BTreeMap<String, Vec<u8>> =
                seen.into_iter().map(|(path, (content, _))| (path, content)).collect();
            manifest.verify(&contents).unwrap();
            Ok(())
        })
        .unwrap();
}

#[test]
fn isoinfo_sees_owner_label_and_joliet() {
    if missing("isoinfo_sees_owner_label_and_joliet", "isoinfo") {
        return;
    }
    let files = [
        ("endpoints/storage".parse().unwrap(), File::private("198.18.2.10\n")),
        (
            "run.sh".parse().unwrap(),
            File { content: b"#!/bin/sh\n".to_vec(), mode: Mode::new(0o755).unwrap() },
        ),
    ];
    let data = data(files.into()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let iso = dir.path().join("x.iso");
    fs::write(&iso, write_iso(&data, &ImageOptions { label: Label::Rectx }).unwrap()).unwrap();
    let isoinfo = |args: &[&str]| {
        let run = Command::new("isoinfo").args(args).arg("-i").arg(&iso).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    };
    let descriptor = isoinfo(&["-d"]);
    assert!(descriptor.contains("Volume id: RECTX"), "{descriptor}");
    assert!(descriptor.contains("Joliet with UCS level 3"), "{descriptor}");
    let listing = isoinfo(&["-R", "-l"]);
    for line in ["-rw-------   1    0    0", "-rwxr-xr-x   1    0    0", "drwx------"] {
        assert!(listing.contains(line), "{line} in {listing}");
    }
    assert_eq!(isoinfo(&["-J", "-x", "/data/endpoints/storage"]), "198.18.2.10\n");
    assert!(isoinfo(&["-R", "-f"]).contains("/.ctx/manifest.json"));
}
