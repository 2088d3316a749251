//! Guests that are booted to see whether they come up, under a time limit.
//!
//! The boot sector (`payload.S`) goes the way of every kernel into long mode and tells whether a guest could run guests
//! itself. It is soon done, and proves little: there are machines where it comes up, and every kernel hangs in its first
//! pages of code or ends with an emulation failure. So a real kernel decides: that of a cached image with the
//! image's own initramfs, else the one that runs here with a program of a few instructions (`init.S`).

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::run::{self, Outcome};
use crate::image::cpio::{Archive, Entry};

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
    /// It cannot be tried.
    Impossible {
        /// Why.
        reason: String,
    },
    /// It was not tried: nothing is known.
    Untried {
        /// Why, and what to do.
        reason: String,
    },
}

impl fmt::Display for Boot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { payload, took_ms, .. } => write!(f, "{payload} came up in {took_ms} ms"),
            Self::Hangs { payload, limit_ms } => {
                write!(f, "{payload} had not come up after {} s", limit_ms / 1000)
            }
            Self::Fails { payload, reason } => write!(f, "{payload} did not come up: {reason}"),
            Self::Impossible { reason } | Self::Untried { reason } => f.write_str(reason),
        }
    }
}

/// A kernel that can be booted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// What has it, for a person.
    pub(super) whose: String,
    /// What tells it from others.
    pub(super) identity: String,
    /// Its file.
    pub(super) file: PathBuf,
    /// Its first file system; without one it gets one of ours.
    pub(super) initrd: Option<PathBuf>,
}

/// What the first program of a kernel begins its lines with: `init.S`, and the initramfs of images.
const MARK: &str = "bench-init:";

pub(super) const QEMU: &str = "qemu-system-x86_64";

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

/// `init.S`, assembled.
const INIT: [u8; 197] = [
    0x7f, 0x45, 0x4c, 0x46, 0x02, 0x01, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02,
    0x00, 0x3e, 0x00, 0x01, 0x00, 0x00, 0x00, 0x78, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x40, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x40, 0x00, 0x38, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
    0x05, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x40, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc5, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0xc5, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0xb8, 0x01, 0x00, 0x00, 0x00, 0xbf, 0x01, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x35, 0x21, 0x00, 0x00,
    0x00, 0xba, 0x1b, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xb8, 0xa9, 0x00, 0x00, 0x00, 0xbf, 0xad, 0xde, 0xe1,
    0xfe, 0xbe, 0x69, 0x19, 0x12, 0x28, 0xba, 0x67, 0x45, 0x23, 0x01, 0x0f, 0x05, 0xf3, 0x90, 0xeb, 0xfc,
    0x62, 0x65, 0x6e, 0x63, 0x68, 0x2d, 0x69, 0x6e, 0x69, 0x74, 0x3a, 0x20, 0x61, 0x20, 0x70, 0x72, 0x6f,
    0x67, 0x72, 0x61, 0x6d, 0x20, 0x72, 0x75, 0x6e, 0x73, 0x0a,
];

