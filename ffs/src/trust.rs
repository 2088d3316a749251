//! Which images are taken: those that a trusted key vouches for, of a generation that never goes back.
//!
//! Without keys every image is taken that is what its own manifest says. With keys an image or device
//! layer must be signed by one that is for its class, and its generation must be above the last one that
//! was accepted of that class, or the very same manifest again: after a reboot or a new attachment the
//! same disc is still right. Accepted is what is shown, and not what was read for a change that then failed. What was accepted is
//! kept in a file, so that a restart forgets nothing; where that cannot be written, it holds as long as the process. A rollback
//! is an order to go back: what it shows is what was accepted last from then on.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use ctx_format::ClassName;
use ctx_format::check::{CheckError, Checked, Claim, check};
use ctx_format::manifest::Sha256;
use ctx_format::read::Image;
use ctx_format::sign::{KeyError, PublicKey, Ring, SignatureError};
use ctx_io::{bounded, durable};
use serde::{Deserialize, Serialize};

use crate::config::{Config, matches};
use crate::control::mount_name;
use crate::handover::state;
use crate::layer::{Layer, Vouched};

/// Where the state is kept unless the configuration says otherwise.
const STATE_DIR: &str = "/var/lib/ffs";
/// Room for a mount's name in a file's, whose end and temporary prefix are ours.
const LONGEST_NAME: usize = 200;

/// Why there is no trust to start with.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A key file or its directory cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of a key file is no key.
    #[error("`{}`, line {line}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        source: KeyError,
    },
    /// `trust` is given and names no key: every image would be refused.
    #[error("`trust` names no key ({0}): put the line that `ctx keygen` wrote there")]
    NoKey(String),
    /// The images of a start exclude one another.
    #[error("{0}: one mount shows one image of a class")]
    Together(String),
    /// The state cannot be understood.
    #[error("`{}` does not say which generations were accepted ({source}): remove it to begin anew, and old images are taken once", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// An image that is not taken.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What it claims to be, where that can be read.
    pub claim: Option<Claim>,
    /// Why it is not taken.
    #[source]
    pub reason: Reason,
}

/// Why an image is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It is not what its manifest says, or nobody who is trusted vouches for it.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// Nobody who is trusted vouches for it any more.
    #[error(transparent)]
    Revoked(SignatureError),
    /// Older than what was accepted before.
    #[error("generation {found} of class `{class}` is older than {accepted}, which was accepted")]
    Older {
        /// The class.
        class: ClassName,
        /// The image's generation.
        found: u64,
        /// The last one accepted.
        accepted: u64,
    },
    /// Two images of one generation.
    #[error("generation {generation} of class `{class}` was accepted with another content")]
    Other {
        /// The class.
        class: ClassName,
        /// The generation of both.
        generation: u64,
    },
    /// For another machine.
    #[error("the image is for instance `{found}`, this is `{expected}`")]
    Instance {
        /// Whom it is for.
        found: String,
        /// Who this is.
        expected: String,
    },
}

/// What was last accepted of each class, as it lies in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ledger {
    accepted: BTreeMap<ClassName, Accepted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    generation: u64,
    /// SHA-256 of the manifest.
    manifest: Sha256,
}

impl Ledger {
    /// Whether an image may follow what was accepted; whether that is anything new.
    fn judge(&self, class: &ClassName, image: Accepted) -> Result<bool, Reason> {
        let (class, generation) = (class.clone(), image.generation);
        match self.accepted.get(&class) {
            None => Ok(true),
            Some(last) if generation > last.generation => Ok(true),
            Some(last) if generation < last.generation => {
                Err(Reason::Older { class, found: generation, accepted: last.generation })
            }
            Some(last) if last.manifest != image.manifest => Err(Reason::Other { class, generation }),
            Some(_) => Ok(false),
        }
    }

