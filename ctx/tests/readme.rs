//! The README's examples for `ctx`, as the program takes them.

use std::path::Path;

use ctx::config::{Config, Source};
use ctx::recontext::domain::View;

const README: &str = include_str!("../../README.md");

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<&'static str> {
    README
        .split("\n```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

#[test]
fn the_configuration_is_read() {
    let text = blocks("toml").into_iter().find(|block| block.contains("[[class]]")).unwrap();
    let config = Config::parse(Path::new("README.md"), text).unwrap();
    assert_eq!(config.classes.len(), 1);
    assert_eq!(config.classes[0].source, Source::Directory("/etc/ctx/infrastructure".into()));
}

#[test]
fn the_metadata_asks_for_a_device() {
    let metadata = blocks("xml").into_iter().find(|block| block.contains("urn:ctx:context:1")).unwrap();
    let domain = format!("<domain type='kvm'><name>g</name>{metadata}<devices/></domain>");
    let view = View::parse(&domain).unwrap();
    assert_eq!(view.wanted.len(), 1);
    assert_eq!((view.wanted[0].class.as_str(), view.wanted[0].target.as_str()), ("infrastructure", "sdb"));
}
