//! What several tests plant.

use std::path::Path;

use bench::image::Recipe;

/// Images of which only the names are right. The kernel is none: QEMU says so when it has opened everything before it.
pub(crate) fn plant(cache: &Path) {
    for name in ["host-kvm", "guest"] {
        let digest = Recipe::built_in(name).unwrap().digest();
        let folder = cache.join("images").join(&digest);
        std::fs::create_dir_all(&folder).unwrap();
        let mut files = serde_json::Map::new();
        for file in ["root.ext4", "vmlinuz", "initrd"] {
            std::fs::write(folder.join(file), [0; 4096]).unwrap();
            files.insert(file.into(), serde_json::json!({ "bytes": 4096, "sha256": "" }));
        }
        let manifest = serde_json::json!({
            "name": name, "digest": digest, "suite": "trixie", "kernel": "6.12", "built_at": 1,
            "build_seconds": 1.0, "tools": {}, "files": files,
        });
        std::fs::write(folder.join("image.json"), manifest.to_string()).unwrap();
    }
}
