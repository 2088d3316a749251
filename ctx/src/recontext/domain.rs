//! What a domain's XML says: which devices it wants replaced, and which it has.
//!
//! A domain asks for recontextualization by an element in its metadata:
//!
//! ```xml
//! <metadata>
//!   <ctx:context xmlns:ctx="urn:ctx:context:1">
//!     <ctx:device class="infrastructure" target="sdb" bus="scsi" strategy="replace" on="migrated"/>
//!   </ctx:context>
//! </metadata>
//! ```
//!
//! | attribute | meaning | when not given |
//! |---|---|---|
//! | `class` | the class on this device, as the host's configuration names it | required |
//! | `target` | the device's target name (`<target dev=…>`): `sdb`; on Xen `xvdc` or, in a drive, `hdc` | required |
//! | `bus` | its bus: `scsi` (needs a virtio-scsi controller in the domain); on Xen `xen` or, in a drive, `ide` | `scsi` |
//! | `strategy` | how it is replaced: `replace` detaches the device and attaches a new one, `swap` changes the medium of a CD-ROM drive that the domain was started with; [`super::device`] has what each machine can | `replace` |
//! | `on` | the events that ask for it, with spaces: `migrated`, `booted`, `restored` | `migrated` |
//! | `generation` | the generation on the device, kept by the daemon; travels with the domain | `0` |

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ctx_format::ClassName;
use roxmltree::{Document, Node};
use serde::{Deserialize, Serialize};

use super::device::{self, Machine};
use super::edit::escape;
use super::trigger::Trigger;

/// The namespace of our metadata.
pub const NAMESPACE: &str = "urn:ctx:context:1";

/// The prefix of that namespace, where we write it.
pub const PREFIX: &str = "ctx";

/// How a device is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Detach the device and attach a new one, as the paper does.
    #[default]
    Replace,
    /// Leave the drive where it is and change the medium in it.
    Swap,
}

impl Strategy {
    const ALL: [Self; 2] = [Self::Replace, Self::Swap];

    /// Its name in metadata and log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Swap => "swap",
        }
    }
}

/// A device that a domain wants replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The class on it.
    pub class: ClassName,
    /// Its target name, like `sdb`.
    pub target: String,
    /// Its bus, like `scsi`.
    pub bus: String,
    /// How it is replaced.
    pub strategy: Strategy,
    /// The events that ask for it.
    pub on: On,
    /// The generation that the domain brought along.
    pub generation: u64,
}

/// The events that ask for a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct On {
    /// The domain migrated.
    pub migrated: bool,
    /// It was started.
    pub booted: bool,
    /// It was restored.
    pub restored: bool,
}

impl Default for On {
    fn default() -> Self {
        Self { migrated: true, booted: false, restored: false }
    }
}

impl Wanted {
    /// Whether this trigger asks for this device. A manual request always does.
    pub fn asks_for(&self, trigger: &Trigger) -> bool {
        match trigger {
            Trigger::Migrated => self.on.migrated,
            Trigger::Booted => self.on.booted,
            Trigger::Restored => self.on.restored,
            Trigger::Reconcile | Trigger::Manual { .. } => true,
        }
    }
}

/// A disk that a domain has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// `cdrom`, `disk`, …
    pub device: String,
    /// Its target name.
    pub target: String,
    /// Its bus.
    pub bus: String,
    /// The file in it; `None` when it is empty or not a file.
    pub source: Option<String>,
    /// Its alias, which events name.
    pub alias: Option<String>,
    /// Whether the guest cannot write to it.
    pub readonly: bool,
}

/// What a domain's XML says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The devices that it wants replaced.
    pub wanted: Vec<Wanted>,
    /// Its disks by target name.
    pub disks: BTreeMap<String, Disk>,
    /// Whether it has a virtio-scsi controller.
    pub virtio_scsi: bool,
    /// What kind of machine it is.
    pub machine: Machine,
    /// Its number on the hypervisor; `None` when it does not run.
    pub number: Option<u32>,
}

/// Why a domain's XML cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Not XML.
    #[error("the domain's XML is not well formed: {0}")]
    Xml(String),
    /// Our metadata is wrong.
    #[error("the metadata <{PREFIX}:context> is wrong at line {line}: {message}")]
    Metadata {
        /// The line in the domain's XML.
        line: u32,
        /// What is wrong and what to do.
        message: String,
    },
}

impl View {
    /// Whether this trigger asks for any device.
    pub fn asks_for(&self, trigger: &Trigger) -> bool {
        self.wanted.iter().any(|wanted| wanted.asks_for(trigger))
    }

