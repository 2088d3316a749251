//! Each file system: how it is started, where it comes from, and what it cannot do.
//!
//! Every one gets the options with which it is fastest for files that change only by a swap of a
//! layer: long time-outs, the page cache kept. mergerfs keeps it by `auto-full` and not by `full`, with which a reader
//! never saw the content of other branches (2.33.5). What was used is in the manifest of a run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::swap::Control;
use crate::metric;
use crate::scenario::Arm;

/// The first version of mergerfs that lets the kernel read files of branches by itself.
const MERGERFS_PASSTHROUGH: (u32, u32) = (2, 41);
/// The first version of Linux that does it.
const LINUX_PASSTHROUGH: (u32, u32) = (6, 9);
/// Name of the layer that `ffs` swaps.
const SWAPPED: &str = "changed";
/// Priority of the highest layer in `ffs`; those below count down.
const HIGHEST: u16 = 1000;

/// What a run says of a file system beside its samples.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// What the program says of its version; the kernel's for one in the kernel. Empty for a program that is not there.
    pub version: String,
    /// The command that mounted the small union, or the mount's type and options.
    pub command: String,
    /// Why it was not measured at all.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub absent: Option<String>,
    /// What it cannot do: a metric and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub cannot: BTreeMap<String, String>,
}

/// The notes of a run, by arm.
pub type Notes = BTreeMap<String, Note>;

/// How a file system is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// Nothing is mounted: this folder is shown as it is.
    Plain(PathBuf),
    /// The kernel mounts it.
    Kernel {
        /// Type of the file system.
        kind: &'static str,
        /// Its options.
        options: String,
    },
    /// A program mounts it and stays in the foreground.
    Program {
        /// The program.
        program: OsString,
        /// Its arguments.
        arguments: Vec<OsString>,
    },
}

impl Start {
    /// For the manifest.
    pub fn describe(&self) -> String {
        match self {
            Self::Plain(_) => "files in tmpfs, nothing mounted".into(),
            Self::Kernel { kind, options } => format!("mount -t {kind} -o ro,{options}"),
            Self::Program { program, arguments } => {
                let words = std::iter::once(program).chain(arguments).map(|word| word.to_string_lossy());
                words.collect::<Vec<_>>().join(" ")
            }
        }
    }
}

/// Where a union is to be mounted, and what its program may use.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// The mount point.
    pub point: &'a Path,
    /// The `ffs` program.
    pub ffs: &'a Path,
    /// A control socket for it.
    pub socket: &'a Path,
    /// An empty configuration for it, so that the machine's own is not read.
    pub config: &'a Path,
}

/// The program of an arm with its Debian package; none for what is in the kernel or our own.
pub const fn package(arm: Arm) -> Option<(&'static str, &'static str)> {
    match arm {
        Arm::FuseOverlayfs => Some(("fuse-overlayfs", "fuse-overlayfs")),
        Arm::Mergerfs | Arm::MergerfsPassthrough => Some(("mergerfs", "mergerfs")),
        Arm::UnionfsFuse => Some(("unionfs", "unionfs-fuse")),
        _ => None,
    }
}

/// Why an arm's program cannot be run here: no release of a distribution has all of them. `has` says whether a program is
/// on the path.
pub fn not_installed(arm: Arm, has: impl Fn(&str) -> bool) -> Option<String> {
    let (program, package) = package(arm)?;
    (!has(program)).then(|| format!("the program {program} is not installed (Debian package {package})"))
}

/// Why an arm cannot be measured with the version that is installed, on the Linux that runs.
pub fn too_old(arm: Arm, version: &str, linux: &str) -> Option<String> {
    let lacks = |what: &str, version: &str, (major, minor): (u32, u32)| match numbers(version) {
        Some(found) if found >= (major, minor) => None,
        Some((a, b)) => Some(format!("{what} {a}.{b} has no passthrough, which came with {major}.{minor}")),
        None => {
            Some(format!("the version of {what} cannot be told from {version:?}; {major}.{minor} is needed"))
        }
    };
    match arm {
        Arm::MergerfsPassthrough => lacks("mergerfs", version, MERGERFS_PASSTHROUGH)
            .or_else(|| lacks("Linux", linux, LINUX_PASSTHROUGH)),
        Arm::FfsPassthrough => lacks("Linux", linux, LINUX_PASSTHROUGH),
        _ => None,
    }
}

