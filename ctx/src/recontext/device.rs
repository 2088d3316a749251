//! Which device carries a class on which kind of machine, and how it can be replaced.
//!
//! | machine | `replace`: detach, attach | `swap`: eject, insert |
//! |---|---|---|
//! | KVM (libvirt's QEMU driver) | CD-ROM on `scsi` (virtio-scsi) or `usb` | any CD-ROM that is there from the start |
//! | Xen, PVH or PV | disk on bus `xen`, target `xvdX` | no: such a domain has no CD-ROM drive |
//! | Xen, HVM | disk on bus `xen`, target `xvdX` | its CD-ROM on `ide`, target `hdX` |
//!
//! libxl plugs no CD-ROM into a running domain, and QEMU none on `ide` or `sata`. All of this is known
//! from the domain's XML, so what cannot be done is said before anything is touched.

use std::fmt;

use roxmltree::{Document, Node};

use super::domain::{Disk, Strategy, View, ViewError, Wanted, child};
use super::edit::{Edit, apply, escape};

/// The kind of machine that a domain is, as far as its devices differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Machine {
    /// Of libvirt's QEMU driver, with KVM or without.
    #[default]
    Qemu,
    /// Of libxl, with a device model.
    XenHvm,
    /// Of libxl, with hardware virtualization and no device model.
    XenPvh,
    /// Of libxl, paravirtualized.
    XenPv,
}

impl Machine {
    /// From `<domain type=…>` and the text of `<os><type>`.
    pub fn of(domain_type: &str, os_type: &str) -> Self {
        match (domain_type, os_type) {
            ("xen", "hvm") => Self::XenHvm,
            ("xen", "xenpvh") => Self::XenPvh,
            ("xen", _) => Self::XenPv,
            _ => Self::Qemu,
        }
    }

    /// Whether it runs on Xen.
    pub fn is_xen(self) -> bool {
        self != Self::Qemu
    }

    /// Whether its driver tells by events when a device was removed or a tray was opened. libxl tells
    /// of the life of a domain only, so there the XML must be read again.
    pub fn tells_of_devices(self) -> bool {
        !self.is_xen()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Qemu => "KVM",
            Self::XenHvm => "Xen HVM",
            Self::XenPvh => "Xen PVH",
            Self::XenPv => "Xen PV",
        })
    }
}

/// How a device is replaced, decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Detach it, attach a new one of this form.
    Replace(Form),
    /// Eject the medium of the drive, insert another.
    Swap,
}

/// What kind of device is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A CD-ROM drive with the image in it.
    Cdrom,
    /// A read-only disk of Xen's block backend: the only kind that libxl plugs.
    XenDisk,
}

/// What is wanted of a domain that it cannot have. Another try would end the same way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The machine has no CD-ROM drives.
    #[error(
        "device `{target}`: a {machine} domain has no CD-ROM drive: use strategy=\"replace\" with bus=\"xen\" \
         and target=\"xvdc\""
    )]
    NoDrives {
        /// The device.
        target: String,
        /// What the domain is.
        machine: Machine,
    },
    /// A bus on which this machine cannot plug the device.
    #[error(
        "device `{target}`: {machine} plugs no device on bus `{bus}` while the domain runs: use {instead}"
    )]
    Bus {
        /// The device.
        target: String,
        /// What the domain is.
        machine: Machine,
        /// The bus asked for.
        bus: String,
        /// What works.
        instead: &'static str,
    },
    /// A target name that is not of the bus.
    #[error("device `{target}`: targets on bus `{bus}` are named {prefix}X: use target=\"{prefix}c\"")]
    Target {
        /// The device.
        target: String,
        /// Its bus.
        bus: String,
        /// How names on that bus begin.
        prefix: &'static str,
    },
    /// No controller for the device.
    #[error(
        "device `{target}` is to be on bus scsi, but the domain has no virtio-scsi controller: add \
         <controller type='scsi' model='virtio-scsi'/> to it"
    )]
    NoController {
        /// The device.
        target: String,
    },
    /// Nothing to put a medium in.
    #[error(
        "device `{target}`: the domain has no such CD-ROM drive to swap the medium of: define it with \
         <disk type='file' device='cdrom'><target dev='{target}' bus='{bus}'/><readonly/></disk> and start \
         the domain anew"
    )]
    NoDrive {
        /// The device.
        target: String,
        /// The bus asked for.
        bus: String,
    },
    /// Something else has that target.
    #[error(
        "device `{target}`: what is there is {there}, not {expected}: it is left alone; use another target"
    )]
    Taken {
        /// The device.
        target: String,
        /// What there is.
        there: String,
        /// What may be replaced.
        expected: String,
    },
}

