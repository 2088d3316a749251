//! What runs guests here: hardware virtualization, when a real kernel comes up with it, or emulation.
//!
//! A present `/dev/kvm` proves nothing, and neither does a boot sector (see [`super::boot`]). Hosts are given hardware
//! virtualization when the kernel that they will run has come up with it and the boot sector saw VMX or SVM in a guest: without
//! that, hosts in virtual machines are no hosts. While there is no kernel to boot, nothing is known.
//!
//! The boot sector is run on the emulator too, which must show SVM: that is what hosts use when the hardware is of no use.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctx_io::{bounded, durable};
use serde::{Deserialize, Serialize};

use super::boot::{Boot, Kernel, QEMU, boot_kernel, boot_sector, boot_xen};
use crate::image::{Cache, Recipe};
use crate::scenario::Hypervisor;

/// What QEMU runs guests with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualization.
    Kvm,
    /// Emulation (QEMU's Tiny Code Generator).
    Tcg,
}

impl Accelerator {
    /// As QEMU's `-accel` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// What hosts run with, for a person.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Kvm => "with hardware virtualization (accelerator kvm)",
            Self::Tcg => {
                "emulated (accelerator tcg): real hypervisors on an emulated processor, slower; every sample says so"
            }
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What came of booting guests on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtualization {
    /// With hardware virtualization: the boot sector.
    pub hardware: Boot,
    /// With hardware virtualization: a kernel, when there is one and the boot sector came up.
    pub kernel: Boot,
    /// With hardware virtualization: Xen with a kernel as its first domain, when both came up and an image with
    /// Xen is cached.
    pub xen: Boot,
    /// On the emulator: the boot sector.
    pub emulated: Boot,
}

/// What hosts run with when nobody chooses, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What `auto` takes.
    pub accelerator: Accelerator,
    /// Whether everything was tried that it follows from: nothing is known before a kernel was booted.
    pub known: bool,
    /// What was seen, or why nothing was.
    pub why: String,
}

impl Virtualization {
    /// What hosts with a hypervisor run with. That guests of a machine have nested virtualization does not say that Xen can use it.
    pub fn answer(&self, hypervisor: Hypervisor) -> Answer {
        let answer = |accelerator, known, why: String| Answer { accelerator, known, why };
        let seen = |accelerator, why| answer(accelerator, true, why);
        let unknown = |why: &str| answer(Accelerator::Tcg, false, why.to_owned());
        let kernel = match (&self.hardware, &self.kernel) {
            (Boot::Up { nested: Some(true), .. }, kernel @ Boot::Up { .. }) => kernel,
            (Boot::Up { nested: Some(true), .. }, Boot::Untried { reason }) => return unknown(reason),
            (Boot::Up { nested: Some(true), .. }, kernel) => {
                return seen(Accelerator::Tcg, kernel.to_string());
            }
            (Boot::Up { .. }, _) => return seen(Accelerator::Tcg, NO_NESTED.into()),
            (sector, _) => return seen(Accelerator::Tcg, sector.to_string()),
        };
        match (hypervisor, &self.xen) {
            (Hypervisor::Kvm, _) => seen(Accelerator::Kvm, kernel.to_string()),
            (Hypervisor::Xen, xen @ Boot::Up { nested: Some(true), .. }) => {
                seen(Accelerator::Kvm, xen.to_string())
            }
            (Hypervisor::Xen, xen @ Boot::Up { .. }) => {
                seen(Accelerator::Tcg, format!("{xen}, and Xen found no nested paging (HAP) for its guests"))
            }
            (Hypervisor::Xen, Boot::Untried { reason }) => unknown(reason),
            (Hypervisor::Xen, xen) => seen(Accelerator::Tcg, xen.to_string()),
        }
    }
}

/// What is said where guests of a machine could have no guests.
pub(super) const NO_NESTED: &str = "a guest's processor has neither VMX nor SVM";

/// How long a boot sector may take with hardware virtualization, where it takes a tenth of a second.
const SECTOR_LIMIT: Duration = Duration::from_secs(5);
/// How long a kernel may take with hardware virtualization, where it takes one or two seconds on a quiet machine.
const KERNEL_LIMIT: Duration = Duration::from_secs(30);
/// How long the boot sector may take on the emulator: a tenth of a second on a quiet machine.
const EMULATED_LIMIT: Duration = Duration::from_secs(6);

/// QEMU's arguments for hardware virtualization, as hosts have them.
const HARDWARE: [&str; 4] = ["-accel", "kvm", "-cpu", "host"];

/// How long it is remembered that a guest had not come up in time. Where kernels hang, commands do not all wait for it; where
/// the machine was only busy, the answer is soon a better one.
const HANG_HOLDS: Duration = Duration::from_secs(3600);