    /// Reads a domain's XML.
    ///
    /// # Errors
    /// [`ViewError`] when it is not XML or our metadata in it is wrong.
    pub fn parse(xml: &str) -> Result<Self, ViewError> {
        let document = Document::parse(xml).map_err(|error| ViewError::Xml(error.to_string()))?;
        let root = document.root_element();
        let mut wanted: Vec<Wanted> = Vec::new();
        let contexts = child(root, "metadata").into_iter().flat_map(|metadata| metadata.children());
        for context in contexts.filter(|node| node.has_tag_name((NAMESPACE, "context"))) {
            for node in context.children().filter(Node::is_element) {
                let fail = |message: String| ViewError::Metadata {
                    line: document.text_pos_at(node.range().start).row,
                    message,
                };
                let device = parse_wanted(node).map_err(fail)?;
                if wanted.iter().any(|other| other.target == device.target) {
                    return Err(fail(format!("target `{}` is named twice", device.target)));
                }
                wanted.push(device);
            }
        }
        let devices = child(root, "devices");
        let disks =
            device::disks(root).filter_map(parse_disk).map(|disk| (disk.target.clone(), disk)).collect();
        let virtio_scsi = devices.into_iter().flat_map(|devices| devices.children()).any(|node| {
            node.has_tag_name("controller")
                && node.attribute("type") == Some("scsi")
                && node.attribute("model").is_some_and(|model| model.starts_with("virtio"))
        });
        let number = root.attribute("id").and_then(|id| id.parse().ok());
        Ok(Self { wanted, disks, virtio_scsi, machine: device::machine(root), number })
    }
}

/// The first child element of that name.
pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn parse_wanted(node: Node<'_, '_>) -> Result<Wanted, String> {
    if !node.has_tag_name((NAMESPACE, "device")) {
        return Err(format!("<{}> is not known: use <{PREFIX}:device>", node.tag_name().name()));
    }
    let (mut class, mut target, mut bus) = (None, None, "scsi");
    let (mut strategy, mut on, mut generation) = (Strategy::default(), On::default(), 0);
    for attribute in node.attributes() {
        let value = attribute.value();
        match attribute.name() {
            "class" => class = Some(ClassName::new(value).map_err(|error| error.to_string())?),
            "target" if plain(value) => target = Some(value.to_owned()),
            "bus" if plain(value) => bus = value,
            "target" | "bus" => {
                return Err(format!("{} is {value:?}: use a name like sdb or scsi", attribute.name()));
            }
            "strategy" => {
                strategy = Strategy::ALL
                    .into_iter()
                    .find(|strategy| strategy.name() == value)
                    .ok_or_else(|| format!("strategy `{value}` is not known: use `replace` or `swap`"))?;
            }
            "on" => {
                on = On { migrated: false, booted: false, restored: false };
                for event in value.split_whitespace() {
                    match event {
                        "migrated" => on.migrated = true,
                        "booted" => on.booted = true,
                        "restored" => on.restored = true,
                        _ => {
                            return Err(format!(
                                "event `{event}` is not known: use migrated, booted, restored"
                            ));
                        }
                    }
                }
            }
            "generation" => {
                generation =
                    value.parse().map_err(|_| format!("generation `{value}` is not a whole number"))?;
            }
            other => return Err(format!("attribute `{other}` is not known")),
        }
    }
    Ok(Wanted {
        class: class.ok_or("attribute `class` is missing")?,
        target: target.ok_or("attribute `target` is missing")?,
        bus: bus.to_owned(),
        strategy,
        on,
        generation,
    })
}

