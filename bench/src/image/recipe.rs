//! Recipes: what goes into an image, as data.
//!
//! A recipe names the recipes it is based on under `include`; lists are appended in that order, so that the
//! whole is one flat value, the *effective* recipe. Its digest is the image's name in the cache: the same
//! recipe is never built twice, and a changed one never meets an old image.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use ctx_io::bounded;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Error, initramfs};

/// Version of what [`super::build`] makes of a recipe. Raise it when the same recipe gives another image.
pub const BUILDER_VERSION: u32 = 1;

/// The recipes that come with the program, so that it needs no source tree at run time.
const BUILT_IN: [(&str, &str); 5] = [
    ("common", include_str!("../../images/common.toml")),
    ("host", include_str!("../../images/host.toml")),
    ("host-kvm", include_str!("../../images/host-kvm.toml")),
    ("host-xen", include_str!("../../images/host-xen.toml")),
    ("guest", include_str!("../../images/guest.toml")),
];

/// Those that others are based on and that make no image by themselves.
const BASES: [&str; 2] = ["common", "host"];

/// An effective recipe: everything that decides what is in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recipe {
    /// Name, from the recipe's file name.
    #[serde(skip)]
    pub name: String,
    /// Debian suite, such as `trixie`.
    pub suite: String,
    /// Debian packages; what they recommend is left out.
    pub packages: Vec<String>,
    /// Paths that are never unpacked (patterns of dpkg's `path-exclude`).
    pub exclude: Vec<String>,
    /// systemd units that are enabled.
    pub enable: Vec<String>,
    /// systemd units that are disabled: they can still be started, by a socket or by hand.
    pub disable: Vec<String>,
    /// systemd units that can never be started.
    pub mask: Vec<String>,
    /// Files of systemd and udev that a link to `/dev/null` switches off: rules, generators.
    pub switch_off: Vec<String>,
    /// Kernel modules in the initramfs, with what they depend on.
    pub initramfs: Vec<String>,
    /// Files that are put in after the packages.
    #[serde(rename = "file")]
    pub files: Vec<File>,
    /// Symbolic links that are put in after the packages.
    #[serde(rename = "symlink")]
    pub symlinks: Vec<Symlink>,
    /// Shell scripts that run inside the image at the end, in this order.
    #[serde(rename = "hook")]
    pub hooks: Vec<Hook>,
}

/// A file that an image gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Absolute path inside the image.
    pub path: String,
    /// What is in it. A first empty line is dropped, so that TOML's `"""` can begin a line.
    #[serde(default)]
    pub content: Option<String>,
    /// Instead of `content`: a file beside the recipe.
    #[serde(default, skip_serializing)]
    pub source: Option<String>,
    /// Permission bits.
    #[serde(default = "File::default_mode")]
    pub mode: u32,
}

impl File {
    const fn default_mode() -> u32 {
        0o644
    }
}

/// A symbolic link that an image gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Symlink {
    /// Absolute path of the link inside the image.
    pub path: String,
    /// What it points to.
    pub target: String,
}

/// A script that runs inside the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// What it does, for progress and errors.
    pub name: String,
    /// For `sh -eu`, as root in the image's root.
    pub script: String,
}

/// Finds a recipe by name: where it comes from (for messages) and its text.
type Reader<'a> = dyn Fn(&str) -> Result<(String, String), String> + 'a;

/// One recipe file, before what it includes is put in front of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    #[serde(default)]
    include: Vec<String>,
    suite: Option<String>,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    enable: Vec<String>,
    #[serde(default)]
    disable: Vec<String>,
    #[serde(default)]
    mask: Vec<String>,
    #[serde(default)]
    switch_off: Vec<String>,
    #[serde(default)]
    initramfs: Vec<String>,
    #[serde(default, rename = "file")]
    files: Vec<File>,
    #[serde(default, rename = "symlink")]
    symlinks: Vec<Symlink>,
    #[serde(default, rename = "hook")]
    hooks: Vec<Hook>,
}