/// How the device that is wanted can be replaced in this domain.
///
/// # Errors
/// [`DeviceError`] when it cannot be, with what can.
pub fn method(view: &View, wanted: &Wanted) -> Result<Method, DeviceError> {
    let target = wanted.target.clone();
    let there = view.disks.get(&target);
    match wanted.strategy {
        Strategy::Replace => {
            let form = form(view, wanted)?;
            match there {
                Some(disk) if !form.fits(disk, &wanted.bus) => Err(DeviceError::Taken {
                    target,
                    there: describe(disk),
                    expected: format!("a {form} on bus {}", wanted.bus),
                }),
                _ => Ok(Method::Replace(form)),
            }
        }
        Strategy::Swap if matches!(view.machine, Machine::XenPvh | Machine::XenPv) => {
            Err(DeviceError::NoDrives { target, machine: view.machine })
        }
        Strategy::Swap => match there {
            None => {
                let bus = if view.machine.is_xen() { "ide" } else { &wanted.bus };
                Err(DeviceError::NoDrive { target, bus: bus.to_owned() })
            }
            Some(disk) if !Form::Cdrom.fits(disk, &wanted.bus) => Err(DeviceError::Taken {
                target,
                there: describe(disk),
                expected: format!("a CD-ROM on bus {}", wanted.bus),
            }),
            Some(_) => Ok(Method::Swap),
        },
    }
}

fn form(view: &View, wanted: &Wanted) -> Result<Form, DeviceError> {
    let target = wanted.target.clone();
    let wrong = |instead| {
        Err(DeviceError::Bus {
            target: target.clone(),
            machine: view.machine,
            bus: wanted.bus.clone(),
            instead,
        })
    };
    match (view.machine, wanted.bus.as_str()) {
        (Machine::Qemu, "scsi") if view.virtio_scsi => Ok(Form::Cdrom),
        (Machine::Qemu, "scsi") => Err(DeviceError::NoController { target }),
        (Machine::Qemu, "usb") => Ok(Form::Cdrom),
        (Machine::Qemu, _) => wrong("bus=\"scsi\" with a virtio-scsi controller, or strategy=\"swap\""),
        (_, "xen") if wanted.target.starts_with("xvd") => Ok(Form::XenDisk),
        (_, "xen") => Err(DeviceError::Target { target, bus: wanted.bus.clone(), prefix: "xvd" }),
        (Machine::XenHvm, _) => {
            // The first four disks of an HVM domain are emulated as well and cannot come and go.
            wrong("bus=\"xen\" with target=\"xvde\", or strategy=\"swap\" with its CD-ROM on ide")
        }
        _ => wrong("bus=\"xen\" with target=\"xvdc\""),
    }
}

fn describe(disk: &Disk) -> String {
    let what = match (disk.device.as_str(), disk.readonly) {
        ("cdrom", _) => "CD-ROM",
        ("disk", true) => "read-only disk",
        ("disk", false) => "writable disk",
        (other, _) => other,
    };
    format!("a {what} on bus {}", disk.bus)
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cdrom => "CD-ROM",
            Self::XenDisk => "read-only disk",
        })
    }
}

impl Form {
    /// Whether a device that is there can be one of ours. Nobody's data is on a CD-ROM or a read-only
    /// disk; on a writable one it may be.
    fn fits(self, disk: &Disk, bus: &str) -> bool {
        disk.bus == bus
            && match self {
                Self::Cdrom => disk.device == "cdrom",
                Self::XenDisk => disk.device == "disk" && disk.readonly,
            }
    }

    /// The XML of a new device with the image at `image`.
    ///
    /// Under QEMU `startupPolicy='optional'` lets a migration leave it behind: the image of this host
    /// does not exist on the next one, which puts its own in. libxl knows no such thing, and keeps
    /// neither alias nor serial number.
    pub fn xml(self, wanted: &Wanted, image: &str) -> String {
        let (image, target, bus) = (escape(image), escape(&wanted.target), escape(&wanted.bus));
        match self {
            Self::Cdrom => format!(
                "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>\
                 <source file='{image}' startupPolicy='optional'/><target dev='{target}' bus='{bus}'/>\
                 <readonly/><serial>ctx-{}</serial><alias name='{}'/></disk>",
                wanted.class,
                escape(&alias(&wanted.target)),
            ),
            Self::XenDisk => format!(
                "<disk type='file' device='disk'><driver name='phy'/><source file='{image}'/>\
                 <target dev='{target}' bus='{bus}'/><readonly/></disk>"
            ),
        }
    }
}

/// The alias of a device: user-defined, so that it stays the same over generations.
fn alias(target: &str) -> String {
    format!("ua-ctx-{target}")
}

