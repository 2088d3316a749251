//! Every way to another generation.
//!
//! The generation that was shown before the present one is kept whole for a rollback; older ones end
//! with the last program that has something of them open. A rollback is a switch like any other: its
//! generation has a new number, and it can be rolled back.
//!
//! What a rollback takes away must not be back a moment later because its disc is read again: the
//! image is held back ([`Hold`]) until another of a higher generation comes for its layer, until
//! `ffs reload`, or until the rollback is itself rolled back. Of directories no content is kept: one
//! that a rollback brings back is read as it is then.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::devices::device_name;
use super::report::digest;
use super::{Daemon, DaemonError};
use crate::config::{LayerSpec, Source};
use crate::dirs::{Follower, same};
use crate::edit::{Desired, Op, plan};
use crate::events::Step;
use crate::follow::Hold;
use crate::generation::Generation;
use crate::layer::Layer;
use crate::layer::dir::{self, DirError};
use crate::layer::load::{self, Asked, LoadError};
use crate::memory::Limit;
use crate::projection::plain;
use crate::trust::{Rejected, Trust};

/// A generation that is kept, and what was asked for then.
pub(super) struct Before {
    pub(super) generation: Arc<Generation>,
    pub(super) desired: Desired,
}

/// Why a request was not fulfilled; nothing was changed.
pub(super) enum Refusal {
    /// The mount is at another generation than the one asked for.
    Conflict(String),
    /// Anything else.
    Failed(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Self::Failed(reason)
    }
}

/// The directories that are followed.
pub(super) struct Followed {
    /// Where it can be had.
    pub(super) follower: Option<Follower>,
    /// Layers whose directory cannot be followed, and why.
    pub(super) failed: BTreeMap<String, String>,
}

impl Followed {
    /// Reads a directory layer, and follows it from then on if it is to be.
    fn read(&mut self, spec: &LayerSpec, path: &Path) -> Result<Layer, DirError> {
        let follower = self.follower.as_ref().filter(|_| spec.watch);
        let following = follower.map(|follower| follower.follow(&spec.name));
        let each = |dir: &Path| following.iter().for_each(|following| following.add(dir));
        let layer = dir::layer_telling(path, &spec.name, spec.priority.unwrap_or(0), &each);
        let unread = layer.as_ref().err().map(|error| &error.source);
        match following.map(|following| following.end(unread)) {
            Some(Err(error)) => drop(self.failed.insert(spec.name.clone(), error.to_string())),
            Some(Ok(())) => drop(self.failed.remove(&spec.name)),
            None => {}
        }
        layer
    }
}

/// Reads a layer that is no device; `None` for devices, which are read when they are there.
///
/// # Errors
/// [`DaemonError::Layer`] and [`DaemonError::NoRoom`].
pub(super) fn load(
    spec: &LayerSpec,
    limit: &Limit,
    trust: &Trust,
    followed: &mut Followed,
) -> Result<Option<Layer>, DaemonError> {
    let error = |reason: String| DaemonError::Layer { name: spec.name.clone(), reason };
    match &spec.source {
        Source::Dir(path) => followed.read(spec, path).map(Some).map_err(|source| error(source.to_string())),
        Source::Iso(path) => {
            let origin = spec.source.to_string();
            let asked = Asked { name: Some(&spec.name), priority: spec.priority, origin: &origin, trust };
            load::load(path, &asked, limit, |_| ()).map(|(layer, _)| Some(layer)).map_err(|source| {
                if let Some(reason) = source.no_room(limit) {
                    return DaemonError::NoRoom { name: spec.name.clone(), reason };
                }
                match source {
                    LoadError::Device(source) => error(source.to_string()),
                    LoadError::Image(source) => error(format!("`{}`: {source}", path.display())),
                }
            })
        }
        Source::Device(_) => Ok(None),
    }
}

impl Daemon {
    // The switch itself.

    /// Shows `layers` and tells everybody; `asked` is what was asked for until now.
    fn switch(
        &mut self,
        layer: &str,
        layer_generation: Option<u64>,
        asked: Desired,
        layers: Vec<Arc<Layer>>,
    ) {
        let before = self.mount.current();
        let switch = self.mount.switch(|_| layers);
        let generation = switch.generation.number;
        self.log.write(Step::Visible {
            generation,
            layer: layer.to_owned(),
            layer_generation,
            changes: switch.changes.len(),
        });
        // What drives bring at the start is one beginning, and nothing to go back behind. Only now, since the memory of
        // the one that was kept until now is given back here.
        if self.starting.is_none() {
            self.before = Some(Before { generation: before, desired: asked });
        }
        if !switch.changes.is_empty() {
            self.mount.tell_watchers(&switch);
            let projected = switch.generation.is_projected();
            // Patterns are for the paths that layers have.
            let known =
                |path: &[u8]| if projected { plain(path).map(<[u8]>::to_vec) } else { Some(path.to_vec()) };
            let paths = switch.changes.iter().filter_map(|change| known(&change.path));
            self.hooks.changed(generation, paths.collect());
        }
    }

