//! Mount points, layers, configurations and sockets of any path, and numbers of any size, through the program.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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
fn a_layer_of_any_path_is_named_shown_and_handed_over() {
    needs_mount!("a_layer_of_any_path_is_named_shown_and_handed_over");
    let home = tempfile::tempdir().unwrap();
    let at = |name: &[u8]| home.path().join(OsStr::from_bytes(name));
    // Two that are the same as text, and one that looks like an escaped one.
    for (name, text) in [(&b"\xff"[..], "ff"), (b"\xfe,y", "fe"), (b"%ff", "percent")] {
        tree(&at(name), &[("x", text), (text, "")]);
    }
    let layer = |name: &[u8], of: &[u8]| {
        let path = at(of).into_os_string().into_vec();
        OsString::from_vec([name, b"=dir:", &path].concat())
    };
    let point = home.path().join("m");
    std::fs::create_dir(&point).unwrap();
    let ended = point.clone();
    let _ended = OnDrop(move || {
        let _ = nix::mount::umount2(&ended, nix::mount::MntFlags::MNT_DETACH);
    });
    let socket = home.path().join("socket");
    let run = |words: &[&OsStr]| {
        let words = [words, &["--socket".as_ref(), socket.as_os_str()]].concat();
        let output = ffs(home.path(), &words);
        succeeded(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    let on = point.as_os_str();
    let word = OsStr::new;
    let read = || std::fs::read_to_string(point.join("x")).unwrap();
    // As mount(8) has a line of fstab, `\` and `,` escaped.
    let helper = home.path().join("mount.ffs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ffs"), &helper).unwrap();
    let mut options = b"ro,layer=".to_vec();
    options.extend(layer(b"a", b"\xff").into_vec());
    options.extend(b",socket=");
    options.extend(socket.as_os_str().as_bytes());
    let mount =
        Command::new(&helper).args([word("spec"), on, word("-o")]).arg(OsStr::from_bytes(&options)).output();
    succeeded(&mount.unwrap());
    assert_eq!(read(), "ff");
    run(&[word("umount"), on]);

    run(&[word("mount"), word("--layer"), &layer(b"a", b"\xff"), on]);
    assert_eq!(read(), "ff");
    // Followed where it is.
    std::fs::write(at(b"\xff").join("x"), "changed").unwrap();
    common::eventually("the change", || (read() == "changed").then_some(()));
    run(&[word("layer"), word("replace"), on, &layer(b"a", b"\xfe,y")]);
    assert_eq!(read(), "fe");
    run(&[word("rollback"), on]);
    assert_eq!(read(), "changed");
    run(&[word("layer"), word("add"), on, &layer(b"b", b"%ff")]);
    assert_eq!(read(), "percent");
    run(&[word("upgrade"), on]);
    assert_eq!(read(), "percent");
    let shown = run(&[word("status"), on]);
    let origin = format!("dir%:{}/%ff", home.path().display());
    assert!(
        shown.contains(&origin) && shown.contains(&format!("dir:{}/%ff", home.path().display())),
        "{shown}"
    );
    // What the status says can be said.
    let script =
        [b"remove b\nreplace ", layer(b"a", b"\xfe,y").as_bytes(), b"\nadd c=", origin.as_bytes()].concat();
    let file = at(b"script\xff");
    std::fs::write(&file, script).unwrap();
    run(&[word("layer"), word("apply"), on, file.as_os_str()]);
    assert_eq!(read(), "changed");
    assert!(point.join("fe").exists() && !point.join("percent").exists());
    std::fs::write(at(b"\xff").join("x"), "after the upgrade").unwrap();
    run(&[word("reload"), on]);
    assert_eq!(read(), "after the upgrade");
    run(&[word("umount"), on]);
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

#[test]
fn what_makes_no_sense_together_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none.toml");
    std::fs::write(&none, "").unwrap();
    let none = none.to_str().unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["mount", "--config", none], "no mount point"),
        (
            &["mount", "/nonexistent", "--layer", "a=dir:/", "--layer", "a=dir:/etc"],
            "two layers are named `a`",
        ),
        (&["mount", "/nonexistent", "--layer", "=dir:/"], "layer name"),
        (&["mount", "/nonexistent", "--layer", "a/b=dir:/"], "layer name"),
        (&["layer", "add", "/nonexistent", "a:b=dir:/"], "layer name"),
    ];
    for (words, reason) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_ffs")).args(words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{words:?}: {said}");
        assert!(said.contains(reason), "{words:?}: {said}");
    }
}
