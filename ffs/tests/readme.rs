//! The READMEs' examples of configurations, as the program takes them.

use std::collections::BTreeSet;

use ffs::config::{Config, Hook, LayerSpec};
use serde::Serialize;

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

/// The names of all fields.
fn keys(of: impl Serialize) -> BTreeSet<String> {
    let value = serde_json::to_value(of).unwrap_or_default();
    value.as_object().into_iter().flat_map(|fields| fields.keys().cloned()).collect()
}

#[test]
fn all_settings_are_said_with_their_defaults() {
    let readme = include_str!("../README.md");
    let (_, after) = readme.split_once("## All settings").unwrap();
    let (_, after) = after.split_once("```toml\n").unwrap();
    let (text, _) = after.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ffs.toml");
    std::fs::write(&file, text).unwrap();
    let said = Config::read(&file).unwrap();

    let table: toml::Table = toml::from_str(text).unwrap();
    let written = |of: &toml::Table| of.keys().cloned().collect::<BTreeSet<_>>();
    // These two are left out where they are false.
    let all = Config { noexec: true, nosymfollow: true, ..Config::default() };
    assert_eq!(written(&table), keys(all));
    let first = |list: &str| table[list][0].as_table().unwrap().clone();
    assert_eq!(written(&first("layer")), keys(&said.layers[0]));
    let others = ["reload", "signal", "pid_file"].map(String::from);
    assert_eq!(
        written(&first("hook")).into_iter().chain(others).collect::<BTreeSet<_>>(),
        keys(&said.hooks[0])
    );

    // What has no comment with another default is the default.
    let Config { image_limit, auto_devices, accept_older, ack, passthrough, noexec, nosymfollow, .. } =
        Config::default();
    assert_eq!(
        (said.image_limit, said.auto_devices, said.accept_older),
        (image_limit, auto_devices, accept_older)
    );
    assert_eq!(
        (said.ack, said.passthrough, said.noexec, said.nosymfollow),
        (ack, passthrough, noexec, nosymfollow)
    );
    let layer: LayerSpec = toml::from_str("name = 'a'\nsource = 'dir:/a'").unwrap();
    let hook: Hook = toml::from_str("path = 'a'").unwrap();
    assert_eq!((said.layers[0].watch, said.hooks[0].timeout_ms), (layer.watch, hook.timeout_ms));
}