    /// The ledger after images that are shown together; `None` where that is the same. Of one class only one may be among
    /// them.
    fn after(&self, images: &[(&ClassName, Accepted)]) -> Result<Option<Self>, Reason> {
        let mut next = self.clone();
        let mut new = false;
        // The newest first, so that the order in which they are given does not matter.
        let mut images = images.to_vec();
        images.sort_by_key(|(_, image)| std::cmp::Reverse(image.generation));
        for (class, image) in images {
            if next.judge(class, image)? {
                next.accepted.insert(class.clone(), image);
                new = true;
            }
        }
        Ok(new.then_some(next))
    }
}

/// What a layer states that a key vouches for.
fn stated(layer: &Layer) -> Option<(&ClassName, Accepted)> {
    let accepted = Accepted { generation: layer.generation?, manifest: layer.vouched?.manifest };
    Some((layer.class.as_ref()?, accepted))
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    path: PathBuf,
    /// Why it could not be written last time.
    unwritten: Option<String>,
}

impl State {
    /// The ledger after images that are shown beside those that stay; `None` where that is the same.
    fn after<'a>(
        &mut self,
        news: impl IntoIterator<Item = &'a Layer>,
        stay: impl IntoIterator<Item = &'a Layer>,
    ) -> Result<Option<Ledger>, Reason> {
        let images: Vec<_> = news.into_iter().filter_map(stated).collect();
        if images.is_empty() {
            return Ok(None);
        }
        self.catch_up();
        // What stays was judged when it came; here it is only in the way of another of its class.
        let stay: Vec<_> = stay.into_iter().filter_map(stated).collect();
        let together: Vec<_> = images.iter().chain(&stay).copied().collect();
        Ledger::default().after(&together)?;
        self.ledger.after(&images)
    }

    /// Takes in what another mount has written into the same file meanwhile: what is newer there holds here, too.
    fn catch_up(&mut self) {
        let Ok(written) = read_ledger(&self.path) else { return };
        for (class, theirs) in written.accepted {
            let own = self.ledger.accepted.get(&class);
            if own.is_none_or(|own| own.generation < theirs.generation) {
                self.ledger.accepted.insert(class, theirs);
            }
        }
    }

    /// Goes on with another ledger, or with the same, and writes it down.
    fn keep(&mut self, ledger: Option<Ledger>) {
        if let Some(ledger) = ledger {
            self.ledger = ledger;
        }
        self.unwritten = write_ledger(&self.path, &self.ledger).err().map(|error| {
            tracing::warn!(%error, path = %self.path.display(), "the accepted generations are not kept");
            error.to_string()
        });
    }
}

/// Decides which images are taken.
#[derive(Debug)]
pub struct Trust {
    patterns: Vec<String>,
    instance: Option<String>,
    /// The keys; none when images need not be signed.
    ring: ArcSwapOption<Ring>,
    state: Mutex<State>,
}

impl Trust {
    /// Takes every image that is what its own manifest says, of any generation.
    pub fn without_keys() -> Self {
        Self {
            patterns: Vec::new(),
            instance: None,
            ring: ArcSwapOption::empty(),
            state: Mutex::new(State::default()),
        }
    }

    /// The trust that a configuration asks for, for the mount at `point`.
    ///
    /// # Errors
    /// [`TrustError`] when keys are asked for and cannot be had, or the state is damaged.
    pub fn new(config: &Config, point: &Path) -> Result<Self, TrustError> {
        let path = config.trust_state.clone().unwrap_or_else(|| default_state(point));
        let (ring, ledger) = if config.trust.is_empty() {
            (None, Ledger::default())
        } else {
            (Some(ring(&config.trust)?), read_ledger(&path)?)
        };
        Ok(Self {
            patterns: config.trust.clone(),
            instance: config.instance.clone(),
            ring: ArcSwapOption::from_pointee(ring),
            state: Mutex::new(State { ledger, path, unwritten: None }),
        })
    }

