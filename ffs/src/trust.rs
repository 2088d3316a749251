//! Which images are taken: those that a trusted key vouches for, of a generation that never goes back.
//!
//! Without keys every image is taken that is what its own manifest says. With keys an image or device
//! layer must be signed by one that is for its class, and its generation must be above the last one that
//! was accepted of that class, or the very same manifest again: after a reboot or a new attachment the
//! same disc is still right. Accepted is what is shown, and not what was read for a change that then failed. What was accepted is
//! kept in a file (`ledger`), so that a restart forgets nothing; where that cannot be written, it holds as long as the process.
//! A rollback is an order to go back: what it shows is what was accepted last from then on. Of one class, one image is shown at a
//! time: otherwise either would be too old beside the other.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use ctx_format::ClassName;
use ctx_format::check::{CheckError, Checked, Claim, check};
use ctx_format::read;
use ctx_format::sign::{KeyError, PublicKey, Ring, SignatureError};
use ctx_io::bounded;

use crate::config::{Config, matches};
use crate::control::mount_name;
use crate::handover::state;
use crate::layer::{Layer, Vouched};
use crate::ledger::{self, Image, Ledger};

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
    /// An image of a start is not taken.
    #[error(transparent)]
    Image(#[from] Rejected),
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
    /// Another layer has an image of the class.
    #[error(transparent)]
    Beside(Box<Beside>),
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

/// Two layers have images of one class.
#[derive(Debug, thiserror::Error)]
#[error(
    "layers `{layer}` (generation {generation}) and `{other}` (generation {shown}) are both of class `{class}`, and one image of a \
     class is shown at a time: replace or remove `{other}` first"
)]
pub struct Beside {
    /// The class of both.
    pub class: ClassName,
    /// The layer that is not taken.
    pub layer: String,
    /// Its generation.
    pub generation: u64,
    /// The layer that is shown, or asked for together with it.
    pub other: String,
    /// The generation of that.
    pub shown: u64,
}

/// A layer that may not be shown.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// Its name.
    pub layer: String,
    /// Why not.
    #[source]
    pub reason: Reason,
}

/// What a layer states that a key vouches for.
fn stated(layer: &Layer) -> Option<(&ClassName, Image)> {
    let image = Image { generation: layer.generation?, manifest: layer.vouched?.manifest };
    Some((layer.class.as_ref()?, image))
}

/// Whether a layer's image is the only one of its class among those that are shown together.
fn alone(layer: &Layer, together: &[&Layer]) -> Result<(), Reason> {
    let Some((class, image)) = stated(layer) else { return Ok(()) };
    for other in together {
        if let Some((same, beside)) = stated(other)
            && same == class
            && beside != image
        {
            return Err(Reason::Beside(Box::new(Beside {
                class: class.clone(),
                layer: layer.name.clone(),
                generation: image.generation,
                other: other.name.clone(),
                shown: beside.generation,
            })));
        }
    }
    Ok(())
}

/// Asks of each layer whether it may be shown, the last one first, until one may not.
fn each(news: &[&Layer], mut may: impl FnMut(&Layer) -> Result<(), Reason>) -> Result<(), Rejected> {
    news.iter()
        .rev()
        .try_for_each(|layer| may(layer).map_err(|reason| Rejected { layer: layer.name.clone(), reason }))
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    path: PathBuf,
    /// Why it could not be written last time.
    unwritten: Option<String>,
}

impl State {
    /// Takes in what another mount has written into the same file meanwhile.
    fn catch_up(&mut self) {
        if let Ok(written) = ledger::read(&self.path) {
            self.ledger.join(&written);
        }
    }

