//! Hardware virtualization, found out by booting a guest with it.
//!
//! A present `/dev/kvm` proves nothing: there are machines where it opens, creates a virtual machine and a processor, and then
//! every kernel hangs in its first pages of code. So a guest is booted under a time limit: the kernel of a cached image when there
//! is one, else a boot sector that goes the way of every kernel into long mode (`payload.S`). The boot sector also
//! tells whether the guest itself could run guests: without that, hosts in virtual machines are no hosts.
//!
//! The same boot sector is run on the emulator, which must show SVM: that is what hosts use when the hardware is of no use.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::run::{self, Outcome};
use crate::image::{Cache, Recipe};

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

/// What came of booting one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Boot {
    /// It came up.
    Up {
        /// What was booted.
        payload: String,
        /// Milliseconds from the start of QEMU to its end.
        took_ms: u64,
        /// Whether its processor can run guests; unknown to a payload that does not look.
        nested: Option<bool>,
    },
    /// It was started and had not come up when its time was over.
    Hangs {
        /// What was booted.
        payload: String,
        /// Milliseconds that it was given.
        limit_ms: u64,
    },
    /// QEMU ended before the guest came up.
    Fails {
        /// What was booted.
        payload: String,
        /// QEMU's last words, or the guest's.
        reason: String,
    },
    /// It was not tried.
    Impossible {
        /// Why.
        reason: String,
    },
}

/// What came of booting guests on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtualization {
    /// With hardware virtualization: the boot sector.
    pub hardware: Boot,
    /// With hardware virtualization: the kernel of a cached image, when there is one and the boot sector came up.
    pub kernel: Option<Boot>,
    /// With hardware virtualization: Xen with a kernel as its first domain, when both came up and an image with
    /// Xen is cached.
    #[serde(default)]
    pub xen: Option<Boot>,
    /// On the emulator: the boot sector.
    pub emulated: Boot,
}

impl Virtualization {
    pub(super) const fn accelerator(&self) -> Accelerator {
        match (&self.hardware, &self.kernel) {
            (Boot::Up { nested: Some(true), .. }, None | Some(Boot::Up { .. })) => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        }
    }

    /// The same for hosts with Xen. That guests of a machine have nested virtualization does not say that Xen can use it.
    pub(super) const fn accelerator_for_xen(&self) -> Accelerator {
        match (self.accelerator(), &self.xen) {
            (Accelerator::Kvm, Some(Boot::Up { nested: Some(true), .. })) => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        }
    }
}

/// How long a boot sector may take with hardware virtualization, where it takes a tenth of a second.
const SECTOR_LIMIT: Duration = Duration::from_secs(5);
/// How long a kernel may take with hardware virtualization, where it takes one or two seconds. Both limits and the emulated
/// boot sector's stay below the 20 seconds within which an unusable `/dev/kvm` shall be found out.
const KERNEL_LIMIT: Duration = Duration::from_secs(8);
/// How long the boot sector may take on the emulator: a tenth of a second on a quiet machine.
const EMULATED_LIMIT: Duration = Duration::from_secs(6);

const QEMU: &str = "qemu-system-x86_64";

/// `payload.S`, assembled; the rest of the sector is zero, up to its signature.
const SECTOR: [u8; 214] = [
    0xfa, 0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0x66, 0x0f, 0x01, 0x16,
    0xd0, 0x7c, 0x0f, 0x20, 0xc0, 0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0, 0xea, 0x22, 0x7c, 0x08, 0x00,
    0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbf, 0x00, 0x10, 0x00, 0x00, 0x31, 0xc0,
    0xb9, 0x00, 0x0c, 0x00, 0x00, 0xf3, 0xab, 0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00,
    0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00, 0xc7, 0x05, 0x00, 0x30, 0x00, 0x00, 0x83,
    0x00, 0x00, 0x00, 0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, 0xb8, 0x00, 0x10, 0x00, 0x00,
    0x0f, 0x22, 0xd8, 0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30,
    0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0xea, 0x89, 0x7c, 0x00, 0x00, 0x18,
    0x00, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x0f, 0xa2, 0xc1, 0xe9, 0x05, 0x83, 0xe1, 0x01, 0x89, 0xce, 0xb8,
    0x01, 0x00, 0x00, 0x80, 0x0f, 0xa2, 0xd1, 0xe9, 0x83, 0xe1, 0x02, 0x8d, 0x44, 0x0e, 0x40, 0x66, 0xba,
    0xf4, 0x00, 0xee, 0xf4, 0xeb, 0xfd, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00,
    0x00, 0x00, 0x9a, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, 0xff, 0xff, 0x00, 0x00,
    0x00, 0x9a, 0xaf, 0x00, 0x1f, 0x00, 0xb0, 0x7c, 0x00, 0x00,
];