impl Recipe {
    /// Names of the recipes that come with the program and make an image.
    pub fn names() -> Vec<&'static str> {
        BUILT_IN.iter().map(|(name, _)| *name).filter(|name| !BASES.contains(name)).collect()
    }

    /// The recipe of that name that comes with the program.
    ///
    /// # Errors
    /// [`Error::Unknown`] for any other name.
    pub fn built_in(name: &str) -> Result<Self, Error> {
        if !Self::names().contains(&name) {
            return Err(Error::Unknown { name: name.to_owned(), known: Self::names().join(", ") });
        }
        let read = |included: &str| {
            BUILT_IN
                .iter()
                .find(|(known, _)| *known == included)
                .map(|(known, text)| ((*known).to_owned(), (*text).to_owned()))
                .ok_or_else(|| format!("includes `{included}`, which does not come with the program"))
        };
        Self::assemble(name, None, &read)
    }

    /// A recipe from a file; what it includes and its files' sources are looked for beside it.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read; [`Error::Recipe`] with line and column when it is not valid.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        // The file itself may have any ending; only what it includes must be called `NAME.toml`.
        let text = bounded::read_to_string(path, bounded::CONFIG).map_err(Error::io("read", path))?;
        let read = |included: &str| {
            if included == name {
                return Ok((path.display().to_string(), text.clone()));
            }
            let beside = folder.join(format!("{included}.toml"));
            bounded::read_to_string(&beside, bounded::CONFIG)
                .map(|text| (beside.display().to_string(), text))
                .map_err(|error| format!("includes `{included}`: {}: {error}", beside.display()))
        };
        Self::assemble(name, Some(folder), &read)
    }

    /// Digest of the recipe and of everything in this program that turns it into an image: 64 hexadecimal digits.
    pub fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(BUILDER_VERSION.to_le_bytes());
        hasher.update(initramfs::INIT);
        hasher.update(&self.name);
        // Plain lists and strings cannot fail to be written; the order of fields is the order in the source.
        hasher.update(serde_json::to_vec(self).unwrap_or_default());
        hex(&hasher.finalize())
    }

    fn assemble(name: &str, folder: Option<&Path>, read: &Reader<'_>) -> Result<Self, Error> {
        let mut recipe = Self {
            name: name.to_owned(),
            suite: String::new(),
            packages: Vec::new(),
            exclude: Vec::new(),
            enable: Vec::new(),
            disable: Vec::new(),
            mask: Vec::new(),
            switch_off: Vec::new(),
            initramfs: Vec::new(),
            files: Vec::new(),
            symlinks: Vec::new(),
            hooks: Vec::new(),
        };
        let invalid = |message: String| Error::Recipe { origin: name.to_owned(), message };
        recipe.append(name, folder, read, &mut Vec::new())?;
        // The first of two equal entries stays: what is based on a recipe cannot double it by accident.
        for list in [
            &mut recipe.packages,
            &mut recipe.exclude,
            &mut recipe.enable,
            &mut recipe.disable,
            &mut recipe.mask,
            &mut recipe.switch_off,
            &mut recipe.initramfs,
        ] {
            let mut seen = BTreeSet::new();
            list.retain(|entry| seen.insert(entry.clone()));
        }
        recipe.check().map_err(invalid)?;
        Ok(recipe)
    }

    fn append(
        &mut self,
        name: &str,
        folder: Option<&Path>,
        read: &Reader<'_>,
        above: &mut Vec<String>,
    ) -> Result<(), Error> {
        let invalid = |origin: &str, message: String| Error::Recipe { origin: origin.to_owned(), message };
        if above.iter().any(|seen| seen == name) {
            return Err(invalid(name, format!("includes itself, by way of {}", above.join(", "))));
        }
        let by = above.last().map_or(name, String::as_str).to_owned();
        let (origin, text) = read(name).map_err(|message| invalid(&by, message))?;
        let source: Source = toml::from_str(&text).map_err(|error| invalid(&origin, error.to_string()))?;
        above.push(name.to_owned());
        for included in &source.include {
            self.append(included, folder, read, above)?;
        }
        above.pop();

        if let Some(suite) = source.suite {
            self.suite = suite;
        }
        self.packages.extend(source.packages);
        self.exclude.extend(source.exclude);
        self.enable.extend(source.enable);
        self.disable.extend(source.disable);
        self.mask.extend(source.mask);
        self.switch_off.extend(source.switch_off);
        self.initramfs.extend(source.initramfs);
        for mut file in source.files {
            let content = match (file.content.take(), file.source.take(), folder) {
                (Some(content), None, _) => content.strip_prefix('\n').map(str::to_owned).unwrap_or(content),
                (None, Some(source), Some(folder)) => {
                    let path = folder.join(source);
                    bounded::read_to_string(&path, bounded::CONFIG).map_err(Error::io("read", &path))?
                }
                _ => {
                    let message = format!("file {}: give either `content` or `source`", file.path);
                    return Err(invalid(&origin, message));
                }
            };
            file.content = Some(content);
            // What is based on a recipe may replace its files.
            self.files.retain(|other| other.path != file.path);
            self.files.push(file);
        }
        self.symlinks.extend(source.symlinks);
        self.hooks.extend(source.hooks);
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        let plain = |text: &str, extra: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        if !plain(&self.name, "-_.") {
            return Err(format!("`{}` is no name for an image: letters, digits, - _ .", self.name));
        }
        if !plain(&self.suite, "-") {
            return Err(format!("suite `{}`: give a Debian suite, such as suite = \"trixie\"", self.suite));
        }
        if let Some(package) = self.packages.iter().find(|package| !plain(package, "+-.:")) {
            return Err(format!("packages: `{package}` is no name of a Debian package"));
        }
        for unit in self.enable.iter().chain(&self.disable).chain(&self.mask) {
            if !plain(unit, "-_.@:\\") || !unit.contains('.') {
                return Err(format!(
                    "`{unit}` is no name of a systemd unit (it needs its ending, such as .service)"
                ));
            }
        }
        if let Some(unit) = self.enable.iter().find(|unit| self.mask.contains(unit)) {
            return Err(format!("unit {unit} is both enabled and masked"));
        }
        if let Some(module) = self.initramfs.iter().find(|module| !plain(module, "-_")) {
            return Err(format!("initramfs: `{module}` is no name of a kernel module"));
        }
        let links = self.symlinks.iter().map(|link| &link.path);
        let paths = self.files.iter().map(|file| &file.path).chain(links).chain(&self.switch_off);
        for path in paths {
            let clean = Path::new(path)
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !path.starts_with('/') || !clean || path.ends_with('/') {
                return Err(format!("`{path}`: give an absolute path without `..`"));
            }
        }
        if let Some(file) = self.files.iter().find(|file| file.mode > 0o7777) {
            return Err(format!("file {}: mode {:o} is not between 0 and 0o7777", file.path, file.mode));
        }
        Ok(())
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn built_in_recipes_are_valid_and_differ() {
        let digests: BTreeSet<_> =
            Recipe::names().iter().map(|name| Recipe::built_in(name).unwrap().digest()).collect();
        assert_eq!(digests.len(), Recipe::names().len());
        assert!(digests.iter().all(|digest| digest.len() == 64));
        assert!(matches!(Recipe::built_in("common"), Err(Error::Unknown { .. })));
    }

    #[test]
    fn a_file_beside_the_tree_gives_the_same_recipe_as_the_built_in_one() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("images");
        for name in Recipe::names() {
            let loaded = Recipe::load(&images.join(format!("{name}.toml"))).unwrap();
            assert_eq!(loaded, Recipe::built_in(name).unwrap());
        }
    }

    #[test]
    fn includes_come_first_files_are_replaced_and_doubles_dropped() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            "base.toml",
            "suite = 'trixie'\npackages = ['a', 'b']\n[[file]]\npath = '/x'\ncontent = 'base'\n",
        );
        let top = write(
            folder.path(),
            "top.toml",
            "include = ['base']\npackages = ['b', 'c']\n[[file]]\npath = '/x'\ncontent = \"\"\"\ntop\"\"\"\nmode = 0o600\n",
        );
        let recipe = Recipe::load(&top).unwrap();
        assert_eq!(recipe.packages, ["a", "b", "c"]);
        assert_eq!(recipe.files.len(), 1);
        assert_eq!((recipe.files[0].content.as_deref(), recipe.files[0].mode), (Some("top"), 0o600));
    }

    #[test]
    fn the_digest_follows_every_input() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "motd", "hello");
        let text = "suite = 'trixie'\n[[file]]\npath = '/etc/motd'\nsource = 'motd'\n";
        let path = write(folder.path(), "r.toml", text);
        let first = Recipe::load(&path).unwrap().digest();
        assert_eq!(first, Recipe::load(&path).unwrap().digest());
        write(folder.path(), "motd", "hello!");
        assert_ne!(first, Recipe::load(&path).unwrap().digest());
    }

    #[test]
    fn what_an_image_keeps_of_its_recipe_is_a_recipe() {
        let folder = tempfile::tempdir().unwrap();
        for name in Recipe::names() {
            let recipe = Recipe::built_in(name).unwrap();
            let kept = write(folder.path(), &format!("{name}.toml"), &toml::to_string(&recipe).unwrap());
            assert_eq!(Recipe::load(&kept).unwrap(), recipe);
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let told = |text: &str| Recipe::load(&write(folder.path(), "r.toml", text)).unwrap_err().to_string();
        let unknown = told("suite = 'trixie'\npackage = ['a']\n");
        assert!(unknown.contains("line 2") && unknown.contains("package"), "{unknown}");
        for (text, word) in [
            ("packages = []", "suite"),
            ("suite = 'trixie'\npackages = ['a b']", "a b"),
            ("suite = 'trixie'\nmask = ['getty']", "getty"),
            ("suite = 'trixie'\ninclude = ['none']", "none.toml"),
            ("suite = 'trixie'\ninclude = ['r']", "includes itself"),
            ("suite = 'trixie'\n[[file]]\npath = 'etc/x'\ncontent = ''", "absolute"),
            ("suite = 'trixie'\n[[file]]\npath = '/a/../b'\ncontent = ''", "absolute"),
            ("suite = 'trixie'\n[[file]]\npath = '/x'", "content"),
            ("suite = 'trixie'\nmask = ['a.timer']\nenable = ['a.timer']", "both"),
        ] {
            assert!(told(text).contains(word), "{text:?}: {}", told(text));
        }
    }
}