/// Boots guests, or takes the answer of an earlier probe from `cache`: it holds for one kernel, QEMU, processor and
/// `/dev/kvm`, as far as it can be opened, until this machine is booted again.
pub(super) fn probe(cache: &Path, qemu: &str, processor: &str, afresh: bool) -> Virtualization {
    probe_device(cache, qemu, processor, Path::new(KVM), afresh)
}

fn probe_device(cache: &Path, qemu: &str, processor: &str, kvm: &Path, afresh: bool) -> Virtualization {
    let (kernel, xen) = (kernel(cache), cached(cache, "host-xen"));
    let text = |file: &str| fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let key = Key {
        boot_id: text("/proc/sys/kernel/random/boot_id"),
        linux: text("/proc/sys/kernel/version"),
        qemu: qemu.to_owned(),
        processor: processor.to_owned(),
        kvm: Device::look(kvm),
        kernel: kernel.as_ref().ok().map(|kernel| kernel.identity.clone()),
        xen: xen.as_ref().map(|(digest, _)| digest.clone()),
    };
    let path = cache.join("virtualization.json");
    if !afresh
        && let Ok(text) = bounded::read(&path, bounded::STATE)
        && let Ok(known) = serde_json::from_slice::<Known>(&text)
        && known.key == key
        && known.holds(uptime())
    {
        return known.virtualization;
    }
    let virtualization = boot_all(qemu, kvm, kernel, xen.map(|(_, folder)| folder).as_deref());
    let known = Known { key, virtualization, found_at: uptime() };
    if known.lasts() {
        // A cache folder that cannot be written costs the next command a few seconds, and has a finding of its own.
        let _ = remember(&path, &known);
    }
    known.virtualization
}

/// What an answer holds for. Nothing in it may differ between this process and one in a user namespace below: the bench asks once outside of its
/// own namespaces and again inside. Numbers of users do; whether `/dev/kvm` opens does not, and tells users apart.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    /// The kernel that runs here: another may have been started without a boot (kexec).
    linux: String,
    qemu: String,
    /// A virtual machine may have been moved to another processor.
    processor: String,
    /// What doctor advises changes it: another group, a module of the kernel, another mode.
    kvm: Device,
    kernel: Option<String>,
    xen: Option<String>,
}

/// Where hardware virtualization is asked for.
const KVM: &str = "/dev/kvm";

/// A device as this process finds it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    /// Number of the error of opening it for reading and writing.
    errno: Option<i32>,
    /// Its file system, inode, device number and mode: a module that is loaded again makes it anew.
    file: Option<(u64, u64, u64, u32)>,
}

impl Device {
    fn look(path: &Path) -> Self {
        let identity = |found: fs::Metadata| (found.dev(), found.ino(), found.rdev(), found.mode());
        Self {
            errno: open(path).err().map(|error| error.raw_os_error().unwrap_or_default()),
            file: fs::metadata(path).ok().map(identity),
        }
    }
}

fn open(device: &Path) -> std::io::Result<fs::File> {
    fs::File::options().read(true).write(true).open(device)
}

#[derive(Serialize, Deserialize)]
struct Known {
    key: Key,
    virtualization: Virtualization,
    /// When it was found out, in seconds since this machine was booted.
    found_at: u64,
}

impl Known {
    /// Whether it may be remembered: not when it failed without a boot for a reason that is not in the key, such as no
    /// room for a temporary file or no memory for a process.
    fn lasts(&self) -> bool {
        let failed = |boot: &Boot| matches!(boot, Boot::Impossible { .. });
        let found = &self.virtualization;
        let foreseen = self.key.qemu.is_empty();
        let closed = self.key.kvm.errno.is_some();
        foreseen
            || !(failed(&found.emulated)
                || (failed(&found.hardware) && !closed)
                || failed(&found.kernel)
                || failed(&found.xen))
    }

    /// Whether it still holds, at a time since the machine was booted.
    fn holds(&self, now: u64) -> bool {
        let found = &self.virtualization;
        let hangs = [&found.hardware, &found.kernel, &found.xen, &found.emulated]
            .iter()
            .any(|boot| matches!(boot, Boot::Hangs { .. }));
        !hangs || now.saturating_sub(self.found_at) < HANG_HOLDS.as_secs()
    }
}

/// Seconds since this machine was booted.
fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(['.', ' ']).next().and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

fn remember(path: &Path, known: &Known) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    durable::write(path, &serde_json::to_vec_pretty(known)?)
}

/// Digest and folder of the image of a recipe, when it is in the cache.
pub(super) fn cached(cache: &Path, recipe: &str) -> Option<(String, PathBuf)> {
    if !cache.join("images").is_dir() {
        return None;
    }
    let digest = Recipe::built_in(recipe).ok()?.digest();
    let image = Cache::at(cache).ok()?.find(&digest).ok()??;
    Some((digest, image.kernel().parent()?.to_owned()))
}

