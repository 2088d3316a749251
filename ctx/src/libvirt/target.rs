//! Whether the place of a disk that is to be attached is taken.
//!
//! libvirt before 10 refuses a disk whose target is taken. Newer ones take a CD-ROM there for a change of medium: the drive
//! that is there, whoever it belongs to, gets another disc, and nobody is told of a new device. Attaching is one thing and
//! changing media another, so the gateway looks first and refuses with every version.

use roxmltree::{Document, Node};

/// The target of the disk in `device` when `domain` has a disk there. Text that is not XML is left for libvirt to refuse.
pub(super) fn taken(domain: &str, device: &str) -> Option<String> {
    let device = Document::parse(device).ok()?;
    let wanted = target(device.root_element())?;
    let domain = Document::parse(domain).ok()?;
    let devices = domain.root_element().children().find(|node| node.has_tag_name("devices"))?;
    devices.children().any(|disk| target(disk) == Some(wanted)).then(|| wanted.to_owned())
}

/// The target of a disk; nothing for other devices, whose targets are of other kinds.
fn target<'a>(disk: Node<'a, '_>) -> Option<&'a str> {
    disk.has_tag_name("disk").then_some(())?;
    disk.children().find(|node| node.has_tag_name("target"))?.attribute("dev")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "<domain><devices>\
        <interface><target dev='vnet0'/></interface>\
        <disk device='disk'><source file='/a'/><target dev='vda' bus='virtio'/></disk>\
        <disk device='cdrom'><target dev='sdb' bus='scsi'/></disk>\
        </devices></domain>";

    #[test]
    fn only_a_disk_takes_the_place_of_a_disk() {
        let disk = |dev| format!("<disk device='cdrom'><source file='/b'/><target dev='{dev}'/></disk>");
        // An empty drive, too.
        assert_eq!(taken(DOMAIN, &disk("sdb")).as_deref(), Some("sdb"));
        assert_eq!(taken(DOMAIN, &disk("vda")).as_deref(), Some("vda"));
        assert_eq!(taken(DOMAIN, &disk("sdc")), None);
        assert_eq!(taken(DOMAIN, &disk("vnet0")), None);
        assert_eq!(taken(DOMAIN, "<interface><target dev='sdb'/></interface>"), None);
        assert_eq!(taken("no XML", &disk("sdb")), None);
        assert_eq!(taken(DOMAIN, "no XML"), None);
    }
}