    /// Changes what was accepted, here and in the file. Where that cannot be written, it holds here, and the next change
    /// tries again.
    ///
    /// # Errors
    /// Those of `change`; nothing has changed then.
    fn change<E>(&mut self, change: impl FnOnce(&mut Ledger) -> Result<(), E>) -> Result<(), E> {
        let lock = ledger::lock(&self.path);
        let written = ledger::read(&self.path);
        if let Ok(written) = &written {
            self.ledger.join(written);
        }
        let mut next = self.ledger.clone();
        change(&mut next)?;
        self.ledger = next;
        let kept = match (&written, &lock) {
            (Ok(written), _) if *written == self.ledger => Ok(()),
            (Ok(_), Ok(lock)) => {
                ledger::write(&self.path, &self.ledger, lock).map_err(|error| error.to_string())
            }
            (Ok(_), Err(error)) => Err(error.to_string()),
            // Nor is what cannot be understood written over: it may be of a newer program.
            (Err(error), _) => Err(error.to_string()),
        };
        if let Err(error) = &kept {
            tracing::warn!(%error, path = %self.path.display(), "the accepted generations are not kept");
        }
        self.unwritten = kept.err();
        Ok(())
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
            (Some(ring(&config.trust)?), ledger::read(&path)?)
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
    pub fn admit(
        &self,
        image: &read::Image,
        bytes: &[u8],
    ) -> Result<Option<(Checked, Option<Vouched>)>, Refusal> {
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
        let mut state = self.state();
        state.catch_up();
        let read = Image { generation: image.manifest.generation, manifest: image.digest };
        state.ledger.judge(&image.manifest.class, read)
    }

    /// Whether whoever vouched for a layer is still trusted: keys may have been removed since it was read.
    fn vouched(&self, layer: &Layer) -> Result<(), Reason> {
        match (&*self.ring.load(), layer.vouched, &layer.class) {
            (Some(ring), Some(vouched), Some(class)) => {
                ring.vouches(vouched.key, class).map_err(Reason::Revoked)
            }
            _ => Ok(()),
        }
    }

    /// Whether layers may be shown beside those that stay, by the keys and by one another: of one class there is only one image.
    fn together(&self, news: &[&Layer], stay: &[&Layer]) -> Result<(), Rejected> {
        let together = [news, stay].concat();
        each(news, |layer| self.vouched(layer).and_then(|()| alone(layer, &together)))
    }

    /// Whether layers may be shown beside those that stay, by the keys, by what was accepted and by one another.
    ///
    /// # Errors
    /// [`Reason::Revoked`], [`Reason::Beside`], [`Reason::Older`], [`Reason::Other`], for the last of `news` that one holds for.
    pub fn may_show(&self, news: &[&Layer], stay: &[&Layer]) -> Result<(), Rejected> {
        self.together(news, stay)?;
        if !news.iter().any(|layer| stated(layer).is_some()) {
            return Ok(());
        }
        let mut state = self.state();
        state.catch_up();
        each(news, |layer| stated(layer).map_or(Ok(()), |(class, image)| state.ledger.judge(class, image)))
    }

    /// Notes the generations of layers that are about to be shown beside those that stay.
    ///
    /// # Errors
    /// As of [`Trust::may_show`]; nothing is noted then.
    pub fn accept(&self, news: &[&Layer], stay: &[&Layer]) -> Result<(), Rejected> {
        self.together(news, stay)?;
        // Written before it is shown: a crash in between leaves an image that is taken again.
        self.note(news, |ledger| {
            each(news, |layer| stated(layer).map_or(Ok(()), |(class, image)| ledger.accept(class, image)))
        })
    }

    /// Notes the generations of layers that a rollback shows again, whatever was accepted after them: the next start must take
    /// them.
    ///
    /// # Errors
    /// [`Reason::Revoked`]; nothing is noted then.
    pub fn accept_rollback(&self, layers: &[&Layer]) -> Result<(), Rejected> {
        each(layers, |layer| self.vouched(layer))?;
        self.note(layers, |ledger| {
            for (class, image) in layers.iter().copied().filter_map(stated) {
                ledger.roll_back(class, image);
            }
            Ok(())
        })
    }

    /// Changes the ledger for layers, where there is anything to note of them. What could not be written is tried again.
    fn note(
        &self,
        layers: &[&Layer],
        change: impl FnOnce(&mut Ledger) -> Result<(), Rejected>,
    ) -> Result<(), Rejected> {
        let mut state = self.state();
        let images = layers.iter().any(|layer| stated(layer).is_some());
        if images || state.unwritten.is_some() { state.change(change) } else { Ok(()) }
    }

    /// What does not hold, for the status.
    pub fn reduced(&self) -> Option<String> {
        let state = self.state();
        state.unwritten.as_ref().map(|error| {
            format!(
                "accepted generations cannot be written to `{}` ({error}): an older image is refused, and a rollback holds, only until ffs ends",
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
