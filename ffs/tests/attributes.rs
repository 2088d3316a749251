//! What extended attributes tell of a mount that nobody can write.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::ffi::CString;
use std::path::Path;

use common::{Mounted, tree};

fn get(path: &Path, name: &str) -> Option<String> {
    let value = ffs::sys::xattr(path, &CString::new(name).unwrap())?;
    Some(String::from_utf8(value).unwrap())
}

#[test]
fn they_tell_of_layers_and_paths() {
    needs_mount!("they_tell_of_layers_and_paths");
    let dir = tempfile::tempdir().unwrap();
    let a = tree(&dir.path().join("a"), &[("x", "a"), ("d/y", "")]);
    let b = tree(&dir.path().join("b"), &[("x", "b"), ("d/z", "")]);
    let (a, b) = (a.display().to_string(), b.display().to_string());
    let mounted = Mounted::new(&[
        "--layer",
        &format!("a=dir:{a},priority=2"),
        "--layer",
        &format!("b=dir:{b},priority=1"),
    ]);
    assert_eq!(mounted.names(""), ["d", "x"], "hidden from listings");
    for control in [".ffs", ".mergerfs"] {
        let control = mounted.at(control);
        let layers = format!("a=dir:{a}:b=dir:{b}");
        assert_eq!(get(&control, "user.ffs.layers").as_ref(), Some(&layers));
        assert_eq!(get(&control, "user.mergerfs.branches"), Some(layers));
        assert_eq!(get(&control, "user.ffs.generation").as_deref(), Some("0"));
        assert_eq!(get(&control, "user.ffs.cmd.reload"), None);
    }
    let of = |path: &str, name: &str| get(&mounted.at(path), &format!("user.ffs.{name}"));
    assert_eq!(of("x", "layer").as_deref(), Some("a"));
    assert_eq!(of("x", "fullpath"), Some(format!("{a}/x")));
    assert_eq!(of("x", "allpaths"), Some(format!("{a}/x\0{b}/x")));
    assert_eq!(of("d/z", "basepath"), Some(b.clone()));
    assert_eq!(of("d/z", "relpath").as_deref(), Some("/d/z"));
    assert_eq!(of("d", "layer").as_deref(), Some("a:b"));
    mounted.layer("remove", "a");
    assert_eq!(of("x", "fullpath"), Some(format!("{b}/x")));
    assert_eq!(of("x", "generation").as_deref(), Some("1"));
    assert_eq!(of("x", "unheard"), None);
    // The kernel refuses to write attributes on a read-only mount before anybody is asked.
    let control = mounted.at(".ffs");
    let name = CString::new("user.ffs.cmd.reload").unwrap();
    let error = ffs::sys::set_xattr(&control, &name, b"").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
}