    /// Shows layers in place of those of their names, as one switch; nothing happens when they are what is shown already. One
    /// that may not be shown holds up none of the others: returned is why, by layer.
    pub(super) fn show(&mut self, layers: Vec<Layer>) -> BTreeMap<String, String> {
        let current = self.mount.current();
        let mut news: Vec<Arc<Layer>> = layers
            .into_iter()
            .filter(|layer| !current.layers.iter().any(|have| same(have, layer)))
            .map(Arc::new)
            .collect();
        // Of two layers of a class, the one that was of another before is refused: the last one is.
        let comes_to_class = |layer: &Layer| {
            !current.layers.iter().any(|have| have.name == layer.name && have.class == layer.class)
        };
        news.sort_by_key(|layer| comes_to_class(layer));
        let mut refused = BTreeMap::new();
        while let Err(rejected) = self.accept(&news, &current.layers) {
            // What was shown of its name stays, and may be in the way of another.
            let reason = rejected.reason.to_string();
            for layer in news.extract_if(.., |layer| layer.name == rejected.layer) {
                self.log.write(Step::Refused { origin: layer.origin.clone(), reason: reason.clone() });
            }
            refused.insert(rejected.layer, reason);
        }
        let Some(first) = news.first() else { return refused };
        let generation = first.generation.filter(|_| news.len() == 1);
        let names: Vec<&str> = news.iter().map(|layer| layer.name.as_str()).collect();
        let kept = current.layers.iter().filter(|have| !names.contains(&have.name.as_str()));
        let all = kept.chain(&news).cloned().collect();
        self.switch(&names.join(","), generation, self.desired.clone(), all);
        refused
    }

    /// Notes that layers are about to be shown in place of those of their names.
    fn accept(&self, news: &[Arc<Layer>], current: &[Arc<Layer>]) -> Result<(), Rejected> {
        let stays = |have: &&Layer| news.iter().all(|layer| layer.name != have.name);
        let stay: Vec<&Layer> = current.iter().map(|have| &**have).filter(stays).collect();
        let news: Vec<&Layer> = news.iter().map(|layer| &**layer).collect();
        self.trust.accept(&news, &stay)
    }

    /// Shows a layer no more that a drive had brought.
    pub(super) fn drop_layer(&mut self, name: &str) {
        let current = self.mount.current();
        let left = current.layers.iter().filter(|have| have.name != name).cloned().collect();
        self.switch(name, None, self.desired.clone(), left);
    }

    // Reading again.

    /// Reads the layers that were asked for and that `which` picks again; what changed is one switch.
    pub(super) fn read_again(&mut self, which: impl Fn(&LayerSpec) -> bool) {
        let specs: Vec<LayerSpec> = self.desired.layers.iter().filter(|spec| which(spec)).cloned().collect();
        let _rest = self.mount.rest();
        let mut read = Vec::new();
        let mut refused = BTreeMap::new();
        for spec in &specs {
            match self.load(spec) {
                Ok(layer) => read.extend(layer),
                // What was shown stays: better old than half.
                Err(error) => {
                    let (origin, reason) = (spec.source.to_string(), error.to_string());
                    self.log.write(Step::Refused { origin, reason: reason.clone() });
                    refused.insert(spec.name.clone(), reason);
                }
            }
        }
        refused.extend(self.show(read));
        self.refused.retain(|name, _| specs.iter().all(|spec| spec.name != *name));
        self.refused.extend(refused);
    }

    /// Reads directory layers again: one of them was found to have changed.
    pub(super) fn rescan(&mut self) {
        self.mount.take_stale();
        self.read_again(|spec| matches!(spec.source, Source::Dir(_)));
    }

    /// Reads everything again: the keys, and what was rolled back too.
    pub(super) fn reload(&mut self) {
        if let Err(error) = self.trust.reload() {
            self.log.write(Step::Refused { origin: "trust".to_owned(), reason: error.to_string() });
        }
        self.held.clear();
        self.mount.take_stale();
        self.read_again(|_| true);
        self.look_at_all("reload");
    }

