//! A directory tree as an ext4 file system in a file, made by `mke2fs -d`: without root and without a mount.
//!
//! No journal: the machines mount it read-only, and a journal would only be bytes to read past.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Error, run};

const BLOCK: u64 = 4096;

/// What a tree takes on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    inodes: u64,
    blocks: u64,
}

impl Usage {
    /// `find` looks, not we: parts of a tree that was built without root belong to subordinate ids.
    fn of(name: &str, tree: &Path) -> Result<Self, Error> {
        let mut find = as_root("find");
        find.arg(tree).args(["-printf", "%y %s %f\\0"]).stdin(Stdio::null());
        let output = run(&mut find, "find", "findutils", name)?;
        if output.status.success() {
            Ok(Self::listed(&String::from_utf8_lossy(&output.stdout)))
        } else {
            let source = std::io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            Err(Error::Io { action: "list", path: tree.to_owned(), source })
        }
    }

    /// From lines `TYPE SIZE NAME`, each ended by a zero byte.
    fn listed(lines: &str) -> Self {
        let mut usage = Self::default();
        let mut names = 0;
        for line in lines.split_terminator('\0') {
            let mut fields = line.splitn(3, ' ');
            let (kind, size, name) = (fields.next(), fields.next(), fields.next().unwrap_or_default());
            let size: u64 = size.and_then(|size| size.parse().ok()).unwrap_or_default();
            usage.inodes += 1;
            usage.blocks += match kind {
                Some("d") => 1,
                // Short targets of symbolic links are kept in the inode.
                Some("l") if size < 60 => 0,
                Some("f" | "l") => size.div_ceil(BLOCK),
                _ => 0,
            };
            // An entry of a directory takes eight bytes and its name, padded to four.
            names += 8 + (name.len() as u64).next_multiple_of(4);
        }
        // Directories are split in halves when they grow, so count their entries double.
        usage.blocks += 2 * names.div_ceil(BLOCK);
        usage
    }

    /// Inodes and bytes of a file system that holds it, with a little to spare.
    fn layout(self) -> (u64, u64) {
        let inodes = self.inodes + self.inodes / 50 + 64;
        // 256 bytes an inode; 2 % for extents, bitmaps and group descriptors; 4 MiB so that small ones work.
        let bytes = self.blocks * BLOCK + inodes * 256 + self.blocks * BLOCK / 50 + (4 << 20);
        (inodes, bytes.next_multiple_of(1 << 20))
    }
}

/// Writes the tree to `out` as a file system whose UUID is taken from `identity` (hexadecimal, at least 32 digits).
///
/// Owners in the file system are the tree's owners as root of a user namespace sees them: the caller's own files are root's.
pub(super) fn write(name: &str, tree: &Path, out: &Path, identity: &str) -> Result<(), Error> {
    let (inodes, bytes) = Usage::of(name, tree)?.layout();
    let at = |range: std::ops::Range<usize>| identity.get(range).unwrap_or("0");
    let uuid = [at(0..8), at(8..12), at(12..16), at(16..20), at(20..32)].join("-");
    // By its name alone: in a path mke2fs takes what follows a `?` for options.
    let (folder, file) = (out.parent().unwrap_or(Path::new("/")), out.file_name().unwrap_or_default());
    let mut mke2fs = as_root("mke2fs");
    mke2fs
        .current_dir(folder)
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^has_journal,^resize_inode",
            "-m",
            "0",
            "-b",
            "4096",
            "-I",
            "256",
        ])
        .args(["-E", &format!("hash_seed={uuid},nodiscard"), "-U", &uuid])
        .args(["-N", &inodes.to_string(), "-d"])
        .arg(tree)
        .arg(file)
        .arg(format!("{}k", bytes / 1024))
        .stdin(Stdio::null());
    let output = run(&mut mke2fs, "mke2fs", "e2fsprogs", name)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(Error::Program {
            program: "mke2fs",
            image: name.to_owned(),
            status: output.status.to_string(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// Makes a small file system and forgets it: whether that works here, user namespace and subordinate ids included.
pub(crate) fn rehearse() -> Result<(), Error> {
    let folder = std::env::temp_dir();
    let scratch = tempfile::tempdir().map_err(Error::io("create a folder in", &folder))?;
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).map_err(Error::io("create", &tree))?;
    write("doctor", &tree, &scratch.path().join("image"), &"0".repeat(32))
}

/// A command that sees itself as root, in a user namespace where the caller is not.
///
/// There the caller is root, and the caller's subordinate ids (`/etc/subuid`) are everybody else, where there are any.
pub(super) fn as_root(program: &str) -> Command {
    if nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user"]);
    if has_subordinate_ids() {
        command.arg("--map-auto");
    }
    command.arg("--").arg(program);
    command
}

/// Whether the caller may use ids of others in a user namespace: a whole Debian tree needs them, a seed does not.
pub(crate) fn has_subordinate_ids() -> bool {
    let uid = nix::unistd::getuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let listed = |path: &str| {
        String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).lines().any(|line| {
            let owner = line.split(':').next().unwrap_or_default();
            owner == uid.to_string() || Some(owner) == user.as_deref()
        })
    };
    listed("/etc/subuid") && listed("/etc/subgid")
}

/// Removes a tree of which parts may belong to subordinate ids; nothing is no error.
pub(super) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let mut rm = as_root("rm");
            match run(rm.arg("-rf").arg("--").arg(path).stdin(Stdio::null()), "rm", "coreutils", "an image") {
                Ok(output) if output.status.success() => Ok(()),
                Err(late @ Error::Late { .. }) => Err(late),
                _ => Err(Error::Io { action: "remove", path: path.to_owned(), source: error }),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("remove", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_counted_in_whole_blocks() {
        let listing = "d 4096 tree\0d 4096 d\0f 1 one\0f 4097 two\0l 3 link\0l 60 long link\0c 0 null\0";
        assert_eq!(Usage::listed(listing), Usage { inodes: 7, blocks: 2 + 1 + 2 + 1 + 2 });
    }

    #[test]
    fn a_tree_is_listed() {
        let tree = tempfile::tempdir().unwrap();
        fs::write(tree.path().join("a name\nof two lines"), [0; 5000]).unwrap();
        assert_eq!(Usage::of("t", tree.path()).unwrap(), Usage { inodes: 2, blocks: 1 + 2 + 2 });
        assert!(Usage::of("t", &tree.path().join("none")).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_layout_always_holds_more_than_it_is_for(inodes in 1_u64..1_000_000, blocks in 0_u64..10_000_000) {
            let (room, bytes) = Usage { inodes, blocks }.layout();
            proptest::prop_assert!(room > inodes);
            proptest::prop_assert!(bytes > blocks * BLOCK + room * 256);
        }
    }
}
