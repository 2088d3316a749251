//! Images as other programs make them, or leave them: shown as Linux's isofs shows them, or refused with the reason.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Mounted, image, succeeded};
use ffs::layer::image::{ImageError, layer, layer_within};
use ffs::memory::{Limit, TooMuch};
use ffs::sealed::Sealed;
use ffs::trust::Trust;

/// A text that compresses well and has more than one block of 32 KiB.
fn long() -> String {
    (0..20_000).map(|line| format!("line {line}\n")).collect()
}

/// Files, compressed by mkzftree, in an image of genisoimage's; `None`, with the line that says so, where one
/// of them is missing.
fn compressed(test: &str, dir: &Path, files: &[(&str, &str)]) -> Option<PathBuf> {
    let (plain, small, iso) = (dir.join("plain"), dir.join("small"), dir.join("z.iso"));
    for (name, text) in files {
        let path = plain.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::hard_link(plain.join(files[0].0), plain.join("again")).unwrap();
    let run = |program: &str, args: &[&str], paths: &[&Path]| {
        let Ok(run) = Command::new(program).args(args).args(paths).output() else {
            eprintln!("SKIPPED {test}: no {program}");
            return None;
        };
        succeeded(&run);
        Some(())
    };
    run("mkzftree", &[], &[&plain, &small])?;
    run("genisoimage", &["-quiet", "-R", "-z", "-o"], &[&iso, &small])?;
    Some(iso)
}

fn sealed(path: &Path) -> Sealed {
    Sealed::read_from(&mut fs::File::open(path).unwrap(), u64::MAX).unwrap()
}

fn refused(output: &Output, reason: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(reason), "{error}");
}

#[test]
fn compressed_files_are_shown_as_they_were() {
    needs_mount!("compressed_files_are_shown_as_they_were");
    let dir = tempfile::tempdir().unwrap();
    let (long, zeros) = (long(), "\0".repeat(200_000));
    let files = [("long", &*long), ("zeros", &zeros), ("short", "as it is"), ("empty", "")];
    let Some(iso) = compressed("compressed_files_are_shown_as_they_were", dir.path(), &files) else { return };
    assert!(fs::metadata(&iso).unwrap().len() < 1 << 20);
    let mounted = Mounted::new(&["--layer", &format!("z=iso:{}", iso.display())]);
    let check = || {
        for (name, text) in files {
            assert_eq!(mounted.read(name), text, "{name}");
            assert_eq!(fs::metadata(mounted.at(name)).unwrap().len(), text.len() as u64);
        }
        assert_eq!(mounted.read("again"), long);
        assert_eq!(&mounted.read("long")[70_000..], &long[70_000..]);
    };
    check();
    // What is decompressed counts, and is handed over.
    let in_use = mounted.status().memory.in_use;
    assert_eq!(in_use, fs::metadata(&iso).unwrap().len() + (long.len() + zeros.len()) as u64);
    succeeded(&mounted.upgrade(None));
    check();
    assert_eq!(mounted.status().memory.in_use, in_use);
}

#[test]
fn what_would_be_too_large_is_not_decompressed() {
    let dir = tempfile::tempdir().unwrap();
    let zeros = "\0".repeat(2 << 20);
    let test = "what_would_be_too_large_is_not_decompressed";
    let Some(iso) = compressed(test, dir.path(), &[("zeros", &zeros)]) else { return };
    let len = fs::metadata(&iso).unwrap().len();
    let made = |limit| layer_within(sealed(&iso), Some("z"), None, "test", &Trust::without_keys(), &limit);
    assert!(made(Limit { image: len + (2 << 20), total: u64::MAX }).is_ok());
    let error = made(Limit { image: len + (2 << 20) - 1, total: u64::MAX }).unwrap_err();
    assert!(matches!(error, ImageError::TooMuch(TooMuch::Image { .. })), "{error}");
    let error = made(Limit { image: u64::MAX, total: len + (2 << 20) - 1 }).unwrap_err();
    assert!(error.to_string().contains("raise `max_memory`"), "{error}");
    // A bomb: the size that the image says.
    let mut bytes = fs::read(&iso).unwrap();
    let said = [(2_u32 << 20).to_le_bytes(), (2_u32 << 20).to_be_bytes()].concat();
    while let Some(at) = bytes.windows(8).position(|window| window == said) {
        bytes[at..at + 4].fill(0xff);
    }
    fs::write(&iso, &bytes).unwrap();
    let error = made(Limit { image: 1 << 30, total: u64::MAX }).unwrap_err().to_string();
    assert!(error.contains("4294967295 when they are decompressed"), "{error}");
}

