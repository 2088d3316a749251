//! The seed: a small file system with what one machine alone has, laid over its image at boot.
//!
//! Names, addresses, keys, and the project's own programs come this way. Since the overlay merges directories, a seed
//! names only what it adds or replaces.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use ctx_io::durable;
use sha2::{Digest as _, Sha256};

use super::{Error, ext4};

/// What one machine has beyond its image. Paths are absolute, as the machine sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Regular files.
    pub files: BTreeMap<PathBuf, File>,
    /// Symbolic links, with what they point to.
    pub symlinks: BTreeMap<PathBuf, PathBuf>,
    /// Directories that need other permission bits than 0755, or that shall be there although they are empty.
    pub directories: BTreeMap<PathBuf, u32>,
}

/// A file of a seed; root owns it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
}

/// Where a file's bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// They are here.
    Bytes(Vec<u8>),
    /// A file of the machine that the bench runs on.
    Copy(PathBuf),
}

/// What an image has as symbolic links (Debian's merged `/usr`): a directory of the same name in the overlay would hide them.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Directories whose permission bits programs insist on.
const PRIVATE: [(&str, u32); 4] =
    [("/root", 0o700), ("/root/.ssh", 0o700), ("/tmp", 0o1777), ("/var/tmp", 0o1777)];

impl Seed {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file with permission bits 0644.
    #[must_use]
    pub fn text(mut self, path: impl Into<PathBuf>, content: impl Into<String>) -> Self {
        self.put(path, 0o644, Content::Bytes(content.into().into_bytes()));
        self
    }

    /// Adds a file that only root may read: 0600.
    #[must_use]
    pub fn secret(mut self, path: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        self.put(path, 0o600, Content::Bytes(content.into()));
        self
    }

    /// Adds a program that stands on this machine: 0755.
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>, source: impl Into<PathBuf>) -> Self {
        self.put(path, 0o755, Content::Copy(source.into()));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(mut self, path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        self.symlinks.insert(path.into(), target.into());
        self
    }

    /// Adds a file; a later one of the same path replaces it.
    pub fn put(&mut self, path: impl Into<PathBuf>, mode: u32, content: Content) {
        self.files.insert(path.into(), File { content, mode });
    }
}

/// Makes the file system in the file `out`, written beside and renamed.
///
/// # Errors
/// [`Error::Seed`] for a path that cannot be laid over an image, [`Error::Io`], [`Error::Missing`] and
/// [`Error::Program`] when the file system cannot be made.
pub fn write(seed: &Seed, out: &Path) -> Result<(), Error> {
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let scratch = tempfile::Builder::new()
        .prefix(".seed-")
        .tempdir_in(folder)
        .map_err(Error::io("create a folder in", folder))?;
    let (tree, beside) = (scratch.path().join("tree"), scratch.path().join("seed.ext4"));
    fs::create_dir(&tree).map_err(Error::io("create", &tree))?;

    let mut directories: BTreeMap<PathBuf, u32> = BTreeMap::from([(PathBuf::from("/"), 0o755)]);
    for (path, mode) in &seed.directories {
        let path = place(path)?;
        note_parents(&path, &mut directories);
        directories.insert(path, *mode);
    }
    let mut identity = Sha256::new();
    let mut inside = |path: &Path| -> Result<PathBuf, Error> {
        let path = place(path)?;
        note_parents(&path, &mut directories);
        identity.update(path.as_os_str().as_encoded_bytes());
        let real = tree.join(path.strip_prefix("/").unwrap_or(&path));
        if let Some(parent) = real.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        Ok(real)
    };
    for (path, file) in &seed.files {
        let real = inside(path)?;
        match &file.content {
            Content::Bytes(bytes) => fs::write(&real, bytes).map_err(Error::io("write", &real))?,
            Content::Copy(source) => fs::copy(source, &real).map(drop).map_err(Error::io("copy", source))?,
        }
        set_mode(&real, file.mode)?;
    }
    for (path, target) in &seed.symlinks {
        let real = inside(path)?;
        symlink(target, &real).map_err(Error::io("create", &real))?;
    }
    // Deepest first: a directory that may not be written can still be given to what is in it.
    for (path, mode) in directories.iter().rev() {
        let real = tree.join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&real).map_err(Error::io("create", &real))?;
        set_mode(&real, *mode)?;
    }

    ext4::write("seed", &tree, &beside, &super::recipe::hex(&identity.finalize()))?;
    fs::File::open(&beside).and_then(|file| durable::sync(&file)).map_err(Error::io("write", &beside))?;
    // Out of the folder of its own.
    fs::rename(&beside, out).and_then(|()| durable::sync_dir(folder)).map_err(Error::io("rename to", out))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::io("set the mode of", path))
}

