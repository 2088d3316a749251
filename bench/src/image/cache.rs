//! Images on disk: one folder each, named by the digest of its recipe, complete or not there at all.
//!
//! ```text
//! images/DIGEST/         root.ext4 vmlinuz initrd packages.tsv recipe.toml image.json build.log, all read-only
//!                        and, of hosts with Xen, hypervisor hypervisor.config
//! images/.DIGEST.building/   a build in progress, swept by the next command when its builder is gone
//! images/.DIGEST.build       held by the builder
//! images/.DIGEST.use         held, shared, by whoever uses the image: it is not pruned meanwhile
//! ```
//! Locks are `flock`s: the kernel lets go of them when their holder dies, however it dies.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Error, TREE, ext4, wait_for};

/// File of an image: Xen.
pub(super) const HYPERVISOR: &str = "hypervisor";
/// File of an image: Xen's configuration.
pub(super) const HYPERVISOR_CONFIG: &str = "hypervisor.config";

/// The folder where images are kept.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// What is known of an image: `image.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Name of its recipe.
    pub name: String,
    /// Digest of its recipe and the builder.
    pub digest: String,
    /// Debian suite.
    pub suite: String,
    /// Version of its kernel.
    pub kernel: String,
    /// When it was built, in seconds since 1970.
    pub built_at: u64,
    /// How long that took, in seconds.
    pub build_seconds: f64,
    /// Versions of the programs that made it.
    pub tools: BTreeMap<String, String>,
    /// Its files.
    pub files: BTreeMap<String, FileDigest>,
}

/// Size and digest of a file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// An image that is in the cache and stays there as long as this value lives.
#[derive(Clone, Debug)]
pub struct Image {
    /// What is known of it.
    pub manifest: Manifest,
    folder: PathBuf,
    _in_use: Arc<fs::File>,
}

impl Image {
    /// The root file system: ext4, read-only.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root.ext4")
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initramfs.
    pub fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    /// The hypervisor that is started before the kernel, an ELF file for Multiboot; none in most images.
    pub fn hypervisor(&self) -> Option<PathBuf> {
        self.manifest.files.contains_key(HYPERVISOR).then(|| self.folder.join(HYPERVISOR))
    }

    /// How that hypervisor was configured when it was built, as lines `CONFIG_NAME=y`.
    pub fn hypervisor_config(&self) -> Option<PathBuf> {
        self.manifest.files.contains_key(HYPERVISOR_CONFIG).then(|| self.folder.join(HYPERVISOR_CONFIG))
    }

    /// The versions of its packages as dpkg inside says them: name, version and architecture, separated by tabs.
    pub fn packages(&self) -> PathBuf {
        self.folder.join("packages.tsv")
    }

    /// Digest of its recipe: its name in the cache.
    pub fn digest(&self) -> &str {
        &self.manifest.digest
    }
}

/// What [`Cache::prune`] has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names and digests of images that were removed.
    pub removed: Vec<(String, String)>,
    /// Those that stay because somebody uses them.
    pub in_use: Vec<(String, String)>,
    /// Bytes that were freed.
    pub bytes: u64,
}

impl Cache {
    /// The user's cache: `$BENCH_CACHE`, else `$XDG_CACHE_HOME/bench`, else `~/.cache/bench`.
    /// What builders that were killed have left is swept.
    ///
    /// # Errors
    /// [`Error::NoCache`] when none of the variables is set, [`Error::Io`] when the folder cannot be made.
    pub fn open() -> Result<Self, Error> {
        Self::at(&Self::location()?)
    }

