//! Machines and links, as a scenario describes them and a testbed makes them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names;
use super::quantity::{Percent, Rate, Size, Time};

/// Who provides the machines, and what runs them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Testbed {
    /// "nested" (QEMU machines that the bench boots), "inventory" (given ones) or "local" (none: this machine's own kernel).
    pub kind: TestbedKind,
    /// What runs the hosts: "kvm" (hardware virtualization), "tcg" (emulation) or "auto" (hardware virtualization where hosts come up
    /// with it); `--accelerator` goes before it.
    pub accelerator: AcceleratorChoice,
    /// File that lists the hosts; only with kind = "inventory".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inventory: Option<String>,
}

/// Who provides the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TestbedKind {
    /// The bench boots its own hosts as QEMU machines.
    #[default]
    Nested,
    /// Hosts that exist, listed in a file.
    Inventory,
    /// No hosts: this machine's own kernel, in namespaces of the bench's own.
    Local,
}

/// What runs the hosts.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorChoice {
    /// Hardware virtualization where hosts come up with it, else emulation.
    #[default]
    Auto,
    /// Hardware virtualization, or nothing.
    Kvm,
    /// Emulation, whatever the machine can do.
    Tcg,
}

/// The hypervisor of a host.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Deserialize,
    Serialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Hypervisor {
    /// QEMU with KVM.
    #[default]
    Kvm,
    /// Xen.
    Xen,
}

/// A host: it runs guests, and knows what its site tells them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where it stands; what its guests read as their site. By default its name.
    #[serde(default)]
    pub site: String,
    /// "kvm" or "xen".
    #[serde(default)]
    pub hypervisor: Hypervisor,
    /// Its memory beside its guests'; by default what its hypervisor needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// Its virtual processors; Xen's first domain has one of them. 1 by default.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub vcpus: u32,
    /// Debian packages beside those of its image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// What it tells its guests, as files of the class "infrastructure": path and content. `site` is always there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    /// Size of a file of random bytes that is added to it.
    #[serde(default = "mebibyte")]
    pub payload: Size,
}

/// A machine beside the hosts, which never migrates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where it stands; by default its name.
    #[serde(default)]
    pub site: String,
    /// Its memory, which holds its files, too.
    #[serde(default = "server_memory")]
    pub memory: Size,
    /// Its virtual processors.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 16))]
    pub vcpus: u32,
    /// Debian packages beside those of its image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// Files that it has from its start: path and content. One that begins with `#!` is a program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// A virtual machine that migrates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// The host on which it starts.
    pub at: String,
    /// Its memory, at least 64 MiB, in whole MiB.
    #[serde(default = "guest_memory")]
    pub memory: Size,
    /// Its virtual processors.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub vcpus: u32,
    /// How the hypervisor runs it: "hvm" on KVM; "pvh", "hvm" or "pv" on Xen. By default "hvm" on KVM and "pvh" on Xen.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<GuestType>,
    /// Debian packages beside those of its image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// Files that it has from its start: path and content. One that begins with `#!` is a program.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
    /// What runs in it when its context changes.
    #[serde(default, rename = "hook", skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<Hook>,
    /// Its context devices.
    #[serde(default)]
    pub context: Context,
}

impl Guest {
    /// How a hypervisor runs it: as asked, or as is usual there.
    pub fn kind_on(&self, hypervisor: Hypervisor) -> GuestType {
        self.kind.unwrap_or(match hypervisor {
            Hypervisor::Kvm => GuestType::Hvm,
            Hypervisor::Xen => GuestType::Pvh,
        })
    }
}

/// How a hypervisor runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuestType {
    /// Fully virtualized, with emulated devices.
    Hvm,
    /// Xen: hardware virtualization with paravirtual devices alone.
    Pvh,
    /// Xen: paravirtual altogether.
    Pv,
}

/// What runs in a guest when its context changes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Its name.
    pub name: String,
    /// The path in the context whose change runs it.
    pub path: String,
    /// The program and its arguments.
    pub run: Vec<String>,
    /// How long it may take.
    #[serde(default = "two_minutes")]
    pub timeout: Time,
}

/// The context devices of a guest, and how they are changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Context {
    /// Classes of context data on devices of their own: "service", "infrastructure".
    pub classes: Vec<Class>,
    /// How the infrastructure's is changed: "replace", "swap" or "prestage".
    pub strategy: Strategy,
    /// Whether a run waits until the guest has said that it shows the data, as its fifth phase, `acknowledge`. The paper's runs have
    /// four.
    pub acknowledge: bool,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            classes: vec![Class::Service, Class::Infrastructure],
            strategy: Strategy::Replace,
            acknowledge: false,
        }
    }
}

/// A class of context data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Of the service that the guest is part of; goes with it everywhere.
    Service,
    /// Of the place where the guest runs; replaced when it has migrated.
    Infrastructure,
}

/// How a context device is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Detach the device and attach a new one, as the paper does.
    Replace,
    /// Eject the medium and insert a new one.
    Swap,
    /// Build the image on the destination while memory is still being copied.
    Prestage,
}

/// A class of shaped links; a step `shape` applies it to a pair of machines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Its name, such as "wan".
    pub name: String,
    /// Data rate in each direction, in whole bytes a second before dilation: a multiple of 8 bit/s.
    pub rate: Rate,
    /// What the link adds to a round trip, half of it in each direction.
    pub delay: Time,
    /// Standard deviation of that delay, as a share of it.
    #[serde(default)]
    pub jitter: Percent,
    /// How much a packet's delay depends on the one before.
    #[serde(default)]
    pub correlation: Percent,
    /// Distribution of the variation: "normal", "uniform", "pareto" or "paretonormal".
    #[serde(default)]
    pub distribution: Distribution,
    /// How far the measured link may be from what is asked before the run stops.
    #[serde(default = "thirty_percent")]
    pub tolerance: Percent,
}

/// Distribution of a delay's variation, by netem's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Normal.
    #[default]
    Normal,
    /// Uniform.
    Uniform,
    /// Pareto.
    Pareto,
    /// A mixture of Pareto and normal.
    Paretonormal,
}

const fn one() -> u32 {
    1
}

const fn mebibyte() -> Size {
    Size::from_mib(1)
}

/// A file server, and the files of a test, which stay in memory.
const fn server_memory() -> Size {
    Size::from_mib(448)
}

const fn guest_memory() -> Size {
    Size::from_mib(256)
}

const fn two_minutes() -> Time {
    Time::from_secs(120)
}

const fn thirty_percent() -> Percent {
    Percent::from_percent(30)
}

names!(TestbedKind { Nested => "nested", Inventory => "inventory", Local => "local" });
names!(Hypervisor { Kvm => "kvm", Xen => "xen" });
names!(AcceleratorChoice { Auto => "auto", Kvm => "kvm", Tcg => "tcg" });
names!(GuestType { Hvm => "hvm", Pvh => "pvh", Pv => "pv" });
names!(Strategy { Replace => "replace", Swap => "swap", Prestage => "prestage" });
names!(Class { Service => "service", Infrastructure => "infrastructure" });
names!(Distribution {
    Normal => "normal",
    Uniform => "uniform",
    Pareto => "pareto",
    Paretonormal => "paretonormal",
});
