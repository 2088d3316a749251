//! The `newc` archive that the kernel unpacks as its first file system, written in process.
//!
//! Nobody has to be root to write a root-owned file into an archive, and the same tree gives the same bytes:
//! entries are in order of path, all times are 0, inode numbers count up.
//! Format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeMap;

/// One entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory {
        /// Permission bits.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// What is in it.
        content: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to.
        target: String,
    },
    /// A character device.
    Character {
        /// Permission bits.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// An archive in memory: entries by path, without a leading slash.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// Puts an entry in, and the directories above it where they are missing.
    pub fn add(&mut self, path: &str, entry: Entry) {
        let path = path.trim_matches('/');
        for (slash, _) in path.match_indices('/') {
            self.entries.entry(path[..slash].to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// The archive's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // A parent sorts before what is in it, since its path is a prefix of theirs.
        for (number, (path, entry)) in (1_u32..).zip(&self.entries) {
            let (mode, content, device) = match entry {
                Entry::Directory { mode } => (0o040_000 | mode, &[][..], (0, 0)),
                Entry::File { mode, content } => (0o100_000 | mode, content.as_slice(), (0, 0)),
                Entry::Symlink { target } => (0o120_777, target.as_bytes(), (0, 0)),
                Entry::Character { mode, major, minor } => (0o020_000 | mode, &[][..], (*major, *minor)),
            };
            write_entry(&mut out, number, path, mode, content, device);
        }
        write_entry(&mut out, 0, "TRAILER!!!", 0, &[], (0, 0));
        out
    }
}

fn write_entry(out: &mut Vec<u8>, number: u32, path: &str, mode: u32, content: &[u8], device: (u32, u32)) {
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let fields = [
        number,
        mode,
        0, // owner
        0, // group
        links,
        0, // time
        // An initramfs beyond 4 GiB does not exist.
        u32::try_from(content.len()).unwrap_or(u32::MAX),
        0, // major and minor number of the device that the file is on
        0,
        device.0,
        device.1,
        u32::try_from(path.len() + 1).unwrap_or(u32::MAX),
        0, // check sum, only in the `crc` format
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

/// Header with name, and content, each end on a multiple of four bytes.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.add("usr/bin/init", Entry::File { mode: 0o755, content: b"#!/bin/sh\n".to_vec() });
        archive.add("bin", Entry::Symlink { target: "usr/bin".into() });
        archive.add("dev/console", Entry::Character { mode: 0o600, major: 5, minor: 1 });
        archive.add("empty", Entry::File { mode: 0o644, content: Vec::new() });
        archive
    }

    #[test]
    fn parents_are_made_and_the_bytes_are_the_same_every_time() {
        let bytes = sample().to_bytes();
        assert_eq!(bytes, sample().to_bytes());
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.starts_with(b"070701"));
    }

    #[test]
    fn cpio_reads_it() {
        if Command::new("cpio").arg("--version").output().is_err() {
            eprintln!("SKIPPED image::cpio::cpio_reads_it: cpio is not installed");
            return;
        }
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&sample().to_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        let line =
            |end: &str| listing.lines().find(|line| line.ends_with(end)).unwrap_or_default().to_owned();
        assert!(line("usr/bin/init").starts_with("-rwxr-xr-x   1 0        0              10"), "{listing}");
        assert!(line("bin -> usr/bin").starts_with("lrwxrwxrwx"), "{listing}");
        assert!(line("dev/console").starts_with("crw-------"), "{listing}");
        assert!(line(" usr").starts_with("drwxr-xr-x   2"), "{listing}");
    }
}
