//! What this machine can do, found out by doing it.
//!
//! A device node, a processor flag and a version number are promises. Each probe here asks for the thing itself: it boots a
//! guest under a time limit, makes a namespace with a TAP device in it, mounts a FUSE file system. What comes out
//! is a [`Report`]: a list of findings, each with its evidence, what follows from it and what to do about it, and the
//! [`Accelerator`] that testbeds use. Nothing falls back silently: a finding that is not [`Status::Ok`] says so.
//!
//! What a scenario needs is a [`Requirement`], evaluated against the report once and told whole, before anything starts.

mod accelerator;
mod boot;
pub mod cli;
mod probes;
mod requirement;
mod run;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::scenario::{AcceleratorChoice, Hypervisor};

pub use accelerator::{Accelerator, Answer, Virtualization};
pub use boot::Boot;
pub use requirement::{Lack, Machine, Requirement, Unmet, require};

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It works.
    Ok,
    /// It was not tried, or only in part.
    Unknown,
    /// It does not work, and something slower or narrower is used instead.
    Degraded,
    /// It does not work, and what needs it cannot be done.
    Missing,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Subject {
    /// QEMU for x86-64, able to emulate a processor with SVM: without it there are no hosts.
    Qemu,
    /// Hardware virtualization, by booting a guest with it.
    HardwareVirtualization,
    /// Hardware virtualization inside such a guest.
    NestedVirtualization,
    /// A user, network and process namespace of the bench's own.
    Namespaces,
    /// TAP devices on a bridge, in such a namespace.
    Networks,
    /// FUSE.
    Fuse,
    /// The libvirt client library.
    Libvirt,
    /// What builds images.
    ImageTools,
    /// SSH.
    Ssh,
    /// Memory.
    Memory,
    /// Room for images.
    Disk,
    /// Processors.
    Processors,
}

/// What one probe has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: Subject,
    /// How it ended.
    pub status: Status,
    /// What was seen.
    pub evidence: String,
    /// What that means for the bench; empty when it means nothing special.
    pub follows: String,
    /// What a person can do about it; empty when there is nothing to do.
    pub remedy: String,
}

/// Numbers of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Model name of the processor.
    pub processor: String,
    /// Processors that the bench may use.
    pub processors: usize,
    /// Bytes of memory that are free for new programs, control groups taken into account.
    pub memory_available: u64,
    /// Bytes of memory in all.
    pub memory_total: u64,
    /// The cache folder; in JSON with replacement characters where it is not UTF-8.
    #[serde(serialize_with = "lossy")]
    pub cache: PathBuf,
    /// Bytes that are free there.
    pub cache_free: u64,
    /// Version of QEMU, such as `10.0.2`; empty without QEMU.
    pub qemu: String,
    /// The running kernel.
    pub kernel: String,
    /// Whether the bench runs as root.
    pub root: bool,
}

fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// What this machine can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One for each [`Subject`], in a fixed order.
    pub findings: Vec<Finding>,
    /// Numbers.
    pub facts: Facts,
    /// What came of booting guests.
    pub virtualization: Virtualization,
}

/// What can be run here, as a sentence for each kind of testbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Possibility {
    /// What it is about, such as `nested testbed, KVM hosts`.
    pub what: &'static str,
    /// Whether it can be run.
    pub possible: bool,
    /// How, or why not.
    pub how: String,
}

/// Least memory of a testbed of two hosts and two file servers.
pub const TESTBED_MEMORY: u64 = 8 << 30;
/// Room that two images and their builds take at most.
pub const IMAGES_DISK: u64 = 4 << 30;

impl Report {
    /// What a nested testbed boots hosts with a hypervisor with when nobody chooses, and why. Hardware virtualization counts only
    /// when guests of hosts have it too; Xen is booted to find out.
    pub fn auto(&self, hypervisor: Hypervisor) -> Answer {
        self.virtualization.answer(hypervisor)
    }

    /// How hosts with a hypervisor run, for a person.
    fn how(&self, hypervisor: Hypervisor) -> String {
        let Answer { accelerator, known, why } = self.auto(hypervisor);
        if known {
            return format!("{}; `--accelerator auto` takes {accelerator}: {why}", accelerator.describe());
        }
        format!(
            "emulated, unless they come up with hardware virtualization: that is tried when their images are built \
             (`bench image build`); until then, {why}"
        )
    }

