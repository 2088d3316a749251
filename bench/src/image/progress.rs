//! What a build is doing, how far it is and how long yet.
//!
//! mmdebstrap says on standard error which of its stages it has entered. How long each takes relative to the
//! whole is much the same from machine to machine, so the stage and the time that has passed give the time left.

use std::time::Duration;

/// A stage of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Somebody else is building the same image.
    Waiting,
    /// Package lists.
    Lists,
    /// The essential packages.
    Download,
    /// They are unpacked.
    Extract,
    /// They are configured.
    Essential,
    /// All others.
    Packages,
    /// Files, units and hooks of the recipe.
    Customize,
    /// The tree arrives.
    Unpack,
    /// The file system, the initramfs and digests of both.
    FileSystem,
    /// The image is in the cache.
    Done,
}

/// Every stage with the share of a build that has passed when it begins, as seen for both images.
const BEGINS: [(Stage, f64); 10] = [
    (Stage::Waiting, 0.0),
    (Stage::Lists, 0.0),
    (Stage::Download, 0.08),
    (Stage::Extract, 0.10),
    (Stage::Essential, 0.33),
    (Stage::Packages, 0.45),
    (Stage::Customize, 0.88),
    (Stage::Unpack, 0.89),
    (Stage::FileSystem, 0.93),
    (Stage::Done, 1.0),
];

impl Stage {
    /// The stage that a line of mmdebstrap's standard error announces.
    pub(crate) fn announced_by(line: &str) -> Option<Self> {
        let said = line.strip_prefix("I: ")?;
        [
            ("running apt-get update", Self::Lists),
            ("downloading packages", Self::Download),
            ("extracting archives", Self::Extract),
            ("installing essential packages", Self::Essential),
            ("installing remaining packages", Self::Packages),
            ("running --customize-hook", Self::Customize),
            ("creating tarball", Self::Unpack),
        ]
        .into_iter()
        .find_map(|(start, stage)| said.starts_with(start).then_some(stage))
    }

    /// What is going on, for a person.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Waiting => "waiting for another build of the same image",
            Self::Lists => "reading package lists",
            Self::Download => "downloading the essential packages",
            Self::Extract => "unpacking the essential packages",
            Self::Essential => "installing the essential packages",
            Self::Packages => "installing packages",
            Self::Customize => "configuring",
            Self::Unpack => "unpacking",
            Self::FileSystem => "making the file system",
            Self::Done => "done",
        }
    }

    fn begins(self) -> f64 {
        BEGINS.iter().find(|(stage, _)| *stage == self).map_or(0.0, |(_, share)| *share)
    }
}

/// One report of a build's progress.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Name of the image.
    pub image: String,
    /// What is being done.
    pub stage: Stage,
    /// How much of the build is done: 0 to 1.
    pub done: f64,
    /// How long it will still take; nothing before the first stage has passed.
    pub left: Option<Duration>,
}

impl Progress {
    /// What can be said when `stage` begins after the build has run for `elapsed`.
    pub(crate) fn at(image: &str, stage: Stage, elapsed: Duration) -> Self {
        let done = stage.begins();
        let left = elapsed.as_secs_f64() * (1.0 - done) / done;
        // Nothing is known before the first stage has passed: the quotient is no number then.
        let left = Duration::try_from_secs_f64(left).ok();
        Self { image: image.to_owned(), stage, done, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_what_mmdebstrap_says() {
        assert_eq!(Stage::announced_by("I: downloading packages with apt..."), Some(Stage::Download));
        assert_eq!(
            Stage::announced_by("I: running --customize-hook in shell: sh -c 'x'"),
            Some(Stage::Customize)
        );
        assert_eq!(Stage::announced_by("I: success in 35.5926 seconds"), None);
        assert_eq!(Stage::announced_by("W: running apt-get update"), None);
    }

    #[test]
    fn shares_only_grow_and_end_at_one() {
        assert!(BEGINS.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        assert!((Stage::Done.begins() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn time_left_is_extrapolated_from_time_passed() {
        let begun = Progress::at("guest", Stage::Lists, Duration::ZERO);
        assert_eq!(begun.left, None);
        let late = Progress::at("guest", Stage::FileSystem, Duration::from_secs(93));
        assert!((late.left.unwrap().as_secs_f64() - 7.0).abs() < 0.01);
    }
}
