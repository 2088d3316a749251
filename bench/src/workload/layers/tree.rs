//! The trees that are mounted, written once a run into memory.
//!
//! ```text
//! base/     d/f00000 … with 4 KiB each, and `large`
//! top/      every fourth of those files again, with other content
//! v/N/      c/00 … c/15: the layer that is swapped; its version stands in every eight bytes
//! w/N/      the same with e/00000 …, whose sizes differ between the two versions
//! s/N/      as v, one for each change of the storm
//! many/N/   the layers of the large union: empty files in folders of a hundred
//! native/   what a union of v/0, top and base shows, as plain files; `large` is that of base
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The directory that is looked up and listed.
pub const DIRECTORY: &str = "d";
/// The file that is read from end to end.
pub const LARGE: &str = "large";
/// The directory that a swap changes.
pub const CHANGED: &str = "c";
/// The directory of entries that the kernel has cached when a layer is swapped.
pub const CACHED: &str = "e";
/// Files that one swap changes.
pub const CHANGED_FILES: u32 = 16;
/// Bytes of each of them.
pub const CHANGED_BYTES: usize = 4096;
/// Files in one folder of the large union.
const FOLDER: u32 = 100;

/// How large the trees are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Names in the directory.
    pub files: u32,
    /// Bytes of the large file.
    pub large: u64,
    /// Cached entries.
    pub cached: u32,
    /// Versions that the storm goes through.
    pub storm: u32,
    /// The large union.
    pub many: Many,
}

#[cfg(test)]
impl Shape {
    pub(crate) const SMALL: Self =
        Self { files: 40, large: 1 << 20, cached: 20, storm: 3, many: Many { files: 400, layers: 2 } };
}

/// The large union.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Many {
    /// Files in all layers.
    pub files: u32,
    /// Layers.
    pub layers: u32,
}

impl Many {
    /// Path of a file in the union.
    pub fn path(self, number: u32) -> PathBuf {
        format!("{:04}/{:02}", number / FOLDER, number % FOLDER).into()
    }

    /// The layer that has a file: neighbouring folders are in different ones.
    const fn layer(self, number: u32) -> u32 {
        number / FOLDER % self.layers
    }
}

/// The trees, on disk or in memory.
#[derive(Debug, Clone)]
pub struct Trees {
    root: PathBuf,
    shape: Shape,
}

impl Trees {
    /// Writes all of them under `root`.
    ///
    /// # Errors
    /// The system's, such as no room.
    pub fn write(root: &Path, shape: &Shape) -> io::Result<Self> {
        let trees = Self { root: root.to_owned(), shape: *shape };
        for folder in [trees.base(), trees.native()] {
            fs::create_dir_all(folder.join(DIRECTORY))?;
        }
        large(&trees.base().join(LARGE), shape.large)?;
        // The same one: where its pages lie makes up to a tenth of the time to read it.
        fs::hard_link(trees.base().join(LARGE), trees.native().join(LARGE))?;
        fs::create_dir_all(trees.top().join(DIRECTORY))?;
        for number in 0..shape.files {
            let name = Path::new(DIRECTORY).join(format!("f{number:05}"));
            let (below, above) = ([b'b'; 4096], [b't'; 4096]);
            fs::write(trees.base().join(&name), below)?;
            let shown = if number.is_multiple_of(4) { above } else { below };
            if number.is_multiple_of(4) {
                fs::write(trees.top().join(&name), above)?;
            }
            fs::write(trees.native().join(&name), shown)?;
        }
        for (number, tag) in [(0, 1), (1, 2)] {
            changed(&trees.version(number), tag)?;
        }
        changed(&trees.native(), 1)?;
        for (number, tag) in [(0, 3), (1, 4)] {
            let folder = trees.wide(number);
            changed(&folder, tag)?;
            fs::create_dir_all(folder.join(CACHED))?;
            for entry in 0..shape.cached {
                fs::write(folder.join(CACHED).join(format!("{entry:05}")), &b"xx"[..=number as usize])?;
            }
        }
        for number in 0..shape.storm {
            changed(&trees.storm(number), storm_tag(number))?;
        }
        // A layer is a folder also when it has no file: there may be more layers than folders of files.
        for layer in trees.many_layers() {
            fs::create_dir_all(layer)?;
        }
        for number in 0..shape.many.files {
            let path = trees.many(shape.many.layer(number)).join(shape.many.path(number));
            if number.is_multiple_of(FOLDER) {
                fs::create_dir_all(path.parent().unwrap_or(&trees.root))?;
            }
            fs::File::create_new(path)?;
        }
        Ok(trees)
    }

