//! Mount points, configurations and sockets of any path, and numbers of any size, through the program.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{OnDrop, succeeded, tree};

fn ffs(folder: &Path, words: &[&OsStr]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ffs"));
    command.current_dir(folder).args(words).stdin(Stdio::null()).output().unwrap()
}

/// What some program reads as its own, what is no text, and what is too long for a socket's name.
fn names() -> Vec<OsString> {
    let mut names: Vec<OsString> =
        ["a b", "a,b=c:d", "100%h $HOME", "it's \"so\"", "two\nlines", "-dash", "tab\t\\040#?*"]
            .map(OsString::from)
            .into();
    // Two that are the same as text.
    names.extend([&b"\xff"[..], b"\xfe"].map(|name| OsString::from_vec(name.to_vec())));
    names.push("x".repeat(200).into());
    names
}

#[test]
fn a_mount_of_any_path_is_asked_and_ended_by_it() {
    needs_mount!("a_mount_of_any_path_is_asked_and_ended_by_it");
    let home = tempfile::tempdir().unwrap();
    tree(&home.path().join("layer"), &[("x", "1")]);
    let config = format!("[[layer]]\nname = 'l'\nsource = 'dir:{}/layer'\n", home.path().display());
    // All at once: each has a control socket of its own.
    let points: Vec<PathBuf> = names().iter().map(|name| home.path().join(name).join("m")).collect();
    let all = points.clone();
    let _ended = OnDrop(move || {
        for point in &all {
            let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
        }
    });
    for point in &points {
        let folder = point.parent().unwrap();
        std::fs::create_dir_all(point).unwrap();
        std::fs::write(folder.join("c.toml"), &config).unwrap();
        // Everything relative, as somebody in that folder types it.
        let words = ["mount", "m", "--config", "c.toml", "--event-log", "log"].map(OsStr::new);
        succeeded(&ffs(folder, &words));
        assert_eq!(std::fs::read_to_string(point.join("x")).unwrap(), "1", "{point:?}");
        assert!(folder.join("log").exists(), "{point:?}");
    }
    let mut processes = std::collections::BTreeSet::new();
    for point in &points {
        let output = ffs(home.path(), &["status".as_ref(), "--json".as_ref(), point.as_os_str()]);
        succeeded(&output);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["mount"], point.to_string_lossy().into_owned());
        assert!(processes.insert(status["pid"].as_u64().unwrap()), "{point:?} is answered for by another");
    }
    for point in &points {
        succeeded(&ffs(home.path(), &["umount".as_ref(), point.as_os_str()]));
        assert!(!point.join("x").exists(), "{point:?}");
    }
}

#[test]
fn a_socket_that_is_too_long_is_refused_with_the_limit() {
    let home = tempfile::tempdir().unwrap();
    let long = "x".repeat(150);
    for verb in ["mount", "status"] {
        let mut words = vec![verb, "/", "--socket", &long];
        words.extend((verb == "mount").then_some("--foreground"));
        let words: Vec<&OsStr> = words.into_iter().map(OsStr::new).collect();
        let output = ffs(home.path(), &words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("at most 107 bytes, and this has 150"), "{said}");
    }
}

#[test]
fn a_number_out_of_its_range_is_refused_with_the_range() {
    let arguments = [
        (&["mount", "/", "--foreground", "--keep-removed"][..], "from 0 to 604800000"),
        (&["mount", "/", "--foreground", "--max-memory"], "from 1 to 9223372036854775807"),
        (&["rollback", "/", "--to"], "from 0 to 18446744073709551615"),
        (&["layer", "add", "/", "a=dir:/", "--if-generation"], "from 0 to 18446744073709551615"),
    ];
    for (words, range) in arguments {
        let mut values = vec!["NaN", "inf", "-1", "1e300", "99999999999999999999"];
        values.extend(range.contains("from 1 ").then_some("0"));
        for value in values {
            let words: Vec<&OsStr> = words.iter().copied().chain([value]).map(OsStr::new).collect();
            let output = ffs(Path::new("/"), &words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{words:?}: {said}");
            let name = words[words.len() - 2].to_str().unwrap();
            assert!(said.contains(name) && said.contains(range), "{words:?}: {said}");
        }
    }
    for priority in ["NaN", "inf", "-1", "1e300", "99999999999999999999", "65536"] {
        let layer = format!("a=dir:/,priority={priority}");
        let output = ffs(Path::new("/"), &["layer", "add", "/", &layer].map(OsStr::new));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{layer}: {said}");
        assert!(said.contains("priority from 0 to 65535"), "{layer}: {said}");
    }
}
