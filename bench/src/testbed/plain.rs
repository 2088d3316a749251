//! Paths that any program can be handed as they are.
//!
//! A path is nearly any bytes, and each program reads some of them as its own: QEMU splits at commas,
//! ssh at spaces and expands `%`, union file systems split at colons, a socket's name has 108 bytes.
//! So programs never get a path of the user's. They get a [`PlainPath`], below the private folder of
//! [`super::namespace`]; files that lie elsewhere are linked there ([`Private::link`]). Nothing is quoted,
//! so nothing can be quoted wrongly.
//!
//! The private folder hides the folder that it is mounted on, in the bench's own mount namespace, and goes when
//! somebody outside removes that one. So it is mounted on an empty folder of the system, which nobody removes and in
//! which nobody has a file that the bench needs. Only where all of them are in use, a folder is made for it, which a
//! cleaner of temporary files or the end of the session may remove in the middle of a run.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::image::Cache;

/// Longest path of a private folder: with the names of the sockets in it, and what ssh appends to them while
/// it makes them, it stays below the 108 bytes of `sockaddr_un`.
const LONGEST_FOLDER: usize = 40;

/// An absolute path of letters, digits, `.`, `_`, `-` and `/`, in which no name begins with a dash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPath(String);

impl PlainPath {
    /// The path, when it is plain.
    pub fn new(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        let dash = text.split('/').any(|name| name.starts_with('-'));
        (path.is_absolute() && !dash && text.chars().all(plain)).then(|| Self(text.to_owned()))
    }

    /// A name below it, one of the bench's own: a constant, or the name of a machine.
    #[must_use]
    pub fn join(&self, name: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        debug_assert!(Self::new(&Path::new("/").join(name)).is_some(), "{name:?} is no plain name");
        Self(format!("{}/{name}", self.0))
    }

    /// As programs are given it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PlainPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for PlainPath {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// A folder of a plain path that is this run's alone.
#[derive(Debug)]
pub struct Private {
    folder: PlainPath,
    /// systemd-tmpfiles removes no folder that is locked. None for a folder of the system.
    _lock: Option<File>,
}

impl Private {
    /// A folder that is there already, which `lock` keeps.
    pub(super) const fn new(folder: PlainPath, lock: Option<File>) -> Self {
        Self { folder, _lock: lock }
    }

    /// The folder itself.
    pub const fn path(&self) -> &PlainPath {
        &self.folder
    }

    /// A file in it.
    pub fn join(&self, name: impl AsRef<str>) -> PlainPath {
        self.folder.join(name)
    }

    /// A link in it to a file anywhere: the plain path of that file. An older link of that name is replaced.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub fn link(&self, name: &str, to: &Path) -> std::io::Result<PlainPath> {
        let link = self.join(name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => symlink(std::path::absolute(to)?, &link)?,
        }
        Ok(link)
    }
}

/// Folders of every system (FHS) that are empty on most, best first: `AppArmor`'s profiles of FUSE programs know the first two.
const SYSTEM: [&str; 5] = ["/mnt", "/media", "/srv", "/var/opt", "/var/local"];

/// Whether it is one of the system, which is not to be locked.
pub(super) fn is_of_the_system(folder: &PlainPath) -> bool {
    SYSTEM.contains(&folder.as_str())
}

/// The first folder of the system that can be hidden from this command.
pub(super) fn system() -> Option<PlainPath> {
    let needed = needed();
    SYSTEM.iter().map(Path::new).find(|folder| can_be_hidden(folder, &needed)).and_then(PlainPath::new)
}

/// Nothing is in it, so nothing that is there already is hidden; and none of `needed` may come to be in it.
fn can_be_hidden(folder: &Path, needed: &[PathBuf]) -> bool {
    let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    empty && fs::canonicalize(folder).is_ok_and(|folder| !needed.iter().any(|path| lies_in(path, &folder)))
}

/// Paths that this command may make files at: all that its arguments may name, and where it and others keep theirs.
fn needed() -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from("."), std::env::temp_dir()];
    paths.extend(Cache::location());
    for argument in std::env::args_os().skip(1) {
        // `--results=PATH`
        if let Some(at) = argument.as_bytes().iter().position(|byte| *byte == b'=') {
            paths.push(OsStr::from_bytes(&argument.as_bytes()[at + 1..]).into());
        }
        paths.push(argument.into());
    }
    paths
}

/// Whether a path is that folder or below it, or will be once it is made; links are followed.
fn lies_in(path: &Path, folder: &Path) -> bool {
    let Ok(path) = std::path::absolute(path) else { return false };
    let Some(real) = path.ancestors().find_map(|there| fs::canonicalize(there).ok()) else { return false };
    real.starts_with(folder)
}

/// An empty folder of this user alone, made when it is missing: the first of `candidates` that is plain, short and ours.
///
/// It is never removed: a file system that another run has mounted on it would go as well (`rmdir(2)`).
pub(super) fn anchor(candidates: impl IntoIterator<Item = PathBuf>) -> Result<PlainPath, Vec<String>> {
    let mut refused = Vec::new();
    for folder in candidates {
        match own(&folder) {
            Ok(plain) => return Ok(plain),
            Err(why) => refused.push(format!("{}: {why}", folder.display())),
        }
    }
    Err(refused)
}