/// Boots guests, or takes the answer of an earlier probe from `cache`: it holds until the machine is booted again or QEMU is another.
pub(super) fn probe(cache: &Path, qemu: &str, afresh: bool) -> Virtualization {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
    let (kernel, xen) = (cached(cache, "guest"), cached(cache, "host-xen"));
    let key = Key {
        boot_id,
        qemu: qemu.to_owned(),
        user: nix::unistd::geteuid().as_raw(),
        kernel: kernel.as_ref().map(|(digest, _)| digest.clone()),
        xen: xen.as_ref().map(|(digest, _)| digest.clone()),
    };
    let path = cache.join("virtualization.json");
    if !afresh
        && let Ok(text) = fs::read(&path)
        && let Ok(known) = serde_json::from_slice::<Known>(&text)
        && known.key == key
    {
        return known.virtualization;
    }
    let folder = |found: Option<(String, PathBuf)>| found.map(|(_, folder)| folder);
    let virtualization = boot_all(qemu, folder(kernel).as_deref(), folder(xen).as_deref());
    let known = Known { key, virtualization };
    // A cache folder that cannot be written costs the next command a few seconds, and has a finding of its own.
    let _ = remember(&path, &known);
    known.virtualization
}

/// What an answer holds for.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    boot_id: String,
    qemu: String,
    /// Another user may not be allowed to use `/dev/kvm`.
    user: u32,
    kernel: Option<String>,
    #[serde(default)]
    xen: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    key: Key,
    virtualization: Virtualization,
}

fn remember(path: &Path, known: &Known) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec_pretty(known)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Digest and folder of the image of a recipe, when it is in the cache.
fn cached(cache: &Path, recipe: &str) -> Option<(String, PathBuf)> {
    if !cache.join("images").is_dir() {
        return None;
    }
    let digest = Recipe::built_in(recipe).ok()?.digest();
    let image = Cache::at(cache).ok()?.find(&digest).ok()??;
    Some((digest, image.kernel().parent()?.to_owned()))
}

fn boot_all(qemu: &str, kernel: Option<&Path>, xen: Option<&Path>) -> Virtualization {
    if qemu.is_empty() {
        let none = Boot::Impossible { reason: format!("{QEMU} is not installed") };
        return Virtualization { hardware: none.clone(), kernel: None, xen: None, emulated: none };
    }
    // `max` without 57-bit addresses is what hosts are given under emulation.
    let emulated = boot_sector(&["-accel", "tcg", "-cpu", "max,-la57"], EMULATED_LIMIT);
    let hardware = match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => boot_sector(&["-accel", "kvm", "-cpu", "host"], SECTOR_LIMIT),
        Err(error) => Boot::Impossible { reason: format!("/dev/kvm: {error}") },
    };
    let kernel = match (&hardware, kernel) {
        (Boot::Up { .. }, Some(folder)) => Some(boot_kernel(folder)),
        _ => None,
    };
    let xen = match (&kernel, xen) {
        (Some(Boot::Up { .. }), Some(folder)) => {
            Some(boot_xen(folder, &["-accel", "kvm", "-cpu", "host"], KERNEL_LIMIT))
        }
        _ => None,
    };
    Virtualization { hardware, kernel, xen, emulated }
}