    /// Reads a layer; gives up the generation kept for a rollback where only that leaves the room.
    fn load(&mut self, spec: &LayerSpec) -> Result<Option<Layer>, DaemonError> {
        let layer = match load(spec, &self.limit, &self.trust, &mut self.followed) {
            Err(DaemonError::NoRoom { .. }) if self.before.take().is_some() => {
                load(spec, &self.limit, &self.trust, &mut self.followed)
            }
            other => other,
        }?;
        Ok(layer.map(|layer| self.ranked(layer)))
    }

    /// Gives a layer the rank that an order gave it.
    pub(super) fn ranked(&self, mut layer: Layer) -> Layer {
        layer.priority = self.desired.ranks.get(&layer.name).copied().unwrap_or(layer.priority);
        layer
    }

    // Requests.

    fn expect(&self, generation: Option<u64>) -> Result<(), Refusal> {
        let number = self.mount.current().number;
        match generation {
            Some(wanted) if wanted != number => Err(Refusal::Conflict(format!(
                "`{}` is at generation {number}, not {wanted}: nothing was changed",
                self.mount.point().display()
            ))),
            _ => Ok(()),
        }
    }

    /// Changes layers: all of `ops` as one switch, or none of them. A layer on a device joins when its
    /// disc has been read, as a switch of its own.
    pub(super) fn apply(&mut self, ops: &[Op], if_generation: Option<u64>) -> Result<(), Refusal> {
        self.expect(if_generation)?;
        let current = self.mount.current();
        let shown = current.layers.iter().map(|layer| (layer.name.clone(), layer.priority)).collect();
        let plan = plan(ops, &self.desired, &shown).map_err(|error| error.to_string())?;
        let mut config = self.config.clone();
        config.layers.clone_from(&plan.desired.layers);
        config.check()?;
        let _rest = self.mount.rest();
        // Everything is read before anything is shown.
        let mut read = Vec::new();
        for spec in &plan.load {
            match self.load(spec) {
                Ok(layer) => read.extend(layer.map(Arc::new)),
                Err(error) => {
                    self.follow_back(&plan.load.iter().map(|spec| spec.name.as_str()).collect());
                    return Err(error.to_string().into());
                }
            }
        }
        let names: BTreeSet<&str> = read.iter().map(|layer| layer.name.as_str()).collect();
        let gone = |name: &str| plan.removed.contains(name) || names.contains(name);
        let stay: Vec<&Layer> =
            current.layers.iter().filter(|layer| !gone(&layer.name)).map(|layer| &**layer).collect();
        let news: Vec<&Layer> = read.iter().map(|layer| &**layer).collect();
        if let Err(rejected) = self.trust.accept(&news, &stay) {
            self.follow_back(&plan.load.iter().map(|spec| spec.name.as_str()).collect());
            return Err(rejected.to_string().into());
        }
        let generation = read.first().and_then(|layer| layer.generation).filter(|_| ops.len() == 1);
        let kept = current.layers.iter().filter(|layer| !gone(&layer.name));
        let all: Vec<Arc<Layer>> = kept
            .chain(&read)
            .map(|layer| match plan.desired.ranks.get(&layer.name) {
                Some(&priority) if priority != layer.priority => {
                    Arc::new(Layer { priority, ..Layer::clone(layer) })
                }
                _ => layer.clone(),
            })
            .collect();
        for name in plan.load.iter().map(|spec| &spec.name).chain(&plan.removed) {
            self.held.remove(name);
            self.refused.remove(name);
        }
        let asked = std::mem::replace(&mut self.desired, plan.desired);
        let devices: Vec<&PathBuf> = plan
            .load
            .iter()
            .filter_map(|spec| match &spec.source {
                Source::Device(path) => Some(path),
                _ => None,
            })
            .collect();
        let unchanged = all.len() == current.layers.len()
            && all.iter().all(|layer| current.layers.iter().any(|have| Arc::ptr_eq(have, layer)));
        // A layer whose disc is not there yet changes nothing.
        if !unchanged || devices.is_empty() {
            self.switch(&ops.iter().map(named).collect::<Vec<_>>().join(","), generation, asked, all);
        }
        self.follow_desired();
        for path in devices {
            if let Some(device) = device_name(path) {
                self.arrived(&device);
            }
        }
        Ok(())
    }

