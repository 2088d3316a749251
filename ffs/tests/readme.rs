//! The README's example for `ffs`, as the program takes it.

use ffs::config::Config;

#[test]
fn the_hook_is_read() {
    let readme = include_str!("../../README.md");
    let (_, after) = readme.split_once("```toml\n[[hook]]").unwrap();
    let (hook, _) = after.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ffs.toml");
    std::fs::write(&file, format!("[[hook]]{hook}")).unwrap();
    let config = Config::read(&file).unwrap();
    assert_eq!(config.hooks.len(), 1);
    assert_eq!(config.hooks[0].path, "gluster/server");
}
