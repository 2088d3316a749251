//! A mount of one context image, which is replaced under programs that watch it.

use std::path::{Path, PathBuf};

use super::{Mounted, image};

/// A mount with one image layer, to be replaced.
pub struct Site {
    pub dir: tempfile::TempDir,
    pub mounted: Mounted,
    pub generation: u64,
}

impl Site {
    pub fn new(files: &[(&str, &str)]) -> Self {
        Self::with_config(files, |_| String::new())
    }

    pub fn with_config(files: &[(&str, &str)], config: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        open_to_all(dir.path());
        let spec = write(dir.path(), 1, files);
        let mounted = Mounted::with_config(&["--layer", &spec], &config(dir.path()));
        open_to_all(mounted.dir.path());
        Self { dir, mounted, generation: 1 }
    }

    pub fn switch(&mut self, files: &[(&str, &str)]) {
        self.generation += 1;
        let spec = write(self.dir.path(), self.generation, files);
        self.mounted.layer("replace", &spec);
    }

    pub fn work(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Some of these programs give up root.
fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).expect("chmod");
}

fn write(dir: &Path, generation: u64, files: &[(&str, &str)]) -> String {
    let path = dir.join(format!("{generation}.iso"));
    std::fs::write(&path, image("infrastructure", 9, generation, files)).expect("write");
    format!("infrastructure=iso:{}", path.display())
}