    /// Where [`Cache::open`] looks.
    ///
    /// # Errors
    /// [`Error::NoCache`] when none of the variables is set, [`Error::Io`] when the current folder is not known.
    pub fn location() -> Result<PathBuf, Error> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("BENCH_CACHE")
            .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("bench")))
            .or_else(|| set("HOME").map(|path| path.join(".cache/bench")))
            .ok_or(Error::NoCache)
            // Programs run in other folders, and take a name that begins with a dash for an option.
            .and_then(|path| std::path::absolute(&path).map_err(Error::io("find", &path)))
    }

    /// A cache in a folder of the caller's choice.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be made or listed.
    pub fn at(folder: &Path) -> Result<Self, Error> {
        let folder = folder.join("images");
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let cache = Self { folder };
        cache.sweep()?;
        Ok(cache)
    }

    /// The image of that digest, when there is one; it is not pruned while the result lives.
    ///
    /// # Errors
    /// [`Error::Io`] when it is there but cannot be read, [`Error::Late`] when another bench removes it and does not end.
    pub fn find(&self, digest: &str) -> Result<Option<Image>, Error> {
        let mut lock = self.lock_file(digest, "use")?;
        if lock.try_lock_shared().is_err() {
            let locked = move || lock.lock_shared().map(|()| lock);
            lock = wait_for("another bench that removes it", digest, &self.folder, TREE, locked)?;
        }
        let folder = self.folder.join(digest);
        Ok(read_manifest(&folder)?.map(|manifest| Image { manifest, folder, _in_use: Arc::new(lock) }))
    }

    /// What is in the cache, by name and age.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read.
    pub fn list(&self) -> Result<Vec<Manifest>, Error> {
        let mut list = Vec::new();
        for (name, path) in self.entries()? {
            if !name.starts_with('.') {
                list.extend(read_manifest(&path)?);
            }
        }
        list.sort_by(|a, b| a.name.cmp(&b.name).then(a.built_at.cmp(&b.built_at)));
        Ok(list)
    }

    /// Removes every image whose digest is not in `keep`, unless somebody uses it.
    ///
    /// # Errors
    /// [`Error::Io`] when one cannot be removed.
    pub fn prune(&self, keep: &BTreeSet<String>) -> Result<Pruned, Error> {
        let mut pruned = Pruned::default();
        for manifest in self.list()? {
            if keep.contains(&manifest.digest) {
                continue;
            }
            let entry = (manifest.name, manifest.digest.clone());
            match self.lock_file(&manifest.digest, "use")?.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    pruned.in_use.push(entry);
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(Error::io("lock", &self.folder)(error)),
            }
            pruned.bytes += manifest.files.values().map(|file| file.bytes).sum::<u64>();
            // Gone under its name at once, so that a kill in between leaves no half of an image.
            let doomed = self.folder.join(format!(".{}.building", manifest.digest));
            let folder = self.folder.join(&manifest.digest);
            fs::rename(&folder, &doomed).map_err(Error::io("remove", &folder))?;
            ext4::remove_tree(&doomed)?;
            pruned.removed.push(entry);
        }
        Ok(pruned)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// `kind` is `build` or `use`.
    pub(super) fn lock_file(&self, digest: &str, kind: &str) -> Result<fs::File, Error> {
        let path = self.folder.join(format!(".{digest}.{kind}"));
        fs::File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io("create", &path))
    }

    /// Removes what builders left that are no more.
    fn sweep(&self) -> Result<(), Error> {
        for (name, path) in self.entries()? {
            let Some(digest) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".building")) else {
                continue;
            };
            if self.lock_file(digest, "build")?.try_lock().is_ok() {
                super::build::clear(&path)?;
            }
        }
        Ok(())
    }

    fn entries(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let listing = fs::read_dir(&self.folder).map_err(Error::io("list", &self.folder))?;
        Ok(listing
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.file_name().into_string().ok()?, entry.path()))
            })
            .collect())
    }
}

/// The manifest in a folder; nothing when the folder is not there or one of its files has not the size it should have.
fn read_manifest(folder: &Path) -> Result<Option<Manifest>, Error> {
    let path = folder.join("image.json");
    let text = match ctx_io::bounded::read(&path, ctx_io::bounded::STATE) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path)(error)),
    };
    let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) else { return Ok(None) };
    let whole = manifest
        .files
        .iter()
        .all(|(name, file)| fs::metadata(folder.join(name)).is_ok_and(|meta| meta.len() == file.bytes));
    Ok(whole.then_some(manifest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plant(cache: &Cache, name: &str, digest: &str) {
        let folder = cache.folder.join(digest);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("root.ext4"), b"12345").unwrap();
        let manifest = Manifest {
            name: name.into(),
            digest: digest.into(),
            suite: "trixie".into(),
            kernel: "6.12".into(),
            built_at: 1,
            build_seconds: 2.5,
            tools: BTreeMap::new(),
            files: BTreeMap::from([("root.ext4".into(), FileDigest { bytes: 5, sha256: String::new() })]),
        };
        fs::write(folder.join("image.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    }

    #[test]
    fn a_used_image_is_not_pruned_and_a_current_one_neither() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        for digest in ["aa", "bb", "cc"] {
            plant(&cache, "guest", digest);
        }
        let used = cache.find("bb").unwrap().unwrap();
        assert_eq!(used.digest(), "bb");
        let pruned = cache.prune(&BTreeSet::from(["cc".to_owned()])).unwrap();
        assert_eq!(pruned.removed, [("guest".to_owned(), "aa".to_owned())]);
        assert_eq!(pruned.in_use, [("guest".to_owned(), "bb".to_owned())]);
        assert_eq!(pruned.bytes, 5);
        drop(used);
        assert_eq!(cache.prune(&BTreeSet::new()).unwrap().removed.len(), 2);
        assert!(cache.find("cc").unwrap().is_none());
    }

    #[test]
    fn an_image_that_was_cut_short_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        plant(&cache, "guest", "aa");
        fs::write(cache.folder.join("aa/root.ext4"), b"123").unwrap();
        assert!(cache.find("aa").unwrap().is_none());
    }

    #[test]
    fn a_dead_builder_is_swept_and_a_living_one_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        for digest in ["dead", "alive"] {
            fs::create_dir_all(cache.folder.join(format!(".{digest}.building/tree"))).unwrap();
        }
        let builder = cache.lock_file("alive", "build").unwrap();
        builder.lock().unwrap();
        let cache = Cache::at(folder.path()).unwrap();
        assert!(!cache.folder.join(".dead.building").exists());
        assert!(cache.folder.join(".alive.building/tree").exists());
    }
}