/// The first two numbers of a version in a sentence.
fn numbers(version: &str) -> Option<(u32, u32)> {
    version.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

/// What an arm cannot do by its nature, with the metrics that have no value because of it.
pub fn cannot(arm: Arm) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut add = |metrics: &[&str], why: &str| {
        all.extend(metrics.iter().map(|metric| ((*metric).to_owned(), why.to_owned())));
    };
    match arm {
        Arm::Native => {
            add(&[metric::SWAP_CACHED, metric::INVALIDATE, metric::STALE], "it has no layers");
            add(&[metric::MANY_MOUNT, metric::MANY_MEMORY], "nothing is mounted");
        }
        Arm::Overlayfs | Arm::FuseOverlayfs | Arm::UnionfsFuse => {
            add(&metric::CHANGES, "its layers are fixed when it is mounted");
        }
        _ => {}
    }
    if arm == Arm::Overlayfs {
        add(&[metric::MANY_MEMORY], "it is in the kernel, without a program of its own");
    }
    all
}

/// How an arm shows `layers`, highest first; `native` is the folder that stands for a union.
pub fn start(arm: Arm, layers: &[PathBuf], native: &Path, place: &Place<'_>) -> Start {
    let paths = |suffix: &str| -> String {
        layers.iter().map(|layer| format!("{}{suffix}", layer.display())).collect::<Vec<_>>().join(":")
    };
    let program = |name: &str, words: Vec<String>| {
        let arguments = words.into_iter().map(OsString::from).chain([place.point.into()]).collect();
        Start::Program { program: name.into(), arguments }
    };
    match arm {
        Arm::Overlayfs => Start::Kernel { kind: "overlay", options: format!("lowerdir={}", paths("")) },
        Arm::FuseOverlayfs => {
            program("fuse-overlayfs", vec!["-f".into(), "-o".into(), format!("lowerdir={}", paths(""))])
        }
        Arm::Mergerfs | Arm::MergerfsPassthrough => {
            let mut options =
                "cache.files=auto-full,cache.attr=3600,cache.entry=3600,cache.negative_entry=3600,\
                               cache.readdir=true,cache.symlinks=true"
                    .to_owned();
            if arm == Arm::MergerfsPassthrough {
                options.push_str(",passthrough.io=ro");
            }
            program("mergerfs", vec!["-f".into(), "-o".into(), options, paths("=RO")])
        }
        Arm::UnionfsFuse => {
            let options = "ro,kernel_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600";
            program("unionfs", vec!["-f".into(), "-o".into(), options.into(), paths("=RO")])
        }
        Arm::Ffs | Arm::FfsPassthrough => {
            let mut arguments: Vec<OsString> = vec!["mount".into(), "--foreground".into()];
            if arm == Arm::FfsPassthrough {
                arguments.push("--passthrough".into());
            }
            arguments.extend([
                "--config".into(),
                place.config.into(),
                "--socket".into(),
                place.socket.into(),
            ]);
            for (number, layer) in (0..).zip(layers) {
                let name = if number == 0 { SWAPPED.to_owned() } else { format!("layer{number}") };
                let spec = format!("{name}=dir:{},priority={}", layer.display(), HIGHEST - number);
                arguments.extend(["--layer".into(), spec.into()]);
            }
            arguments.push(place.point.into());
            Start::Program { program: place.ffs.into(), arguments }
        }
        Arm::Native | Arm::Plain | Arm::Recontext => Start::Plain(native.to_owned()),
    }
}