    /// The trust of another program: the keys that are in force, whatever lies in their files now, and
    /// what was accepted, whether or not that could be written.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub(crate) fn resume(config: &Config, point: &Path, state: &state::Trust) -> Result<Self, String> {
        let ring = state.keys.as_ref().map(|lines| {
            let keys = lines.iter().map(|line| line.parse::<PublicKey>());
            keys.collect::<Result<Ring, _>>().map_err(|error| error.to_string())
        });
        let ledger = serde_json::from_value(state.accepted.clone()).map_err(|error| error.to_string())?;
        let path = config.trust_state.clone().unwrap_or_else(|| default_state(point));
        Ok(Self {
            patterns: config.trust.clone(),
            instance: config.instance.clone(),
            ring: ArcSwapOption::from_pointee(ring.transpose()?),
            state: Mutex::new(State { ledger, path, unwritten: state.unwritten.clone() }),
        })
    }

    /// What [`Trust::resume`] takes.
    pub(crate) fn to_state(&self) -> state::Trust {
        let keys = |ring: &Ring| ring.keys().map(ToString::to_string).collect();
        let own = self.state();
        state::Trust {
            keys: self.ring.load().as_deref().map(keys),
            // Names and numbers: serializing cannot fail.
            accepted: serde_json::to_value(&own.ledger).unwrap_or_default(),
            unwritten: own.unwritten.clone(),
        }
    }

    /// Reads the keys again: one that was removed vouches for nothing more from now on.
    ///
    /// # Errors
    /// [`TrustError`]; the keys stay as they were.
    pub fn reload(&self) -> Result<(), TrustError> {
        if !self.patterns.is_empty() {
            self.ring.store(Some(ring(&self.patterns)?.into()));
        }
        Ok(())
    }

    /// Checks an image that was indexed from `bytes`. `None` is a plain image, of which nothing is claimed. Who vouches for it is
    /// known where there are keys. Nothing is noted: see [`Trust::accept`].
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn admit(&self, image: &Image, bytes: &[u8]) -> Result<Option<(Checked, Option<Vouched>)>, Refusal> {
        let ring = self.ring.load();
        let checked = check(image, bytes, ring.as_deref())
            .map_err(|refused| Refusal { claim: refused.claim, reason: refused.error.into() })?;
        let Some(checked) = checked else { return Ok(None) };
        let Some(key) = checked.key else { return Ok(Some((checked, None))) };
        self.judge(&checked).map_err(|reason| {
            let manifest = &checked.manifest;
            let claim = Claim { class: manifest.class.clone(), generation: manifest.generation };
            Refusal { claim: Some(claim), reason }
        })?;
        let vouched = Vouched { manifest: checked.digest, key };
        Ok(Some((checked, Some(vouched))))
    }

    fn judge(&self, image: &Checked) -> Result<(), Reason> {
        if let Some(expected) = self.instance.as_ref()
            && image.manifest.instance_id.as_str() != expected
        {
            let found = image.manifest.instance_id.to_string();
            return Err(Reason::Instance { found, expected: expected.clone() });
        }
        let accepted = Accepted { generation: image.manifest.generation, manifest: image.digest };
        self.state().ledger.judge(&image.manifest.class, accepted).map(drop)
    }

    /// The layers, where whoever vouched for them is still trusted: keys may have been removed since they were read.
    fn vouched<'a>(&self, layers: impl IntoIterator<Item = &'a Layer>) -> Result<Vec<&'a Layer>, Reason> {
        let ring = self.ring.load();
        let layers: Vec<&Layer> = layers.into_iter().collect();
        for layer in &layers {
            if let (Some(ring), Some(vouched), Some(class)) = (&*ring, layer.vouched, &layer.class) {
                ring.vouches(vouched.key, class).map_err(Reason::Revoked)?;
            }
        }
        Ok(layers)
    }

    /// Whether layers may be shown beside those that stay, by the keys, by what was accepted and by one another: of one class
    /// there is only one image.
    ///
    /// # Errors
    /// [`Reason::Revoked`], [`Reason::Older`], [`Reason::Other`].
    pub fn may_show<'a>(
        &self,
        news: impl IntoIterator<Item = &'a Layer>,
        stay: impl IntoIterator<Item = &'a Layer>,
    ) -> Result<(), Reason> {
        self.state().after(self.vouched(news)?, stay).map(drop)
    }

    /// Notes the generations of layers that are about to be shown beside those that stay.
    ///
    /// # Errors
    /// As of [`Trust::may_show`]: another was accepted, or a key removed meanwhile. Nothing is noted then.
    pub fn accept<'a>(
        &self,
        news: impl IntoIterator<Item = &'a Layer>,
        stay: impl IntoIterator<Item = &'a Layer>,
    ) -> Result<(), Reason> {
        let news = self.vouched(news)?;
        let mut state = self.state();
        let next = state.after(news, stay)?;
        // Written before it is shown: a crash in between leaves an image that is taken again. What
        // could not be written is tried again with each image.
        if next.is_some() || state.unwritten.is_some() {
            state.keep(next);
        }
        Ok(())
    }

    /// Notes the generations of layers that a rollback shows again, whatever was accepted after them: the next start must take
    /// them.
    ///
    /// # Errors
    /// [`Reason::Revoked`]; nothing is noted then.
    pub fn accept_rollback<'a>(&self, layers: impl IntoIterator<Item = &'a Layer>) -> Result<(), Reason> {
        let layers = self.vouched(layers)?;
        let mut state = self.state();
        let mut next = state.ledger.clone();
        for (class, image) in layers.into_iter().filter_map(stated) {
            next.accepted.insert(class.clone(), image);
        }
        if next != state.ledger {
            state.keep(Some(next));
        }
        Ok(())
    }

    /// What does not hold, for the status.
    pub fn reduced(&self) -> Option<String> {
        let state = self.state();
        state.unwritten.as_ref().map(|error| {
            format!(
                "accepted generations cannot be written to `{}` ({error}): an older image is refused only until ffs ends",
                state.path.display()
            )
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn default_state(point: &Path) -> PathBuf {
    Path::new(STATE_DIR).join(format!("{}.json", mount_name(point, LONGEST_NAME)))
}

fn read_ledger(path: &Path) -> Result<Ledger, TrustError> {
    match bounded::read(path, bounded::STATE) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|source| TrustError::State { path: path.to_owned(), source }),
        // No directory either: whether one can be made is found out at the first image.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Ledger::default())
        }
        Err(source) => Err(TrustError::Read { path: path.to_owned(), source }),
    }
}