/// The folders that are tried, best first.
pub(super) fn candidates() -> Vec<PathBuf> {
    let user = format!("bench-{}", nix::unistd::geteuid());
    // Under `sudo` it may be another user's.
    let ours = |folder: &PathBuf| {
        fs::metadata(folder).is_ok_and(|found| found.uid() == nix::unistd::geteuid().as_raw())
    };
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(ours);
    let shared = ["/tmp", "/var/tmp", "/dev/shm"].map(|folder| Path::new(folder).join(&user));
    runtime.map(|folder| folder.join("bench")).into_iter().chain(shared).collect()
}

fn own(folder: &Path) -> Result<PlainPath, String> {
    let plain = PlainPath::new(folder).filter(|plain| plain.0.len() <= LONGEST_FOLDER);
    let plain = plain.ok_or("its path has unusual characters, or is too long")?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.to_string()),
        _ => {}
    }
    // Not through a link: in /tmp anybody may have put one there.
    let found = fs::symlink_metadata(folder).map_err(|error| error.to_string())?;
    let ours = found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if ours { Ok(plain) } else { Err("it is not a folder that this user alone can write".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_some_program_reads_as_its_own_is_not_plain() {
        for path in ["/tmp/bench-0", "/run/user/1000/bench", "/tmp/a.b_c-d"] {
            assert_eq!(PlainPath::new(Path::new(path)).unwrap().as_str(), path);
        }
        let strange = [" ", "\"", "'", ",", "=", ":", "%", "$", "\n", "\\", "?", "*", "#", "&", "<", "é"];
        for character in strange {
            assert_eq!(PlainPath::new(Path::new(&format!("/tmp/a{character}b"))), None, "{character:?}");
        }
        for path in ["", "tmp/relative", "-dash", "/tmp/-dash"] {
            assert_eq!(PlainPath::new(Path::new(path)), None, "{path:?}");
        }
        assert_eq!(PlainPath::new(Path::new(OsStr::from_bytes(b"/tmp/\xff"))), None);
    }

    #[test]
    fn a_folder_is_hidden_when_nothing_is_or_comes_in_it() {
        let home = tempfile::tempdir_in("/tmp").unwrap();
        let at = |name: &str| home.path().join(name);
        for folder in ["empty", "used", "elsewhere"] {
            fs::create_dir(at(folder)).unwrap();
        }
        fs::write(at("used/file"), "").unwrap();
        symlink(at("empty"), at("link")).unwrap();
        let other = [at("elsewhere/results"), at("empty-too"), PathBuf::from("")];
        assert!(can_be_hidden(&at("empty"), &other));
        assert!(can_be_hidden(&at("link"), &other));
        assert!(!can_be_hidden(&at("used"), &other));
        assert!(!can_be_hidden(&at("missing"), &other));
        assert!(!can_be_hidden(&at("used/file"), &other));
        for needed in ["empty", "empty/results/new", "link", "link/results", "elsewhere/../empty/results"] {
            assert!(!can_be_hidden(&at("empty"), &[at(needed)]), "{needed}");
            assert!(!can_be_hidden(&at("link"), &[at(needed)]), "{needed}");
        }
    }

    #[test]
    fn folders_of_the_system_are_plain_and_short() {
        for folder in SYSTEM {
            let plain = PlainPath::new(Path::new(folder)).unwrap();
            assert!(plain.as_str().len() <= LONGEST_FOLDER && is_of_the_system(&plain));
        }
    }

    #[test]
    fn an_anchor_is_ours_and_short_and_no_link() {
        let ours = tempfile::tempdir_in("/tmp").unwrap();
        let at = |name: &str| ours.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        symlink(at("elsewhere"), at("link")).unwrap();
        fs::create_dir(at("open")).unwrap();
        fs::set_permissions(at("open"), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        fs::write(at("file"), "").unwrap();
        let refused = ["with space", "link", "open", "file", "none/below", &"long".repeat(20)];
        let found = anchor(refused.map(at).into_iter().chain([at("good"), at("other")])).unwrap();
        assert_eq!(Path::new(found.as_str()), at("good"));
        assert_eq!(fs::metadata(at("good")).unwrap().mode() & 0o7777, 0o700);
        assert!(!at("other").exists(), "the first one was good");
        // And again, now that it is there.
        assert_eq!(anchor([at("good")]).unwrap(), found);
        assert_eq!(anchor(refused.map(at)).unwrap_err().len(), refused.len());
    }

    #[test]
    fn a_file_of_any_path_has_a_plain_one() {
        let home = tempfile::tempdir_in("/tmp").unwrap();
        let private = Private::new(PlainPath::new(home.path()).unwrap(), None);
        for name in [&b"a b,c=d:e%f$g\nh'i\"j?k"[..], b"\xff\xfe", b"-dash", &[b'x'; 200]] {
            let file = home.path().join(OsStr::from_bytes(name));
            fs::write(&file, name).unwrap();
            let link = private.link("disk", &file).unwrap();
            assert_eq!(fs::read(link).unwrap(), name);
        }
    }
}