/// How an arm swaps its highest layer; none when it cannot. `root` is what it shows, `below` its other layers.
pub fn control(arm: Arm, root: &Path, below: &[PathBuf], stage: &Path, socket: &Path) -> Option<Control> {
    match arm {
        Arm::Native => Some(Control::Rename { root: root.into(), stage: stage.into() }),
        Arm::Mergerfs | Arm::MergerfsPassthrough => {
            Some(Control::Mergerfs { root: root.into(), below: below.to_vec() })
        }
        Arm::Ffs | Arm::FfsPassthrough => {
            Some(Control::Ffs { socket: socket.into(), layer: SWAPPED.into(), priority: HIGHEST })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passthrough_needs_its_version() {
        let (old, new) = ("Linux 6.8.0-48", "Linux 6.18.44");
        let mergerfs = |version| too_old(Arm::MergerfsPassthrough, version, new);
        assert!(mergerfs("mergerfs version: 2.33.5").unwrap().contains("mergerfs 2.33"));
        assert!(mergerfs("mergerfs version: 2.40.2").is_some());
        assert_eq!(mergerfs("mergerfs v2.41.0"), None);
        assert_eq!(mergerfs("mergerfs version: 3.0.1"), None);
        assert!(mergerfs("unknown").is_some());
        assert!(too_old(Arm::MergerfsPassthrough, "mergerfs v2.41.0", old).unwrap().contains("Linux 6.8"));
        assert!(too_old(Arm::FfsPassthrough, "ffs 0.1.0", old).unwrap().contains("came with 6.9"));
        assert_eq!(too_old(Arm::FfsPassthrough, "ffs 0.1.0", new), None);
        for arm in [Arm::Mergerfs, Arm::Ffs] {
            assert_eq!(too_old(arm, "mergerfs version: 2.33.5", old), None);
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        let here = |program: &str| program == "mergerfs";
        assert_eq!(
            not_installed(Arm::UnionfsFuse, here).as_deref(),
            Some("the program unionfs is not installed (Debian package unionfs-fuse)")
        );
        assert!(not_installed(Arm::FuseOverlayfs, here).is_some());
        for arm in [Arm::Mergerfs, Arm::MergerfsPassthrough, Arm::Native, Arm::Overlayfs, Arm::Ffs] {
            assert_eq!(not_installed(arm, here), None, "{arm}");
        }
    }

    #[test]
    fn who_cannot_swap_has_no_control_and_says_so() {
        let place = |arm| control(arm, Path::new("/m"), &[], Path::new("/s"), Path::new("/c"));
        for arm in Arm::PEERS.into_iter().chain([Arm::Native]) {
            assert_eq!(place(arm).is_none(), cannot(arm).contains_key(metric::SWAP_VISIBLE), "{arm}");
        }
    }

    #[test]
    fn layers_stand_highest_first() {
        let place = Place {
            point: Path::new("/m"),
            ffs: Path::new("/ffs"),
            socket: Path::new("/c"),
            config: Path::new("/f"),
        };
        let layers = [PathBuf::from("/a"), PathBuf::from("/b")];
        let all: Vec<_> =
            Arm::PEERS.map(|arm| start(arm, &layers, Path::new("/n"), &place).describe()).into();
        insta::assert_snapshot!(all.join("\n"), @r"
        mount -t overlay -o ro,lowerdir=/a:/b
        fuse-overlayfs -f -o lowerdir=/a:/b /m
        mergerfs -f -o cache.files=auto-full,cache.attr=3600,cache.entry=3600,cache.negative_entry=3600,cache.readdir=true,cache.symlinks=true /a=RO:/b=RO /m
        mergerfs -f -o cache.files=auto-full,cache.attr=3600,cache.entry=3600,cache.negative_entry=3600,cache.readdir=true,cache.symlinks=true,passthrough.io=ro /a=RO:/b=RO /m
        unionfs -f -o ro,kernel_cache,entry_timeout=3600,attr_timeout=3600,negative_timeout=3600 /a=RO:/b=RO /m
        /ffs mount --foreground --config /f --socket /c --layer changed=dir:/a,priority=1000 --layer layer1=dir:/b,priority=999 /m
        /ffs mount --foreground --passthrough --config /f --socket /c --layer changed=dir:/a,priority=1000 --layer layer1=dir:/b,priority=999 /m
        ");
    }
}