    /// How large they are.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The lowest layer.
    pub fn base(&self) -> PathBuf {
        self.root.join("base")
    }

    /// The one above it.
    pub fn top(&self) -> PathBuf {
        self.root.join("top")
    }

    /// A version of the layer that is swapped, 0 or 1.
    pub fn version(&self, number: u32) -> PathBuf {
        self.root.join("v").join(number.to_string())
    }

    /// A version of it with the cached entries, 0 or 1.
    pub fn wide(&self, number: u32) -> PathBuf {
        self.root.join("w").join(number.to_string())
    }

    /// A version of the storm.
    pub fn storm(&self, number: u32) -> PathBuf {
        self.root.join("s").join(number.to_string())
    }

    /// A layer of the large union.
    pub fn many(&self, layer: u32) -> PathBuf {
        self.root.join("many").join(layer.to_string())
    }

    /// What a union shows, without one.
    pub fn native(&self) -> PathBuf {
        self.root.join("native")
    }

    /// The layers of the small union, highest first.
    pub fn small_layers(&self) -> Vec<PathBuf> {
        vec![self.version(0), self.top(), self.base()]
    }

    /// The layers of the large one.
    pub fn many_layers(&self) -> Vec<PathBuf> {
        (0..self.shape.many.layers).map(|layer| self.many(layer)).collect()
    }
}

/// The tag of a version of the storm; above all others.
pub const fn storm_tag(number: u32) -> u64 {
    1000 + number as u64
}

fn large(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 20, fs::File::create_new(path)?);
    let block = vec![b'L'; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let some = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        file.write_all(&block[..some])?;
        left -= some as u64;
    }
    file.flush()
}

fn changed(folder: &Path, tag: u64) -> io::Result<()> {
    fs::create_dir_all(folder.join(CHANGED))?;
    for number in 0..CHANGED_FILES {
        fs::write(
            folder.join(CHANGED).join(format!("{number:02}")),
            tag.to_be_bytes().repeat(CHANGED_BYTES / 8),
        )?;
    }
    Ok(())
}

/// The version that content is of; none when it is torn: not all of one version, or not whole.
pub fn tag_of(content: &[u8]) -> Option<u64> {
    let (tags, rest) = content.as_chunks::<8>();
    let first = tags.first()?;
    let whole = rest.is_empty() && content.len() == CHANGED_BYTES && tags.iter().all(|tag| tag == first);
    whole.then(|| u64::from_be_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_is_what_a_union_would_show() {
        let folder = tempfile::tempdir().unwrap();
        let trees = Trees::write(folder.path(), &Shape::SMALL).unwrap();
        for (path, byte) in [("d/f00000", b't'), ("d/f00001", b'b'), ("d/f00036", b't')] {
            assert_eq!(fs::read(trees.native().join(path)).unwrap(), [byte; 4096]);
            let owner = trees.small_layers().into_iter().find(|layer| layer.join(path).exists()).unwrap();
            assert_eq!(fs::read(owner.join(path)).unwrap(), [byte; 4096]);
        }
        assert_eq!(fs::read_dir(trees.native().join(DIRECTORY)).unwrap().count(), 40);
        let many = trees.shape().many;
        for number in 0..many.files {
            let holders = trees.many_layers().iter().filter(|l| l.join(many.path(number)).exists()).count();
            assert_eq!(holders, 1, "{number}");
        }
    }

    #[test]
    fn a_layer_without_files_is_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { many: Many { files: 10, layers: 3 }, ..Shape::SMALL };
        let trees = Trees::write(folder.path(), &shape).unwrap();
        let names = |layer: &PathBuf| fs::read_dir(layer).map(Iterator::count).unwrap();
        assert_eq!(trees.many_layers().iter().map(names).collect::<Vec<_>>(), [1, 0, 0]);
    }

    #[test]
    fn torn_content_has_no_version() {
        let whole = 7_u64.to_be_bytes().repeat(CHANGED_BYTES / 8);
        assert_eq!(tag_of(&whole), Some(7));
        assert_eq!(tag_of(&whole[..CHANGED_BYTES - 8]), None);
        let mut torn = whole.clone();
        torn[CHANGED_BYTES - 1] = 8;
        assert_eq!(tag_of(&torn), None);
        assert_eq!(tag_of(&[]), None);
    }
}