#[test]
fn no_manifest_vouches_for_a_compressed_file() {
    const TEST: &str = "no_manifest_vouches_for_a_compressed_file";
    let dir = tempfile::tempdir().unwrap();
    let long = long();
    let data = ctx_format::ContextData {
        class: "infrastructure".parse().unwrap(),
        priority: ctx_format::Priority(9),
        generation: 1,
        instance_id: "i".parse().unwrap(),
        files: [("long".parse().unwrap(), ctx_format::File::private(long.as_str()))].into(),
    };
    let manifest = String::from_utf8(data.manifest().to_json()).unwrap();
    let files = [("data/long", &*long), (".ctx/manifest.json", &*manifest)];
    let Some(iso) = compressed(TEST, dir.path(), &files) else { return };
    let error = layer(sealed(&iso), None, None, "test", &Trust::without_keys()).unwrap_err().to_string();
    assert!(error.contains("`/data/long` of the context image is a compressed file"), "{error}");
}

#[test]
fn a_damaged_compressed_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let long = long();
    let test = "a_damaged_compressed_file_is_refused";
    let Some(iso) = compressed(test, dir.path(), &[("long", &long)]) else { return };
    let mut bytes = fs::read(&iso).unwrap();
    // The eight bytes that every file of mkzftree's begins with, the size, and the size of the header and a block.
    let magic = [0x37, 0xe4, 0x53, 0x96, 0xc9, 0xdb, 0xd6, 0x07];
    let at = bytes.windows(8).position(|window| window == magic).unwrap();
    let table = &bytes[at + 16..at + 24];
    let first = u32::from_le_bytes(table[..4].try_into().unwrap()) as usize;
    bytes[at + first + 40] ^= 0xff;
    fs::write(&iso, &bytes).unwrap();
    let error = layer(sealed(&iso), Some("z"), None, "test", &Trust::without_keys()).unwrap_err();
    let expected = "is damaged: block 0 cannot be decompressed";
    assert!(error.to_string().contains(expected), "{error}");
}

/// Writes what the volume descriptor says of its size, in blocks.
fn declare(image: &mut [u8], blocks: u32) {
    let at = 16 * 2048 + 80;
    image[at..at + 4].copy_from_slice(&blocks.to_le_bytes());
    image[at + 4..at + 8].copy_from_slice(&blocks.to_be_bytes());
}

#[test]
fn a_descriptor_that_says_less_than_there_is_is_no_obstacle() {
    needs_mount!("a_descriptor_that_says_less_than_there_is_is_no_obstacle");
    let dir = tempfile::tempdir().unwrap();
    let iso = dir.path().join("x.iso");
    let text = "x".repeat(1 << 20);
    let mut bytes = image("infrastructure", 9, 1, &[("site", "remote"), ("large", &text)]);
    let whole = bytes.len() as u64;
    for blocks in [0, 19, 200] {
        declare(&mut bytes, blocks);
        fs::write(&iso, &bytes).unwrap();
        let mounted = Mounted::new(&["--layer", &format!("x=iso:{}", iso.display())]);
        assert_eq!((mounted.read("site"), mounted.read("large")), ("remote".to_owned(), text.clone()));
        assert_eq!(mounted.status().memory.in_use, whole);
    }
    // What is not in use behind the volume's end is not read.
    bytes.resize(bytes.len() + (4 << 20), 0);
    declare(&mut bytes, u32::try_from(whole / 2048).unwrap());
    fs::write(&iso, &bytes).unwrap();
    let mounted = Mounted::new(&["--layer", &format!("x=iso:{}", iso.display())]);
    assert_eq!(mounted.status().memory.in_use, whole);
}

#[test]
fn a_truncated_image_is_refused_as_that() {
    needs_mount!("a_truncated_image_is_refused_as_that");
    let dir = tempfile::tempdir().unwrap();
    let iso = dir.path().join("x.iso");
    let mounted = Mounted::new(&["--layer", &format!("x=dir:{}", dir.path().display())]);
    let point = mounted.at("").display().to_string();
    let bytes = image("infrastructure", 9, 1, &[("large", &"x".repeat(1 << 20))]);
    for len in [1 << 20, 18 * 2048] {
        fs::write(&iso, &bytes[..len]).unwrap();
        let output = mounted.ffs(&["layer", "add", &point, &format!("y=iso:{}", iso.display())]);
        refused(&output, "the image is truncated, copy it again");
    }
}
