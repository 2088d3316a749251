//! The QEMU command line of one machine, as a function of what it shall be.
//!
//! The flags are those that work where the runner has no hardware virtualization as well. What differs
//! between hypervisors (the emulated processor, and what is booted before the kernel) is given.

use super::address::{Member, Network};
use super::plain::PlainPath;
pub use crate::doctor::Accelerator;

/// A read-only disk, known inside by its serial number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Serial number: the machine finds it as `/dev/disk/by-id/virtio-SERIAL`.
    pub serial: String,
    /// The raw image.
    pub path: PlainPath,
}

/// A hypervisor that is started in the kernel's place, with the kernel as its first domain's
/// (Multiboot: the first module is that kernel, the second its initramfs).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multiboot {
    /// The hypervisor, a 32-bit ELF file.
    pub image: PlainPath,
    /// Its own command line.
    pub append: String,
}

/// One machine to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Host name, also QEMU's `-name`.
    pub name: String,
    /// Its place in the address plan.
    pub member: Member,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// What is started before the kernel; nothing on most machines.
    pub multiboot: Option<Multiboot>,
    /// QEMU's name of the processor where it is emulated, with flags.
    pub emulated_cpu: &'static str,
    /// Kernel, booted directly.
    pub kernel: PlainPath,
    /// The bench's initramfs.
    pub initrd: PlainPath,
    /// Further words of the kernel command line.
    pub append: String,
    /// Disks; the one with serial `root` is the root file system.
    pub disks: Vec<Disk>,
    /// Socket for QMP.
    pub qmp: PlainPath,
}

impl Machine {
    /// Arguments of `qemu-system-x86_64`. The console is QEMU's standard output.
    pub fn arguments(&self, accelerator: Accelerator) -> Vec<String> {
        let mut args: Vec<String> = Vec::new();
        let mut push = |words: &[&str]| args.extend(words.iter().map(ToString::to_string));
        push(&["-name", &self.name, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        push(&["-M", "q35,usb=off,vmport=off"]);
        match accelerator {
            Accelerator::Kvm => push(&["-accel", "kvm", "-cpu", "host"]),
            Accelerator::Tcg => {
                push(&["-accel", "tcg,thread=multi,tb-size=512", "-cpu", self.emulated_cpu]);
            }
        }
        push(&["-smp", &self.vcpus.to_string(), "-m", &self.memory_mib.to_string()]);
        push(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        push(&["-qmp", &format!("unix:{},server=on,wait=off", self.qmp)]);
        let (kernel, initrd) = (self.kernel.as_str(), self.initrd.as_str());
        match &self.multiboot {
            None => push(&["-kernel", kernel, "-initrd", initrd, "-append", &self.append]),
            // The first word of a module is its file, the rest what it is told.
            Some(first) => push(&[
                "-kernel",
                first.image.as_str(),
                "-append",
                &first.append,
                "-initrd",
                &format!("{kernel} {},{initrd}", escape(&self.append)),
            ]),
        }
        push(&["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"]);
        for (i, disk) in self.disks.iter().enumerate() {
            push(&[
                "-drive",
                &format!(
                    "if=none,id=disk{i},format=raw,readonly=on,cache=unsafe,aio=threads,file={}",
                    disk.path
                ),
                "-device",
                &format!("virtio-blk-pci,drive=disk{i},serial={}", disk.serial),
            ]);
        }
        for &network in self.member.role.networks() {
            let tap = self.member.tap(network);
            push(&[
                "-netdev",
                &format!("tap,id={tap},ifname={tap},script=no,downscript=no"),
                "-device",
                &format!("virtio-net-pci,netdev={tap},mac={},romfile=", self.member.mac(network)),
            ]);
        }
        args
    }

    /// Its address on the management network.
    pub fn management(&self) -> std::net::Ipv4Addr {
        self.member.address(Network::Management)
    }
}

/// QEMU's option parser takes a doubled comma for a comma.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::address::Role;

    fn plain(path: &str) -> PlainPath {
        PlainPath::new(std::path::Path::new(path)).unwrap()
    }

    fn host() -> Machine {
        Machine {
            name: "a".into(),
            member: Member { role: Role::Host, index: 0 },
            memory_mib: 1536,
            vcpus: 1,
            multiboot: None,
            emulated_cpu: "max,-la57",
            kernel: plain("/c/vmlinuz"),
            initrd: plain("/c/initrd"),
            append: "console=ttyS0".into(),
            disks: vec![Disk { serial: "root".into(), path: plain("/c/a.ext4") }],
            qmp: plain("/s/a.qmp"),
        }
    }

    #[test]
    fn the_accelerator_is_the_one_asked_for_and_no_other() {
        let line = host().arguments(Accelerator::Tcg).join(" ");
        assert!(line.contains("-accel tcg") && !line.contains("kvm"), "{line}");
        let line = host().arguments(Accelerator::Kvm).join(" ");
        assert!(line.contains("-accel kvm") && !line.contains("tcg"), "{line}");
    }

    #[test]
    fn a_hypervisor_is_started_first_and_the_kernel_is_its_module() {
        let mut machine = host();
        machine.multiboot = Some(Multiboot { image: plain("/c/xen"), append: "console=com1".into() });
        machine.append = "root=x,y".into();
        let args = machine.arguments(Accelerator::Tcg);
        let after = |flag: &str| args[args.iter().position(|arg| arg == flag).unwrap() + 1].as_str();
        assert_eq!(after("-kernel"), "/c/xen");
        assert_eq!(after("-append"), "console=com1");
        assert_eq!(after("-initrd"), "/c/vmlinuz root=x,,y,/c/initrd");
    }

    #[test]
    fn every_network_of_the_role_has_an_interface() {
        let line = host().arguments(Accelerator::Tcg).join(" ");
        for tap in ["h0-mgmt", "h0-mig", "h0-data"] {
            assert!(line.contains(&format!("ifname={tap},")), "{line}");
        }
        assert!(line.contains("file=/c/a.ext4"), "{line}");
    }
}