/// Every directory above `path` that is not known yet, with the bits that it must have.
fn note_parents(path: &Path, directories: &mut BTreeMap<PathBuf, u32>) {
    for parent in path.ancestors().skip(1) {
        let mode =
            PRIVATE.iter().find(|(private, _)| Path::new(private) == parent).map_or(0o755, |(_, mode)| *mode);
        directories.entry(parent.to_owned()).or_insert(mode);
    }
}

/// Where a path really lies in an image: `/lib/x` is `/usr/lib/x`.
fn place(path: &Path) -> Result<PathBuf, Error> {
    let refuse = |message: &str| Err(Error::Seed { path: path.to_owned(), message: message.to_owned() });
    let mut parts = path.components();
    if parts.next() != Some(Component::RootDir) {
        return refuse("give an absolute path");
    }
    let names: Vec<_> = parts.collect();
    if names.is_empty() || names.iter().any(|part| !matches!(part, Component::Normal(_))) {
        return refuse("give the path of a file, without `..`");
    }
    let first = Path::new(names[0].as_os_str());
    if MERGED.iter().any(|merged| Path::new(merged) == first) {
        let inside = Path::new("/usr").join(first);
        return Ok(names[1..].iter().fold(inside, |path, part| path.join(part)));
    }
    for hidden in ["/proc", "/sys", "/dev", "/run", "/var/run", "/var/lock"] {
        if path.starts_with(hidden) {
            return refuse(&format!("{hidden} is another file system or a link in a running machine"));
        }
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What `debugfs` says about a path in a file system.
    fn stat(image: &Path, path: &str) -> String {
        let output =
            Command::new("debugfs").arg("-R").arg(format!("stat {path}")).arg(image).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn cat(image: &Path, path: &str) -> Vec<u8> {
        Command::new("debugfs").arg("-R").arg(format!("cat {path}")).arg(image).output().unwrap().stdout
    }

    #[test]
    fn a_seed_is_root_s_and_holds_what_was_put_in() {
        if Command::new("debugfs").arg("-V").output().is_err()
            || Command::new("mke2fs").arg("-V").output().is_err()
        {
            eprintln!(
                "SKIPPED image::seed::a_seed_is_root_s_and_holds_what_was_put_in: e2fsprogs is not installed"
            );
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let big = folder.path().join("big");
        fs::write(&big, vec![7_u8; 3 << 20]).unwrap();
        let seed = Seed::new()
            .text("/etc/hostname", "h1\n")
            .secret("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA")
            .program("/lib/bench/big", &big)
            .symlink(
                "/etc/systemd/system/multi-user.target.wants/x.service",
                "/usr/lib/systemd/system/x.service",
            );
        let out = folder.path().join("seed.ext4");
        write(&seed, &out).unwrap();
        write(&seed, &out).unwrap();

        assert_eq!(cat(&out, "/etc/hostname"), b"h1\n");
        assert_eq!(cat(&out, "/usr/lib/bench/big"), fs::read(&big).unwrap());
        let keys = stat(&out, "/root/.ssh/authorized_keys");
        assert!(keys.contains("Mode:  0600") && keys.contains("User:     0   Group:     0"), "{keys}");
        assert!(stat(&out, "/root/.ssh").contains("Mode:  0700"));
        assert!(stat(&out, "/").contains("Mode:  0755"));
        assert!(stat(&out, "/lib").is_empty(), "a directory /lib would hide the image's link");
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            2,
            "nothing but the seed and the source remains"
        );
    }

    #[test]
    fn paths_that_would_vanish_are_refused() {
        for path in ["etc/x", "/", "/etc/../x", "/run/x", "/var/run/x", "/dev/x"] {
            assert!(matches!(place(Path::new(path)), Err(Error::Seed { .. })), "{path}");
        }
        assert_eq!(place(Path::new("/sbin/init")).unwrap(), Path::new("/usr/sbin/init"));
        assert_eq!(place(Path::new("/library")).unwrap(), Path::new("/library"));
    }
}