fn boot_sector(accelerator: &[&str], limit: Duration) -> Boot {
    let payload = "a boot sector up to long mode";
    let mut image = SECTOR.to_vec();
    image.resize(510, 0);
    image.extend([0x55, 0xaa]);
    let folder = tempfile::tempdir().and_then(|folder| {
        fs::write(folder.path().join("sector"), &image)?;
        Ok(folder)
    });
    let folder = match folder {
        Ok(folder) => folder,
        Err(error) => return Boot::Impossible { reason: format!("no temporary file: {error}") },
    };
    let outcome = run::limited(
        machine(accelerator, 64)
            // Files by name, from their folder: QEMU splits a path at its commas.
            .current_dir(&folder)
            .args(["-serial", "none", "-boot", "a", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
            .args(["-drive", "if=floppy,format=raw,readonly=on,file=sector"]),
        limit,
    );
    judge(payload, limit, outcome, |outcome| {
        // The device makes (value << 1) | 1 of the value that the guest writes.
        let code =
            outcome.status.and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok())?;
        let value = code >> 1;
        (code & 1 == 1 && value & 0x40 != 0).then_some(Some(value & 0x03 != 0))
    })
}

/// The kernel and the initramfs of an image, without a disk: that the initramfs says so on the console proves the rest.
fn boot_kernel(image: &Path) -> Boot {
    let outcome = run::limited(
        machine(&["-accel", "kvm", "-cpu", "host"], 256)
            .args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 bench.wait=0", "-kernel"])
            .arg(image.join("vmlinuz"))
            .arg("-initrd")
            .arg(image.join("initrd")),
        KERNEL_LIMIT,
    );
    judge("a Linux kernel", KERNEL_LIMIT, outcome, |outcome| {
        outcome.output.contains("bench-init:").then_some(None)
    })
}

/// Xen, with the kernel and the initramfs of its image as its first domain, without a disk: Xen says on the console what its
/// guests can have, and the initramfs that the first one has come up.
fn boot_xen(image: &Path, accelerator: &[&str], limit: Duration) -> Boot {
    let outcome = run::limited(
        machine(accelerator, 512)
            .current_dir(image)
            .args(["-serial", "stdio", "-append", "console=com1 dom0_mem=256M", "-kernel", "hypervisor"])
            .args(["-initrd", "vmlinuz console=hvc0 quiet panic=-1 bench.wait=0,initrd"]),
        limit,
    );
    judge("Xen with its first domain", limit, outcome, |outcome| {
        outcome
            .output
            .contains("bench-init:")
            .then(|| Some(outcome.output.contains("HVM: Hardware Assisted Paging (HAP) detected")))
    })
}

/// A small machine without anything that the payload does not use.
fn machine(accelerator: &[&str], mebibytes: u32) -> Command {
    let mut command = run::command(QEMU);
    command.args(accelerator).args(["-M", "q35", "-m", &mebibytes.to_string(), "-no-reboot", "-nodefaults"]);
    command.args(["-display", "none", "-monitor", "none", "-nic", "none"]);
    command
}

/// `up` tells, of a machine that has ended by itself, whether it came up, and what is known of nested virtualization.
fn judge(
    payload: &str,
    limit: Duration,
    outcome: std::io::Result<Outcome>,
    up: impl Fn(&Outcome) -> Option<Option<bool>>,
) -> Boot {
    let payload = payload.to_owned();
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(error) => return Boot::Impossible { reason: format!("{QEMU}: {error}") },
    };
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if let Some(nested) = up(&outcome) {
        return Boot::Up { payload, took_ms: milliseconds(outcome.took), nested };
    }
    match outcome.status {
        None => Boot::Hangs { payload, limit_ms: milliseconds(limit) },
        Some(status) => {
            let said =
                outcome.output.lines().find(|line| line.contains("error")).unwrap_or(outcome.last_line());
            Boot::Fails { payload, reason: format!("{status}: {}", said.trim()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(nested: Option<bool>) -> Boot {
        Boot::Up { payload: "x".into(), took_ms: 1, nested }
    }

    #[test]
    fn hardware_counts_only_when_kernels_boot_and_hosts_can_have_guests() {
        let hangs = Boot::Hangs { payload: "x".into(), limit_ms: 1 };
        let accelerator = |hardware: Boot, kernel: Option<Boot>| {
            Virtualization { hardware, kernel, xen: None, emulated: up(Some(true)) }.accelerator()
        };
        assert_eq!(accelerator(up(Some(true)), None), Accelerator::Kvm);
        assert_eq!(accelerator(up(Some(true)), Some(up(None))), Accelerator::Kvm);
        assert_eq!(accelerator(up(Some(false)), Some(up(None))), Accelerator::Tcg);
        assert_eq!(accelerator(up(Some(true)), Some(hangs.clone())), Accelerator::Tcg);
        assert_eq!(accelerator(hangs, None), Accelerator::Tcg);
    }

    #[test]
    fn xen_counts_only_when_it_can_give_its_guests_hardware_virtualization() {
        let accelerator = |xen: Option<Boot>| {
            let (hardware, kernel) = (up(Some(true)), Some(up(None)));
            Virtualization { hardware, kernel, xen, emulated: up(Some(true)) }.accelerator_for_xen()
        };
        assert_eq!(accelerator(Some(up(Some(true)))), Accelerator::Kvm);
        assert_eq!(accelerator(Some(up(Some(false)))), Accelerator::Tcg);
        assert_eq!(accelerator(Some(Boot::Hangs { payload: "x".into(), limit_ms: 1 })), Accelerator::Tcg);
    }

    #[test]
    fn xen_boots_on_the_emulator_and_sees_nested_paging() {
        let cache = crate::image::Cache::location().unwrap();
        let Some((_, folder)) = cached(&cache, "host-xen") else {
            eprintln!(
                "SKIPPED doctor::accelerator::xen_boots_on_the_emulator_and_sees_nested_paging: no image host-xen; \
                 run `bench image build`"
            );
            return;
        };
        let cpu = crate::scenario::Hypervisor::Xen.host().emulated_cpu;
        let boot = boot_xen(&folder, &["-accel", "tcg", "-cpu", cpu], Duration::from_secs(180));
        assert!(matches!(boot, Boot::Up { nested: Some(true), .. }), "{boot:?}");
    }

    #[test]
    fn the_bytes_are_what_the_source_assembles_to() {
        let folder = tempfile::tempdir().unwrap();
        let (object, binary) = (folder.path().join("p.o"), folder.path().join("p.bin"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor/payload.S");
        let assembled = Command::new("as").arg("--64").arg(source).arg("-o").arg(&object).status();
        let linked = Command::new("ld")
            .args(["-m", "elf_x86_64", "-Ttext", "0x7c00", "--oformat", "binary", "-o"])
            .arg(&binary)
            .arg(&object)
            .status();
        if !(assembled.is_ok_and(|status| status.success()) && linked.is_ok_and(|status| status.success())) {
            eprintln!(
                "SKIPPED doctor::accelerator::the_bytes_are_what_the_source_assembles_to: no x86 assembler"
            );
            return;
        }
        let built = fs::read(binary).unwrap();
        assert_eq!(built.len(), 512);
        assert_eq!(built[..SECTOR.len()], SECTOR);
        assert!(built[SECTOR.len()..510].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_emulator_boots_the_sector_and_shows_svm() {
        if super::super::which(QEMU).is_none() {
            eprintln!("SKIPPED doctor::accelerator::the_emulator_boots_the_sector_and_shows_svm: no {QEMU}");
            return;
        }
        let boot = boot_sector(&["-accel", "tcg", "-cpu", "max,-la57"], Duration::from_secs(60));
        assert!(matches!(boot, Boot::Up { nested: Some(true), .. }), "{boot:?}");
        let without = boot_sector(&["-accel", "tcg", "-cpu", "qemu64,-svm"], Duration::from_secs(60));
        assert!(matches!(without, Boot::Up { nested: Some(false), .. }), "{without:?}");
    }

    #[test]
    fn an_answer_is_remembered_for_this_boot_and_this_qemu() {
        let cache = tempfile::tempdir().unwrap();
        let first = probe(cache.path(), "", false);
        assert!(matches!(first.hardware, Boot::Impossible { .. }));
        let text = fs::read_to_string(cache.path().join("virtualization.json")).unwrap();
        let changed = text.replace("is not installed", "is somewhere else");
        fs::write(cache.path().join("virtualization.json"), changed).unwrap();
        let Boot::Impossible { reason } = probe(cache.path(), "", false).hardware else { panic!() };
        assert!(reason.contains("somewhere else"), "the remembered answer: {reason}");
        let Boot::Impossible { reason } = probe(cache.path(), "", true).hardware else { panic!() };
        assert!(reason.contains("not installed"), "a fresh answer: {reason}");
    }
}