fn write_ledger(path: &Path, ledger: &Ledger) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut json = serde_json::to_vec_pretty(ledger)?;
    json.push(b'\n');
    durable::write(path, &json)
}

/// The keys of all files that the patterns name. Empty lines and those that start with `#` are skipped.
fn ring(patterns: &[String]) -> Result<Ring, TrustError> {
    let mut keys = Vec::new();
    for path in expand(patterns)? {
        let text = bounded::read_to_string(&path, bounded::KEYS)
            .map_err(|source| TrustError::Read { path: path.clone(), source })?;
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |source| TrustError::Key { path: path.clone(), line: index + 1, source };
            keys.push(line.parse::<PublicKey>().map_err(wrong)?);
        }
    }
    if keys.is_empty() { Err(TrustError::NoKey(patterns.join(", "))) } else { Ok(keys.into_iter().collect()) }
}

/// The files that patterns name, in order; a name without `*` or `?` stands for itself.
fn expand(patterns: &[String]) -> Result<Vec<PathBuf>, TrustError> {
    let mut files = Vec::new();
    for pattern in patterns {
        let path = Path::new(pattern);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.contains(['*', '?']) {
            files.push(path.to_owned());
            continue;
        }
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries =
            std::fs::read_dir(dir).map_err(|source| TrustError::Read { path: dir.to_owned(), source })?;
        let mut found: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| matches(name.as_bytes(), entry.file_name().as_encoded_bytes()))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        files.append(&mut found);
    }
    Ok(files)
}

#[cfg(test)]
#[path = "trust_tests.rs"]
mod tests;
