//! How it is: for `ffs status`.

use std::sync::{Arc, Weak};

use sha2::{Digest, Sha256};

use super::Daemon;
use crate::config::Config;
use crate::control::{DeviceStatus, LayerStatus, MemoryStatus, Status};
use crate::layer::{Content, Layer, LayerDir, LayerNode};
use crate::mount::Mount;
use crate::sealed::{self, Sealed};

/// What was found out about a layer's image; found out once.
pub(super) struct Facts {
    of: Weak<LayerDir>,
    digest: Option<String>,
    bytes: u64,
}

impl Facts {
    fn of(layer: &Layer) -> Self {
        let image = image_of(&layer.root);
        Self {
            of: Arc::downgrade(&layer.root),
            digest: image.as_ref().map(|image| hex_digest(image.bytes())),
            bytes: image.map_or(0, |image| image.bytes().len() as u64),
        }
    }
}

/// The digest of a layer's image, as in [`LayerStatus::digest`].
pub(super) fn digest(layer: &Layer) -> Option<String> {
    image_of(&layer.root).map(|image| hex_digest(image.bytes()))
}

fn hex_digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// The image that a layer's files are in; all of them are in one.
fn image_of(root: &Arc<LayerDir>) -> Option<Arc<Sealed>> {
    root.entries.values().find_map(|node| match node {
        LayerNode::Dir(dir) => image_of(dir),
        LayerNode::Leaf(leaf) => match &leaf.content {
            Content::Sealed { image, .. } => Some(image.clone()),
            _ => None,
        },
        LayerNode::Whiteout => None,
    })
}

/// Adds what the mount itself can and cannot do here.
fn of_mount(mount: &Mount, config: &Config, abilities: &mut Vec<String>, reduced: &mut Vec<String>) {
    let able = mount.abilities();
    if config.passthrough && !able.passthrough {
        reduced.push(
            "no passthrough, which needs root and Linux 6.9 with CONFIG_FUSE_PASSTHROUGH: large files come from the \
             page cache"
                .to_owned(),
        );
    }
    let names = [
        ("inotify", able.events),
        ("readdirplus", able.readdirplus),
        ("prefetch", able.prefetch),
        ("passthrough", able.passthrough),
    ];
    abilities.extend(names.iter().filter(|(_, able)| *able).map(|(name, _)| (*name).to_owned()));
    reduced.extend(mount.reduced());
    if nix::unistd::geteuid().is_root() {
        abilities.push("allow_other".to_owned());
    } else if mount.is_users() {
        reduced.push(
            "not root: only this user sees the mount, and writing is refused by this program and not by the \
             kernel"
                .to_owned(),
        );
    } else {
        reduced.push("not root: only this user sees the mount".to_owned());
    }
}

impl Daemon {
    pub(super) fn status(&mut self) -> Status {
        let generation = self.mount.current();
        let totals = generation.totals();
        self.facts.retain(|_, facts| facts.of.strong_count() > 0);
        let layers = generation
            .layers
            .iter()
            .map(|layer| {
                let known = self.facts.get(&layer.name);
                if !known.is_some_and(|facts| std::ptr::eq(facts.of.as_ptr(), Arc::as_ptr(&layer.root))) {
                    self.facts.insert(layer.name.clone(), Facts::of(layer));
                }
                let facts = self.facts.get(&layer.name);
                LayerStatus {
                    name: layer.name.clone(),
                    priority: layer.priority,
                    origin: layer.origin.clone(),
                    class: layer.class.as_ref().map(ToString::to_string),
                    generation: layer.generation,
                    digest: facts.and_then(|facts| facts.digest.clone()),
                    bytes: facts.map_or(0, |facts| facts.bytes),
                }
            })
            .collect();
        let devices = self
            .devices
            .iter()
            .map(|(device, state)| DeviceStatus { device: device.clone(), state: state.state.clone() });
        let unfollowed = self.followed.failed.iter().map(|(layer, error)| {
            format!("the directory of layer `{layer}` is not followed ({error}): `ffs reload` reads it again")
        });
        let (mut abilities, mut reduced) = (self.abilities.clone(), self.reduced.clone());
        of_mount(&self.mount, &self.config, &mut abilities, &mut reduced);
        reduced.extend(unfollowed);
        reduced.extend(self.refused.iter().map(|(layer, reason)| {
            format!("layer `{layer}` shows what it did, since what was read of it again is refused: {reason}")
        }));
        reduced.extend(self.trust.reduced());
        reduced.extend(self.log.reduced());
        Status {
            mount: self.mount.point().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            taken_over: self.taken_over,
            generation: generation.number,
            rollback_to: self.before.as_ref().map(|before| before.generation.number),
            projection: self.config.projection,
            layers,
            names: totals.names,
            bytes: totals.bytes,
            known_inodes: self.mount.known_inodes() as u64,
            memory: MemoryStatus { in_use: sealed::in_use(), limit: self.limit.total },
            devices: devices.collect(),
            hooks: self.hooks.outcomes(),
            abilities,
            reduced,
        }
    }
}