/// The kernel that is booted: that of guests and file servers, else the one that runs here.
///
/// # Errors
/// Why there is none, and what to do.
pub(super) fn kernel(cache: &Path) -> Result<Kernel, String> {
    if let Some((digest, folder)) = cached(cache, "guest") {
        let (file, initrd) = (folder.join("vmlinuz"), Some(folder.join("initrd")));
        return Ok(Kernel { whose: "image guest".into(), identity: digest, file, initrd });
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let names =
        [format!("/boot/vmlinuz-{}", release.trim()), format!("/usr/lib/modules/{}/vmlinuz", release.trim())];
    let readable = |file: &&String| cfg!(target_arch = "x86_64") && fs::File::open(file).is_ok();
    match names.iter().find(readable) {
        Some(file) => Ok(Kernel {
            whose: format!("this system ({file})"),
            identity: file.clone(),
            file: file.into(),
            initrd: None,
        }),
        None => {
            Err(format!("there is no kernel to boot: no image is built, and {} cannot be read", names[0]))
        }
    }
}

fn boot_all(qemu: &str, kvm: &Path, kernel: Result<Kernel, String>, xen: Option<&Path>) -> Virtualization {
    let untried = |reason: &str| Boot::Untried { reason: reason.to_owned() };
    if qemu.is_empty() {
        let none = Boot::Impossible { reason: format!("{QEMU} is not installed") };
        return Virtualization {
            hardware: none.clone(),
            kernel: none.clone(),
            xen: none.clone(),
            emulated: none,
        };
    }
    // `max` without 57-bit addresses is what hosts are given under emulation.
    let emulated = boot_sector(&["-accel", "tcg", "-cpu", "max,-la57"], EMULATED_LIMIT);
    let hardware = match open(kvm) {
        Ok(_) => boot_sector(&HARDWARE, SECTOR_LIMIT),
        Err(error) => Boot::Impossible { reason: format!("{}: {error}", kvm.display()) },
    };
    let kernel = match (&hardware, kernel) {
        (Boot::Up { .. }, Ok(kernel)) => boot_kernel(&kernel, &HARDWARE, KERNEL_LIMIT),
        (Boot::Up { .. }, Err(reason)) => Boot::Untried { reason },
        _ => untried("the boot sector did not come up"),
    };
    let xen = match (&kernel, xen) {
        (Boot::Up { .. }, Some(folder)) => boot_xen(folder, &HARDWARE, KERNEL_LIMIT),
        (Boot::Up { .. }, None) => untried("no image host-xen is built"),
        _ => untried("no kernel came up"),
    };
    Virtualization { hardware, kernel, xen, emulated }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(nested: Option<bool>) -> Boot {
        Boot::Up { payload: "x".into(), took_ms: 1, nested }
    }

    fn untried() -> Boot {
        Boot::Untried { reason: "x".into() }
    }

    #[test]
    fn hardware_counts_only_when_kernels_boot_and_hosts_can_have_guests() {
        let hangs = Boot::Hangs { payload: "x".into(), limit_ms: 1 };
        let judge = |hardware: Boot, kernel: Boot| {
            let found = Virtualization { hardware, kernel, xen: untried(), emulated: up(Some(true)) };
            let answer = found.answer(Hypervisor::Kvm);
            (answer.accelerator, answer.known)
        };
        assert_eq!(judge(up(Some(true)), up(None)), (Accelerator::Kvm, true));
        assert_eq!(judge(up(Some(false)), up(None)), (Accelerator::Tcg, true));
        assert_eq!(judge(up(Some(true)), hangs.clone()), (Accelerator::Tcg, true));
        assert_eq!(judge(hangs, untried()), (Accelerator::Tcg, true));
        // A boot sector alone proves nothing.
        assert_eq!(judge(up(Some(true)), untried()), (Accelerator::Tcg, false));
    }

    #[test]
    fn xen_counts_only_when_it_can_give_its_guests_hardware_virtualization() {
        let judge = |xen: Boot| {
            let (hardware, kernel) = (up(Some(true)), up(None));
            let found = Virtualization { hardware, kernel, xen, emulated: up(Some(true)) };
            let answer = found.answer(Hypervisor::Xen);
            (answer.accelerator, answer.known)
        };
        assert_eq!(judge(up(Some(true))), (Accelerator::Kvm, true));
        assert_eq!(judge(up(Some(false))), (Accelerator::Tcg, true));
        assert_eq!(judge(Boot::Hangs { payload: "x".into(), limit_ms: 1 }), (Accelerator::Tcg, true));
        assert_eq!(judge(untried()), (Accelerator::Tcg, false));
    }

    #[test]
    fn an_answer_says_what_it_follows_from() {
        let hangs = || Boot::Hangs { payload: "Xen".into(), limit_ms: 30_000 };
        let why = |hardware: Boot, kernel: Boot, xen: Boot| {
            let found = Virtualization { hardware, kernel, xen, emulated: up(Some(true)) };
            [Hypervisor::Kvm, Hypervisor::Xen].map(|hypervisor| found.answer(hypervisor).why)
        };
        let [kvm, xen] = why(up(Some(true)), up(None), hangs());
        assert_eq!(kvm, "x came up in 1 ms");
        assert_eq!(xen, "Xen had not come up after 30 s");
        let [_, xen] = why(up(Some(true)), up(None), up(Some(false)));
        assert!(xen.contains("came up") && xen.contains("no nested paging"), "{xen}");
        for why in why(up(Some(false)), up(None), untried()) {
            assert_eq!(why, NO_NESTED);
        }
        let closed = Boot::Impossible { reason: "/dev/kvm: closed".into() };
        for why in why(closed, untried(), untried()) {
            assert_eq!(why, "/dev/kvm: closed");
        }
    }

    #[test]
    fn an_answer_is_remembered_for_this_boot_and_this_qemu() {
        let cache = tempfile::tempdir().unwrap();
        let first = probe(cache.path(), "", "x", false);
        assert!(matches!(first.hardware, Boot::Impossible { .. }));
        let text = fs::read_to_string(cache.path().join("virtualization.json")).unwrap();
        let changed = text.replace("is not installed", "is somewhere else");
        fs::write(cache.path().join("virtualization.json"), changed).unwrap();
        let Boot::Impossible { reason } = probe(cache.path(), "", "x", false).hardware else { panic!() };
        assert!(reason.contains("somewhere else"), "the remembered answer: {reason}");
        let Boot::Impossible { reason } = probe(cache.path(), "", "another", false).hardware else {
            panic!()
        };
        assert!(reason.contains("not installed"), "another processor: {reason}");
        let Boot::Impossible { reason } = probe(cache.path(), "", "x", true).hardware else { panic!() };
        assert!(reason.contains("not installed"), "a fresh answer: {reason}");
    }

    #[test]
    fn an_answer_about_a_device_ends_when_the_device_is_another() {
        let cache = tempfile::tempdir().unwrap();
        let kvm = cache.path().join("kvm");
        let path = cache.path().join("virtualization.json");
        let ask = || match probe_device(cache.path(), "", "x", &kvm, false).hardware {
            Boot::Impossible { reason } => reason,
            other => panic!("{other}"),
        };
        // What was remembered is told from what is found out.
        let mark = || {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("is not installed", "is remembered")).unwrap();
        };
        let change_mode = || {
            fs::set_permissions(&kvm, std::os::unix::fs::PermissionsExt::from_mode(0o606)).unwrap();
        };
        let make_anew = || {
            let new = cache.path().join("new");
            fs::write(&new, "").unwrap();
            fs::set_permissions(&new, fs::metadata(&kvm).unwrap().permissions()).unwrap();
            fs::rename(new, &kvm).unwrap();
        };
        let changes: [(&str, &dyn Fn()); 4] = [
            ("it appears", &|| fs::write(&kvm, "").unwrap()),
            ("chmod", &change_mode),
            ("it is made anew", &make_anew),
            ("it goes", &|| fs::remove_file(&kvm).unwrap()),
        ];
        for (what, change) in changes {
            assert!(ask().contains("not installed"), "before: {what}");
            mark();
            assert!(ask().contains("is remembered"), "nothing changed before: {what}");
            change();
            assert!(ask().contains("not installed"), "after: {what}");
        }
    }

    #[test]
    fn only_what_a_boot_has_shown_is_remembered_and_a_hang_not_for_long() {
        let impossible = || Boot::Impossible { reason: "no temporary file".into() };
        let hangs = || Boot::Hangs { payload: "x".into(), limit_ms: 1 };
        let known = |errno: Option<i32>, hardware: Boot, kernel: Boot| Known {
            key: Key {
                boot_id: String::new(),
                linux: String::new(),
                qemu: "QEMU 9".into(),
                processor: String::new(),
                kvm: Device { errno, file: None },
                kernel: None,
                xen: None,
            },
            virtualization: Virtualization { hardware, kernel, xen: untried(), emulated: up(Some(true)) },
            found_at: 100,
        };
        assert!(known(None, up(Some(true)), up(None)).lasts());
        assert!(known(Some(13), impossible(), untried()).lasts(), "the device is in the key");
        assert!(!known(None, impossible(), untried()).lasts());
        assert!(!known(None, up(Some(true)), impossible()).lasts());
        assert!(known(None, up(Some(true)), up(None)).holds(1_000_000));
        assert!(known(None, up(Some(true)), hangs()).holds(100 + 3599));
        assert!(!known(None, up(Some(true)), hangs()).holds(100 + 3600));
    }
}