pub(super) fn boot_sector(accelerator: &[&str], limit: Duration) -> Boot {
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

/// A real kernel, up to its first program. That this says so on the console proves the rest: decompression, page tables,
/// interrupts, timers, user space.
pub(super) fn boot_kernel(kernel: &Kernel, accelerator: &[&str], limit: Duration) -> Boot {
    let payload = format!("the Linux kernel of {}", kernel.whose);
    let mut machine = machine(accelerator, 256);
    machine.args(["-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1 bench.wait=0", "-kernel"]);
    machine.arg(&kernel.file).arg("-initrd");
    // Its file lives until QEMU has ended.
    let own = tempfile::NamedTempFile::new().and_then(|mut file| file.write_all(&initrd()).map(|()| file));
    match (&kernel.initrd, &own) {
        (Some(initrd), _) => machine.arg(initrd),
        (None, Ok(own)) => machine.arg(own.path()),
        (None, Err(error)) => return Boot::Impossible { reason: format!("no temporary file: {error}") },
    };
    judge(&payload, limit, run::until(&mut machine, limit, decided), |outcome| {
        outcome.output.contains(MARK).then_some(None)
    })
}

/// A line after which nothing else is waited for: the first program runs, or the machine has stopped for good, which
/// QEMU says and then stays.
fn decided(line: &str) -> bool {
    line.contains(MARK) || line.contains("KVM internal error") || line.contains("KVM: entry failed")
}

/// A file system with one program in it, which says that it runs.
fn initrd() -> Vec<u8> {
    let mut archive = Archive::default();
    archive.add("init", Entry::File { mode: 0o755, content: INIT.to_vec() });
    // The kernel opens it for the program's output.
    archive.add("dev/console", Entry::Character { mode: 0o600, major: 5, minor: 1 });
    archive.to_bytes()
}

/// Xen, with the kernel and the initramfs of its image as its first domain, without a disk: Xen says on the console what its
/// guests can have, and the initramfs that the first one has come up.
pub(super) fn boot_xen(image: &Path, accelerator: &[&str], limit: Duration) -> Boot {
    let outcome = run::until(
        machine(accelerator, 512)
            .current_dir(image)
            .args(["-serial", "stdio", "-append", "console=com1 dom0_mem=256M", "-kernel", "hypervisor"])
            .args(["-initrd", "vmlinuz console=hvc0 quiet panic=-1 bench.wait=0,initrd"]),
        limit,
        decided,
    );
    judge("Xen with its first domain", limit, outcome, |outcome| {
        outcome
            .output
            .contains(MARK)
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

/// `up` tells, of a machine that has ended or has said what was waited for, whether it came up, and what is known of nested virtualization.
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
        None => match outcome.output.lines().find(|line| decided(line)) {
            Some(line) => Boot::Fails { payload, reason: format!("QEMU says {:?}", line.trim()) },
            None => Boot::Hangs { payload, limit_ms: milliseconds(limit) },
        },
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

    /// What an assembler makes of a source beside this file; none without one.
    fn assembled(source: &str, address: &str) -> Option<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let (object, binary) = (folder.path().join("p.o"), folder.path().join("p.bin"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/doctor").join(source);
        let assembled = Command::new("as").arg("--64").arg(source).arg("-o").arg(&object).status();
        let linked = Command::new("ld")
            .args(["-m", "elf_x86_64", "-Ttext", address, "--oformat", "binary", "-o"])
            .arg(&binary)
            .arg(&object)
            .status();
        let good = |status: std::io::Result<std::process::ExitStatus>| status.is_ok_and(|s| s.success());
        (good(assembled) && good(linked)).then(|| fs::read(binary).unwrap())
    }

    #[test]
    fn the_bytes_are_what_the_sources_assemble_to() {
        let (Some(sector), Some(init)) = (assembled("payload.S", "0x7c00"), assembled("init.S", "0x400000"))
        else {
            eprintln!("SKIPPED doctor::boot::the_bytes_are_what_the_sources_assemble_to: no x86 assembler");
            return;
        };
        assert_eq!(sector.len(), 512);
        assert_eq!(sector[..SECTOR.len()], SECTOR);
        assert!(sector[SECTOR.len()..510].iter().all(|byte| *byte == 0));
        assert_eq!(init, INIT);
    }

    #[test]
    fn the_first_program_runs_and_says_so() {
        use std::os::unix::fs::PermissionsExt as _;
        if cfg!(not(target_arch = "x86_64")) || !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED doctor::boot::the_first_program_runs_and_says_so: needs root on x86-64");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let init = folder.path().join("init");
        fs::write(&init, INIT).unwrap();
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).unwrap();
        // A process namespace of its own: reboot(2) there ends the namespace, not this machine.
        let output = Command::new("unshare").args(["--pid", "--fork", "--"]).arg(&init).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.starts_with(MARK), "{output:?}");
    }

    #[test]
    fn a_machine_that_stops_for_good_fails_and_a_silent_one_hangs() {
        let outcome = |status, output: &str| {
            Ok(Outcome { status, output: output.into(), took: Duration::from_millis(5) })
        };
        let of = |result| {
            judge("x", Duration::from_secs(30), result, |o: &Outcome| o.output.contains(MARK).then_some(None))
        };
        let stopped = of(outcome(None, "Booting\nKVM internal error. Suberror: 1\nemulation failure\n"));
        assert!(
            matches!(&stopped, Boot::Fails { reason, .. } if reason.contains("KVM internal error")),
            "{stopped:?}"
        );
        assert!(matches!(of(outcome(None, "Booting\n")), Boot::Hangs { limit_ms: 30_000, .. }));
        assert!(matches!(of(outcome(None, "bench-init: a program runs\n")), Boot::Up { nested: None, .. }));
    }

    #[test]
    fn the_emulator_boots_the_sector_and_shows_svm() {
        if super::super::which(QEMU).is_none() {
            eprintln!("SKIPPED doctor::boot::the_emulator_boots_the_sector_and_shows_svm: no {QEMU}");
            return;
        }
        let boot = boot_sector(&["-accel", "tcg", "-cpu", "max,-la57"], Duration::from_secs(60));
        assert!(matches!(boot, Boot::Up { nested: Some(true), .. }), "{boot:?}");
        let without = boot_sector(&["-accel", "tcg", "-cpu", "qemu64,-svm"], Duration::from_secs(60));
        assert!(matches!(without, Boot::Up { nested: Some(false), .. }), "{without:?}");
    }

    #[test]
    fn a_kernel_comes_up_on_the_emulator_and_its_first_program_says_so() {
        let found = super::super::accelerator::kernel(&crate::image::Cache::location().unwrap());
        let kernel = match found {
            Ok(kernel) if super::super::which(QEMU).is_some() => kernel,
            other => {
                let test = "a_kernel_comes_up_on_the_emulator_and_its_first_program_says_so";
                eprintln!("SKIPPED doctor::boot::{test}: {}", other.err().unwrap_or(format!("no {QEMU}")));
                return;
            }
        };
        // With our own program, which any kernel can run.
        let kernel = Kernel { initrd: None, ..kernel };
        let boot = boot_kernel(&kernel, &["-accel", "tcg", "-cpu", "max,-la57"], Duration::from_secs(300));
        assert!(matches!(boot, Boot::Up { .. }), "{boot:?}");
    }

    #[test]
    fn xen_boots_on_the_emulator_and_sees_nested_paging() {
        let cache = crate::image::Cache::location().unwrap();
        let Some((_, folder)) = super::super::accelerator::cached(&cache, "host-xen") else {
            eprintln!(
                "SKIPPED doctor::boot::xen_boots_on_the_emulator_and_sees_nested_paging: no image host-xen; \
                 run `bench image build`"
            );
            return;
        };
        let cpu = crate::scenario::Hypervisor::Xen.host().emulated_cpu;
        let boot = boot_xen(&folder, &["-accel", "tcg", "-cpu", cpu], Duration::from_secs(180));
        assert!(matches!(boot, Boot::Up { nested: Some(true), .. }), "{boot:?}");
    }
}
