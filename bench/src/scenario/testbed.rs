//! `[testbed]`: where the hosts come from, what they run, and what runs them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::{AcceleratorChoice, Hypervisor, TestbedKind};

/// The machines.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Testbed {
    /// Who provides the hosts: "nested" (QEMU machines that the bench boots), "inventory" (given ones)
    /// or "local" (none: this machine's own kernel, for experiment "layers").
    pub kind: TestbedKind,
    /// The hosts' hypervisor: "kvm" or "xen".
    pub hypervisor: Hypervisor,
    /// What runs the hosts: "kvm" (hardware virtualization), "tcg" (emulation) or "auto" (hardware virtualization where hosts come up with
    /// it); `--accelerator` goes before it.
    pub accelerator: AcceleratorChoice,
    /// Number of hosts, at least 2.
    #[schemars(range(min = 2, max = 16))]
    pub hosts: u32,
    /// Virtual processors of each host that the bench boots; Xen's first domain has one of them. 1 by default.
    #[schemars(range(min = 1, max = 16))]
    pub host_vcpus: u32,
    /// File that lists the hosts; only with kind = "inventory".
    pub inventory: Option<String>,
    /// Dilation of the shaped links (rates ÷ d, delays × d), at least 1; by default 1 with hardware
    /// virtualization and `emulated_dilation` without.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub dilation: Option<f64>,
    /// Dilation without hardware virtualization, at least 1.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub emulated_dilation: f64,
    /// Dilation while Bonnie++'s file operations run without hardware virtualization, at least 1; by
    /// default the same as for the rest.
    #[schemars(range(min = 1.0, max = 100.0))]
    pub file_dilation: Option<f64>,
}

impl Default for Testbed {
    fn default() -> Self {
        Self {
            kind: TestbedKind::Nested,
            hypervisor: Hypervisor::Kvm,
            accelerator: AcceleratorChoice::Auto,
            hosts: 2,
            host_vcpus: 1,
            inventory: None,
            dilation: None,
            emulated_dilation: 5.0,
            file_dilation: None,
        }
    }
}

impl Testbed {
    /// Dilation of the shaped links on a machine that is `emulated` (TCG) or not.
    pub fn dilation_on(&self, emulated: bool) -> f64 {
        self.dilation.unwrap_or(if emulated { self.emulated_dilation } else { 1.0 })
    }

    /// The same while Bonnie++'s file operations run.
    pub fn file_dilation_on(&self, emulated: bool) -> f64 {
        self.file_dilation.filter(|_| emulated).unwrap_or_else(|| self.dilation_on(emulated))
    }
}