    /// Shows the generation before again.
    pub(super) fn roll_back(&mut self, to: Option<u64>, if_generation: Option<u64>) -> Result<(), Refusal> {
        self.expect(if_generation)?;
        let Some(before) = &self.before else {
            return Err("no earlier generation is kept: nothing to roll back to".to_owned().into());
        };
        let (target, asked) = (before.generation.clone(), before.desired.clone());
        if let Some(to) = to.filter(|to| *to != target.number) {
            let kept = target.number;
            return Err(format!("generation {to} is not kept: only {kept}, the one before this").into());
        }
        let layers = match self.read_before(&target, &asked) {
            Ok(layers) => layers,
            Err(reason) => {
                self.follow_back(&target.layers.iter().map(|layer| layer.name.as_str()).collect());
                return Err(reason.into());
            }
        };
        let current = self.mount.current();
        let comes = |layer: &&Layer| !current.layers.iter().any(|have| same(have, layer));
        let back: Vec<&Layer> = layers.iter().map(|layer| &**layer).filter(comes).collect();
        if let Err(rejected) = self.trust.accept_rollback(&back) {
            self.follow_back(&target.layers.iter().map(|layer| layer.name.as_str()).collect());
            return Err(rejected.to_string().into());
        }
        let stays = |layer: &Layer| layers.iter().any(|have| same(have, layer));
        for layer in current.layers.iter().filter(|layer| !stays(layer)) {
            if let Some(digest) = digest(layer) {
                let hold = Hold { generation: layer.generation, digest };
                self.held.insert(layer.name.clone(), hold);
            }
        }
        for layer in layers.iter().filter(|layer| !current.layers.iter().any(|have| same(have, layer))) {
            // Back again; but what was newer than it and was taken away just now stays away.
            if !current.layers.iter().any(|have| have.name == layer.name) {
                self.held.remove(&layer.name);
            }
        }
        let asked = std::mem::replace(&mut self.desired, asked);
        self.refused.clear();
        self.switch("rollback", None, asked, layers);
        self.follow_desired();
        Ok(())
    }

    /// The layers of the generation before, directories as they are now; or why that is nothing to go back to.
    fn read_before(&mut self, target: &Generation, asked: &Desired) -> Result<Vec<Arc<Layer>>, String> {
        let mut layers = Vec::with_capacity(target.layers.len());
        for layer in &target.layers {
            let Ok(source @ Source::Dir(_)) = layer.origin.parse() else {
                layers.push(layer.clone());
                continue;
            };
            let watch = asked.layers.iter().all(|spec| spec.name != layer.name || spec.watch);
            let (name, priority) = (layer.name.clone(), Some(layer.priority));
            let spec = LayerSpec { name, source, priority, watch };
            let read = load(&spec, &self.limit, &self.trust, &mut self.followed)
                .map_err(|error| error.to_string())?;
            layers.extend(read.map(|read| if same(&read, layer) { layer.clone() } else { Arc::new(read) }));
        }
        let current = self.mount.current();
        let stays = |layer: &Layer| layers.iter().any(|have| same(have, layer));
        if layers.len() == current.layers.len() && current.layers.iter().all(|layer| stays(layer)) {
            return Err(
                "the generation before differs only in what a directory held, which is not kept".to_owned()
            );
        }
        Ok(layers)
    }

    /// After a request that was refused: follows the directories of layers that it tried where they were.
    fn follow_back(&mut self, tried: &BTreeSet<&str>) {
        let followed = |spec: &LayerSpec| spec.watch && matches!(spec.source, Source::Dir(_));
        self.read_again(|spec| followed(spec) && tried.contains(spec.name.as_str()));
        self.follow_desired();
    }

    /// Follows exactly the directories that are asked for.
    fn follow_desired(&mut self) {
        let Followed { follower: Some(follower), failed } = &mut self.followed else { return };
        let dirs = self.desired.layers.iter().filter(|spec| spec.watch);
        let names: BTreeSet<&str> = dirs
            .filter(|spec| matches!(spec.source, Source::Dir(_)))
            .map(|spec| spec.name.as_str())
            .collect();
        follower.retain(&names);
        failed.retain(|name, _| names.contains(name.as_str()));
    }
}

/// What an operation is about, for the event log.
fn named(op: &Op) -> String {
    match op {
        Op::Add(text) | Op::Replace(text) => {
            text.split_once('=').map_or(text.clone(), |(name, _)| name.to_owned())
        }
        Op::Remove(name) => name.clone(),
        Op::Order(names) => names.join(","),
    }
}