    /// What was found about a subject.
    pub fn finding(&self, subject: Subject) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.subject == subject)
    }

    /// What can be run here.
    pub fn possibilities(&self) -> Vec<Possibility> {
        let blocked: Vec<&str> = self
            .findings
            .iter()
            .filter(|finding| finding.status == Status::Missing)
            .map(|finding| finding.subject.label())
            .collect();
        let nested = |what, hypervisor: Hypervisor| {
            let possible = blocked.is_empty();
            let how = if possible {
                self.how(hypervisor)
            } else {
                format!("not before this is cured: {}", blocked.join(", "))
            };
            Possibility { what, possible, how }
        };
        vec![
            nested("nested testbed, KVM hosts", Hypervisor::Kvm),
            nested("nested testbed, Xen hosts", Hypervisor::Xen),
            Possibility {
                what: "`bench report` on stored runs",
                possible: true,
                how: "needs nothing but the stored files".into(),
            },
        ]
    }
}

impl Subject {
    /// Its name for a person.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Qemu => "QEMU",
            Self::HardwareVirtualization => "hardware virtualization",
            Self::NestedVirtualization => "nested virtualization",
            Self::Namespaces => "namespaces",
            Self::Networks => "TAP devices and bridges",
            Self::Fuse => "FUSE",
            Self::Libvirt => "libvirt client",
            Self::ImageTools => "image tools",
            Self::Ssh => "SSH client",
            Self::Memory => "memory",
            Self::Disk => "disk",
            Self::Processors => "processors",
        }
    }
}

/// Probes everything. Takes seconds, and half a minute more where a kernel hangs with `/dev/kvm`; what came of booting guests is kept
/// in the cache folder until the machine is booted again, or QEMU, the kernel, the processor or `/dev/kvm` is another; that a kernel
/// hangs, for an hour.
pub fn probe() -> Report {
    probe_with(&Options::default())
}

/// What hosts with a hypervisor are to run with. Only guests are booted to find out, and only where the answer is not known from earlier.
///
/// # Errors
/// [`Unmet`], when hardware virtualization is asked for and hosts cannot have it, or that cannot be known yet.
pub fn accelerator(hypervisor: Hypervisor, choice: AcceleratorChoice) -> Result<Accelerator, Unmet> {
    if choice == AcceleratorChoice::Tcg {
        return Ok(Accelerator::Tcg);
    }
    let options = Options::default();
    let cache = options.cache();
    let facts = probes::facts(&cache);
    let auto = accelerator::probe(&cache, &facts.qemu, &facts.processor, options.afresh).answer(hypervisor);
    if choice == AcceleratorChoice::Kvm && auto.accelerator != Accelerator::Kvm {
        return Err(Unmet { lacks: vec![requirement::no_hardware(hypervisor, &auto.why)] });
    }
    Ok(auto.accelerator)
}

/// First line of what a program ([`which`]) says on standard output, or else on standard error, where some say their version; nothing
/// when it is not there, fails, or takes longer than 10 s.
pub fn said(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = std::process::Command::new(which(program)?);
    probes::said(command.args(arguments)).filter(|line| !line.is_empty())
}

/// What a program says on standard output and then on standard error; nothing when it fails or takes longer than 10 s.
pub(crate) fn succeeds(command: &mut std::process::Command) -> Option<String> {
    probes::succeeds(command)
}

/// The file name of the libvirt client library that this program has loaded, which has its version.
pub fn libvirt_library() -> Option<String> {
    probes::libvirt_library()
}

/// How to probe.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Boot guests even when the answer is known.
    pub afresh: bool,
    /// Folder of the cache instead of the user's.
    pub cache: Option<PathBuf>,
}

impl Options {
    /// The folder of the cache.
    fn cache(&self) -> PathBuf {
        let given = self.cache.clone().or_else(|| crate::image::Cache::location().ok());
        given.unwrap_or_else(|| std::env::temp_dir().join("bench"))
    }
}

/// [`probe`] with choices.
pub fn probe_with(options: &Options) -> Report {
    let cache = options.cache();
    let facts = probes::facts(&cache);
    let virtualization = accelerator::probe(&cache, &facts.qemu, &facts.processor, options.afresh);
    let findings = probes::findings(&facts, &virtualization);
    Report { findings, facts, virtualization }
}

/// Where a program is, as a shell would find it; a few folders that are not on everybody's path are looked at too.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}