/// Target and bus stand in file names and XML.
fn plain(name: &str) -> bool {
    (1..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn parse_disk(node: Node<'_, '_>) -> Option<Disk> {
    let target = child(node, "target")?;
    Some(Disk {
        device: node.attribute("device").unwrap_or("disk").to_owned(),
        target: target.attribute("dev")?.to_owned(),
        bus: target.attribute("bus").unwrap_or_default().to_owned(),
        source: child(node, "source").and_then(|source| source.attribute("file")).map(str::to_owned),
        alias: child(node, "alias").and_then(|alias| alias.attribute("name")).map(str::to_owned),
        readonly: child(node, "readonly").is_some(),
    })
}

/// The metadata with `generation` on the device at `target`, without namespace: libvirt adds it.
pub fn metadata_xml(wanted: &[Wanted], target: &str, generation: u64) -> String {
    let mut xml = String::from("<context>");
    for device in wanted {
        let on: Vec<&str> = [
            (device.on.migrated, "migrated"),
            (device.on.booted, "booted"),
            (device.on.restored, "restored"),
        ]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
        let generation = if device.target == target { generation } else { device.generation };
        // Writing to a string cannot fail.
        let _ = write!(
            xml,
            "<device class='{}' target='{}' bus='{}' strategy='{}' on='{}' generation='{generation}'/>",
            device.class,
            escape(&device.target),
            escape(&device.bus),
            device.strategy.name(),
            on.join(" "),
        );
    }
    xml.push_str("</context>");
    xml
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert_eq, proptest};

    use super::*;

    fn xml(devices: &str) -> String {
        format!(
            "<domain type='kvm'><name>g1</name><metadata><o:other xmlns:o='urn:other'/>\n\
             <ctx:context xmlns:ctx='{NAMESPACE}'>{devices}</ctx:context></metadata><devices>\
             <controller type='scsi' model='virtio-scsi'/>\
             <disk type='file' device='disk'><source file='/vda.qcow2'/><target dev='vda' bus='virtio'/></disk>\
             <disk type='file' device='cdrom'><source file='/c.iso'/><target dev='sdb' bus='scsi'/>\
             <alias name='ua-ctx-sdb'/></disk>\
             <disk type='file' device='cdrom'><target dev='sdc' bus='scsi'/></disk></devices></domain>"
        )
    }

    #[test]
    fn what_is_not_given_has_a_default() {
        let view = View::parse(&xml("<ctx:device class='infrastructure' target='sdb'/>")).unwrap();
        assert_eq!(
            view.wanted,
            [Wanted {
                class: "infrastructure".parse().unwrap(),
                target: "sdb".into(),
                bus: "scsi".into(),
                strategy: Strategy::Replace,
                on: On::default(),
                generation: 0,
            }]
        );
        assert!(view.virtio_scsi);
        assert_eq!(view.disks["sdb"].source.as_deref(), Some("/c.iso"));
        assert_eq!(view.disks["sdb"].alias.as_deref(), Some("ua-ctx-sdb"));
        assert_eq!(view.disks["sdc"].source, None);
        assert!(view.wanted[0].asks_for(&Trigger::Migrated));
        assert!(!view.wanted[0].asks_for(&Trigger::Booted));
        assert!(view.wanted[0].asks_for(&Trigger::Manual { reason: None }));
    }

    #[test]
    fn a_domain_without_our_metadata_wants_nothing() {
        let view = View::parse("<domain><devices/></domain>").unwrap();
        assert!(view.wanted.is_empty() && view.disks.is_empty() && !view.virtio_scsi);
    }

    #[test]
    fn wrong_metadata_is_said_with_its_line() {
        let error = |devices: &str| View::parse(&xml(devices)).unwrap_err().to_string();
        let device = "<ctx:device class='infrastructure' target='sdb'";
        let errors = [
            error("<ctx:device target='sdb'/>"),
            error("<ctx:device class='infrastructure'/>"),
            error(&format!("{device} on='migrate'/>")),
            error(&format!("{device} strategy='magic'/>")),
            error(&format!("{device} colour='red'/>")),
            error(&format!("{device}/>\n{device}/>")),
            error("<ctx:device class='infrastructure' target='../x'/>"),
            error("<ctx:disk/>"),
        ];
        insta::assert_snapshot!(errors.join("\n"));
        assert!(matches!(View::parse("<domain>"), Err(ViewError::Xml(_))));
    }

    #[test]
    fn the_metadata_that_is_written_is_read_back() {
        let devices = "<ctx:device class='a' target='sdb' on='booted restored'/><ctx:device class='b' target='sdc' strategy='swap' generation='4'/>";
        let mut wanted = View::parse(&xml(devices)).unwrap().wanted;
        let written = metadata_xml(&wanted, "sdb", 9);
        let inner = written.trim_start_matches("<context>").trim_end_matches("</context>");
        let again = View::parse(&xml(&inner.replace("<device", "<ctx:device"))).unwrap().wanted;
        wanted[0].generation = 9;
        assert_eq!(again, wanted);
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "\\PC{0,80}") {
            let _ = View::parse(&text);
            let _ = View::parse(&xml(&text));
        }

        #[test]
        fn any_image_path_survives_the_xml(path in "[^\\p{Cc}\\p{Cn}]{1,40}") {
            let view = View::parse(&xml("<ctx:device class='a' target='sdb'/>")).unwrap();
            let device = device::Form::Cdrom.xml(&view.wanted[0], &path);
            let document = format!("<domain><devices>{device}</devices></domain>");
            let disk = &View::parse(&document).unwrap().disks["sdb"];
            prop_assert_eq!(disk.source.as_deref(), Some(path.as_str()));
        }
    }
}
