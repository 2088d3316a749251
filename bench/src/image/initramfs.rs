//! The first file system of every machine: a shell, the modules that its disks need, and one script.
//!
//! Debian's own initramfs is made for any machine and takes seconds under emulation; this one is made for
//! machines that we start ourselves. busybox and the modules come out of the image, with the order
//! in which modules depend on each other as the image's `depmod` wrote it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use super::cpio::{Archive, Entry};

/// The script that runs first.
pub const INIT: &str = include_str!("init.sh");

/// What the script calls.
const APPLETS: [&str; 11] =
    ["sh", "cat", "mkdir", "modprobe", "mount", "poweroff", "sleep", "switch_root", "tr", "usleep", "["];

/// Makes the initramfs for the tree of an image.
///
/// # Errors
/// [`Error::Incomplete`] when the tree has no busybox, not exactly one kernel, or no such module.
pub fn make(image: &str, tree: &Path, modules: &[String]) -> Result<Vec<u8>, Error> {
    let incomplete = |message: String| Error::Incomplete { image: image.to_owned(), message };
    let mut archive = Archive::default();

    let busybox = tree.join("usr/bin/busybox");
    let content = fs::read(&busybox).map_err(|error| {
        incomplete(format!("no static busybox ({error}); the recipe needs the package busybox-static"))
    })?;
    archive.add("bin/busybox", Entry::File { mode: 0o755, content });
    for applet in APPLETS {
        archive.add(&format!("bin/{applet}"), Entry::Symlink { target: "busybox".into() });
    }

    let version = kernel(tree).map_err(incomplete)?;
    let folder = tree.join("usr/lib/modules").join(&version);
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).map_err(Error::io("read", &path))
    };
    let (dependencies, built_in) = (read("modules.dep")?, read("modules.builtin")?);
    let closure = Closure::of(modules, &dependencies, &built_in).map_err(incomplete)?;
    let inside = format!("lib/modules/{version}");
    for path in &closure.files {
        let content = fs::read(folder.join(path)).map_err(Error::io("read", &folder.join(path)))?;
        archive.add(&format!("{inside}/{path}"), Entry::File { mode: 0o644, content });
    }
    let mut text = |path: String, content: String| {
        archive.add(&path, Entry::File { mode: 0o644, content: content.into_bytes() });
    };
    text(format!("{inside}/modules.dep"), closure.dependencies);
    text("etc/modules".into(), closure.load.join("\n"));

    archive.add("init", Entry::File { mode: 0o755, content: INIT.as_bytes().to_vec() });
    // The kernel opens it for the script's output before anything is mounted.
    archive.add("dev/console", Entry::Character { mode: 0o600, major: 5, minor: 1 });
    for folder in ["proc", "sys", "dev", "lower/root", "lower/seed", "upper", "new"] {
        archive.add(folder, Entry::Directory { mode: 0o755 });
    }
    Ok(archive.to_bytes())
}

/// The version of the one kernel in a tree.
pub(super) fn kernel(tree: &Path) -> Result<String, String> {
    let mut found: Vec<String> = fs::read_dir(tree.join("usr/lib/modules"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    match (found.pop(), found.is_empty()) {
        (Some(version), true) => Ok(version),
        (None, _) => {
            Err("it has no kernel; the recipe needs a package such as linux-image-cloud-amd64".into())
        }
        (Some(version), false) => {
            Err(format!("it has more than one kernel: {version}, {}", found.join(", ")))
        }
    }
}

/// Modules with everything that they depend on.
#[derive(Debug, PartialEq, Eq)]
struct Closure {
    /// The modules that were asked for and are no part of the kernel itself.
    load: Vec<String>,
    /// All files, relative to the folder of modules.
    files: BTreeSet<PathBufText>,
    /// The lines of `modules.dep` that speak of them.
    dependencies: String,
}

/// A path as `modules.dep` writes it.
type PathBufText = String;

impl Closure {
    /// `modules.dep` has lines `FILE: FILE FILE …`, where the second part is complete: all that the first needs, not
    /// only what it needs directly.
    fn of(wanted: &[String], dependencies: &str, built_in: &str) -> Result<Self, String> {
        let lines: BTreeMap<String, &str> = dependencies
            .lines()
            .filter_map(|line| Some((module_name(line.split_once(':')?.0), line)))
            .collect();
        let built_in: BTreeSet<String> = built_in.lines().map(module_name).collect();
        let mut closure = Self { load: Vec::new(), files: BTreeSet::new(), dependencies: String::new() };
        for name in wanted {
            let name = name.replace('-', "_");
            let Some(line) = lines.get(&name) else {
                if built_in.contains(&name) {
                    continue;
                }
                return Err(format!(
                    "its kernel has no module `{name}`, which the recipe wants in the initramfs"
                ));
            };
            closure.files.extend(line.replace(':', " ").split_whitespace().map(str::to_owned));
            closure.load.push(name);
        }
        for file in &closure.files {
            if let Some(line) = lines.get(&module_name(file)) {
                closure.dependencies.push_str(line);
                closure.dependencies.push('\n');
            }
        }
        Ok(closure)
    }
}

/// `kernel/drivers/block/virtio_blk.ko.xz` is `virtio_blk`; `-` and `_` are the same in names of modules.
fn module_name(path: &str) -> String {
    let file = PathBuf::from(path);
    let file = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\n\
        kernel/lib/libcrc32c.ko.xz:\n\
        kernel/drivers/block/virtio_blk.ko.xz:\n";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n";

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn dependencies_come_along_and_built_in_modules_are_left_out() {
        let closure = Closure::of(&names(&["virtio-blk", "ext4", "erofs"]), DEP, BUILTIN).unwrap();
        assert_eq!(closure.load, ["virtio_blk", "erofs"]);
        assert_eq!(
            closure.files.iter().map(String::as_str).collect::<Vec<_>>(),
            [
                "kernel/drivers/block/virtio_blk.ko.xz",
                "kernel/fs/erofs/erofs.ko.xz",
                "kernel/lib/libcrc32c.ko.xz"
            ]
        );
        assert_eq!(closure.dependencies.lines().count(), 3);
    }

    #[test]
    fn a_module_that_the_kernel_lacks_is_an_error() {
        let error = Closure::of(&names(&["zfs"]), DEP, BUILTIN).unwrap_err();
        assert!(error.contains("`zfs`"), "{error}");
    }

    #[test]
    fn a_tree_without_busybox_or_kernel_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        let error = make("guest", tree.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("busybox-static"), "{error}");
        fs::create_dir_all(tree.path().join("usr/bin")).unwrap();
        fs::write(tree.path().join("usr/bin/busybox"), "x").unwrap();
        let error = make("guest", tree.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("no kernel"), "{error}");
    }
}
