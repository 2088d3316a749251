//! What to do about devices: decisions only, no effects.

use std::time::Duration;

use crate::layer::Layer;

/// How long to wait before try number `attempt` (from 2) at a device that was not ready.
///
/// A drive is ready some tens of milliseconds after its event, and spins up for seconds at worst:
/// 20 ms doubling to 1 s, for about 12 s; then the next event decides.
pub fn backoff(attempt: u32) -> Option<Duration> {
    match attempt {
        0 | 1 => Some(Duration::ZERO),
        2..=16 => Some(Duration::from_millis(20_u64 << (attempt - 2).min(6)).min(Duration::from_secs(1))),
        _ => None,
    }
}

/// Whether an image may take a layer's place.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is shown.
    Take,
    /// It is refused.
    Refuse(String),
}

/// Decides on an image that arrives for a layer.
///
/// The generation of a class never goes back, unless that is allowed: who can attach a device could
/// otherwise bring old addresses or revoked keys back. The same generation again is taken: it is the
/// same disc after a re-attachment.
pub fn judge(shown: Option<&Layer>, arrived: &Layer, accept_older: bool) -> Verdict {
    match (shown.and_then(|layer| layer.generation), arrived.generation) {
        (Some(shown), Some(new)) if new < shown && !accept_older => Verdict::Refuse(format!(
            "generation {new} of `{}` is older than {shown}, which is shown",
            arrived.name
        )),
        (Some(shown), None) if !accept_older => Verdict::Refuse(format!(
            "the image for `{}` has no manifest, generation {shown} is shown: a plain image cannot take its place",
            arrived.name
        )),
        _ => Verdict::Take,
    }
}

/// An image that was rolled back: it is not taken again by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The generation that its manifest states.
    pub generation: Option<u64>,
    /// Its digest.
    pub digest: String,
}

impl Hold {
    /// Whether an image that arrives for the layer is held back: the same, or one that is not newer.
    pub fn covers(&self, generation: Option<u64>, digest: impl FnOnce() -> Option<String>) -> bool {
        match (self.generation, generation) {
            (Some(held), Some(arrived)) => arrived <= held,
            _ => digest().is_some_and(|digest| digest == self.digest),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::layer::{LayerDir, Meta};

    fn layer(generation: Option<u64>) -> Layer {
        Layer {
            name: "infrastructure".to_owned(),
            priority: 1,
            origin: "device:/dev/sr0".to_owned(),
            class: None,
            generation,
            vouched: None,
            root: Arc::new(LayerDir::new(Meta::bare_dir())),
        }
    }

    #[test]
    fn generations_never_go_back() {
        assert_eq!(judge(None, &layer(Some(1)), false), Verdict::Take);
        assert_eq!(judge(Some(&layer(Some(1))), &layer(Some(2)), false), Verdict::Take);
        assert_eq!(judge(Some(&layer(Some(2))), &layer(Some(2)), false), Verdict::Take);
        assert!(matches!(judge(Some(&layer(Some(2))), &layer(Some(1)), false), Verdict::Refuse(_)));
        assert!(matches!(judge(Some(&layer(Some(2))), &layer(None), false), Verdict::Refuse(_)));
        assert_eq!(judge(Some(&layer(Some(2))), &layer(Some(1)), true), Verdict::Take);
        assert_eq!(judge(Some(&layer(None)), &layer(None), false), Verdict::Take);
    }

    #[test]
    fn what_was_rolled_back_is_held() {
        let digest = |text: &str| Some(text.to_owned());
        let hold = Hold { generation: Some(3), digest: "a".to_owned() };
        assert!(hold.covers(Some(3), || digest("b")) && hold.covers(Some(2), || None));
        assert!(!hold.covers(Some(4), || digest("a")));
        let plain = Hold { generation: None, digest: "a".to_owned() };
        assert!(plain.covers(None, || digest("a")));
        assert!(!plain.covers(None, || digest("b")) && !plain.covers(None, || None));
    }

    #[test]
    fn tries_are_quick_at_first_and_end() {
        let waits: Vec<Duration> = (2..).map_while(backoff).collect();
        assert_eq!(waits[0], Duration::from_millis(20));
        assert_eq!(waits[3], Duration::from_millis(160));
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(1)));
        let total: Duration = waits.iter().sum();
        assert!(total > Duration::from_secs(8) && total < Duration::from_secs(15), "{total:?}");
    }
}