/// The XML that names the device at `target` for a detach: every driver goes by the target alone, but
/// libvirt takes no disk without a source, except an empty drive.
pub fn detach_xml(disk: &Disk) -> String {
    let source = match &disk.source {
        Some(source) if disk.device == "disk" => format!("<source file='{}'/>", escape(source)),
        _ => String::new(),
    };
    format!(
        "<disk type='file' device='{}'>{source}<target dev='{}' bus='{}'/></disk>",
        escape(&disk.device),
        escape(&disk.target),
        escape(&disk.bus)
    )
}

/// The XML of the drive at `target` in the domain's XML with another medium, or none: the drive as it
/// is, since libvirt refuses a change of anything else. `None` when there is no such drive.
///
/// # Errors
/// [`ViewError::Xml`] when `domain_xml` is not XML.
pub fn medium_xml(domain_xml: &str, target: &str, image: Option<&str>) -> Result<Option<String>, ViewError> {
    let document = Document::parse(domain_xml).map_err(|error| ViewError::Xml(error.to_string()))?;
    let root = document.root_element();
    let machine = machine(root);
    let Some(drive) = disks(root).find(|disk| target_of(*disk) == Some(target)) else { return Ok(None) };
    let start = drive.range().start;
    let mut edits: Vec<Edit> = drive
        .children()
        // The chain of images below belongs to the medium that was there.
        .filter(|node| ["source", "backingStore", "mirror"].iter().any(|name| node.has_tag_name(*name)))
        .map(|node| Edit { range: node.range(), text: String::new() })
        .collect();
    if let Some(kind) = drive.attribute_node("type") {
        edits.push(Edit { range: kind.range_value(), text: "file".into() });
    }
    // Whether the tray is open is up to the guest, and libvirt refuses a change that says otherwise than what is so by then.
    if let Some(tray) = child(drive, "target").and_then(|target| target.attribute_node("tray")) {
        edits.push(Edit { range: tray.range(), text: String::new() });
    }
    if let (Some(image), Some(place)) = (image, child(drive, "target")) {
        let policy = if machine.is_xen() { "" } else { " startupPolicy='optional'" };
        let at = place.range().start;
        edits.push(Edit { range: at..at, text: format!("<source file='{}'{policy}/>", escape(image)) });
    }
    for edit in &mut edits {
        edit.range = edit.range.start - start..edit.range.end - start;
    }
    Ok(Some(apply(&domain_xml[drive.range()], edits)))
}

/// What kind of machine a domain is.
pub(super) fn machine(root: Node<'_, '_>) -> Machine {
    let os = child(root, "os").and_then(|os| child(os, "type")).and_then(|kind| kind.text());
    Machine::of(root.attribute("type").unwrap_or_default(), os.unwrap_or_default().trim())
}

/// The disks of a domain.
pub(super) fn disks<'a, 'input: 'a>(root: Node<'a, 'input>) -> impl Iterator<Item = Node<'a, 'input>> {
    child(root, "devices")
        .into_iter()
        .flat_map(|devices| devices.children())
        .filter(|node| node.has_tag_name("disk"))
}

/// The target name of a disk.
pub(super) fn target_of<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    child(disk, "target")?.attribute("dev")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recontext::domain::NAMESPACE;

    const KVM: &str = "type='kvm'><os><type>hvm</type></os";
    const PVH: &str = "type='xen'><os><type arch='x86_64' machine='xenpvh'>xenpvh</type></os";
    const HVM: &str = "type='xen'><os><type arch='x86_64' machine='xenfv'>hvm</type></os";
    const PV: &str = "type='xen'><os><type arch='x86_64' machine='xenpv'>linux</type></os";
    const VIRTIO_SCSI: &str = "<controller type='scsi' model='virtio-scsi'/>";

    fn view(machine: &str, wanted: &str, devices: &str) -> View {
        View::parse(&format!(
            "<domain {machine}><metadata><ctx:context xmlns:ctx='{NAMESPACE}'>\
             <ctx:device class='infrastructure' {wanted}/></ctx:context></metadata>\
             <devices>{devices}</devices></domain>"
        ))
        .unwrap()
    }

    fn decide(machine: &str, wanted: &str, devices: &str) -> Result<Method, DeviceError> {
        let view = view(machine, wanted, devices);
        method(&view, &view.wanted[0])
    }

    fn disk(device: &str, target: &str, bus: &str, inner: &str) -> String {
        format!("<disk type='file' device='{device}'>{inner}<target dev='{target}' bus='{bus}'/></disk>")
    }

    #[test]
    fn each_machine_has_its_own_way() {
        let (sdb, xvdc) = ("target='sdb'", "target='xvdc' bus='xen'");
        let hdc = "target='hdc' bus='ide' strategy='swap'";
        let drive = disk("cdrom", "hdc", "ide", "");
        assert_eq!(decide(KVM, sdb, VIRTIO_SCSI), Ok(Method::Replace(Form::Cdrom)));
        assert_eq!(decide(KVM, hdc, &drive), Ok(Method::Swap));
        for machine in [PVH, HVM, PV] {
            assert_eq!(decide(machine, xvdc, ""), Ok(Method::Replace(Form::XenDisk)));
            let ours = disk("disk", "xvdc", "xen", "<source file='/i'/><readonly/>");
            assert_eq!(decide(machine, xvdc, &ours), Ok(Method::Replace(Form::XenDisk)));
        }
        assert_eq!(decide(HVM, hdc, &drive), Ok(Method::Swap));
    }

    #[test]
    fn what_cannot_be_is_said_with_what_can() {
        let swap = "target='sdb' strategy='swap'";
        let errors = [
            decide(KVM, "target='sdb'", ""),
            decide(KVM, "target='sdb' bus='sata'", ""),
            decide(KVM, "target='vda' bus='virtio'", ""),
            decide(KVM, swap, VIRTIO_SCSI),
            decide(KVM, swap, &disk("disk", "sdb", "scsi", "")),
            decide(KVM, swap, &disk("cdrom", "sdb", "sata", "")),
            decide(KVM, "target='sdb'", &format!("{VIRTIO_SCSI}{}", disk("disk", "sdb", "scsi", ""))),
            decide(PVH, "target='xvdc' bus='xen' strategy='swap'", ""),
            decide(PV, "target='xvdc' bus='xen' strategy='swap'", ""),
            decide(PVH, "target='sdb'", ""),
            decide(PVH, "target='sdb' bus='xen'", ""),
            decide(
                PVH,
                "target='xvda' bus='xen'",
                &disk("disk", "xvda", "xen", "<source file='/root.img'/>"),
            ),
            decide(HVM, "target='hdc' bus='ide'", &disk("cdrom", "hdc", "ide", "")),
            decide(HVM, "target='hdc' bus='ide' strategy='swap'", ""),
        ]
        .map(|result| result.unwrap_err().to_string());
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn devices_have_the_form_that_their_driver_takes() {
        let cdrom = view(KVM, "target='sdb'", "");
        let xen = view(PVH, "target='xvdc' bus='xen'", "");
        let xen_there = view(
            PVH,
            "target='xvdc' bus='xen'",
            &disk("disk", "xvdc", "xen", "<source file='/a&amp;b.iso'/><readonly/>"),
        );
        let kvm_there = view(KVM, "target='sdb'", &disk("cdrom", "sdb", "scsi", "<source file='/a.iso'/>"));
        insta::assert_snapshot!(
            [
                Form::Cdrom.xml(&cdrom.wanted[0], "/i'1.iso"),
                Form::XenDisk.xml(&xen.wanted[0], "/i'1.iso"),
                detach_xml(&kvm_there.disks["sdb"]),
                detach_xml(&xen_there.disks["xvdc"]),
            ]
            .join("\n")
        );
    }

    #[test]
    fn a_drive_keeps_all_but_its_medium() {
        let drive = |kind: &str, source: &str| {
            format!(
                "<disk type='{kind}' device='cdrom'>\n <driver name='qemu' type='raw'/>\n {source}<target dev='sda' bus='scsi'/>\n \
                 <readonly/><alias name='ua-x'/><address type='drive' unit='0'/></disk>"
            )
        };
        let domain =
            |machine: &str, drive: &str| format!("<domain {machine}><devices><x/>{drive}</devices></domain>");
        let full = drive("block", "<source dev='/dev/sr0' index='1'/>\n <backingStore/>\n ");
        let changed = |machine, image| medium_xml(&domain(machine, &full), "sda", image).unwrap().unwrap();
        insta::assert_snapshot!(
            [changed(KVM, None), changed(KVM, Some("/n'1.iso")), changed(HVM, Some("/n.iso"))].join("\n\n")
        );
        let empty = changed(KVM, None);
        assert_eq!(medium_xml(&domain(KVM, &empty), "sda", None).unwrap().unwrap(), empty);
        let open = full.replace("bus='scsi'/>", "bus='scsi' tray='open'/>");
        let of_open = medium_xml(&domain(KVM, &open), "sda", None).unwrap().unwrap();
        assert_eq!(of_open, empty.replace("bus='scsi'/>", "bus='scsi' />"), "the tray is the guest's");
        assert_eq!(medium_xml(&domain(KVM, &full), "sdb", None), Ok(None));
        assert!(medium_xml("<domain>", "sda", None).is_err());
    }
}
