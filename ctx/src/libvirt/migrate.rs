//! What a live migration is asked to do.

use virt::domain::MigrateParameters;
use virt::sys;

/// Flags of a migration; the default is `live` alone.
// Each is an independent switch of libvirt's call, not a state.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrateFlags {
    /// Move it while it runs.
    pub live: bool,
    /// Slow the guest's CPUs when it dirties memory faster than it can be sent.
    pub auto_converge: bool,
    /// Allow post-copy (it starts only when asked for).
    pub postcopy: bool,
    /// Keep the domain's definition on the destination.
    pub persist_destination: bool,
    /// Remove the domain's definition from the source.
    pub undefine_source: bool,
    /// Leave the domain paused on the destination.
    pub paused: bool,
    /// Skip libvirt's check of shared storage and cache modes.
    pub unchecked: bool,
    /// Give up at the first storage error.
    pub abort_on_error: bool,
}

impl Default for MigrateFlags {
    fn default() -> Self {
        Self {
            live: true,
            auto_converge: false,
            postcopy: false,
            persist_destination: false,
            undefine_source: false,
            paused: false,
            unchecked: false,
            abort_on_error: false,
        }
    }
}

impl MigrateFlags {
    pub(super) fn bits(self) -> u32 {
        [
            (self.live, sys::VIR_MIGRATE_LIVE),
            (self.auto_converge, sys::VIR_MIGRATE_AUTO_CONVERGE),
            (self.postcopy, sys::VIR_MIGRATE_POSTCOPY),
            (self.persist_destination, sys::VIR_MIGRATE_PERSIST_DEST),
            (self.undefine_source, sys::VIR_MIGRATE_UNDEFINE_SOURCE),
            (self.paused, sys::VIR_MIGRATE_PAUSED),
            (self.unchecked, sys::VIR_MIGRATE_UNSAFE),
            (self.abort_on_error, sys::VIR_MIGRATE_ABORT_ON_ERROR),
        ]
        .into_iter()
        .filter_map(|(on, bit)| on.then_some(bit))
        .sum()
    }
}

/// What to ask of a migration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrateOptions {
    /// Its flags.
    pub flags: MigrateFlags,
    /// Where the hypervisors send memory, as `tcp://198.18.1.12` or with a port.
    pub uri: Option<String>,
    /// The address that the destination listens on.
    pub listen_address: Option<String>,
    /// The bandwidth limit in MiB/s; libvirt's own when not given.
    pub bandwidth_mib_s: Option<u64>,
    /// The domain's XML on the destination, where it must differ.
    pub destination_xml: Option<String>,
    /// TCP connections to send memory on, more than one sets `VIR_MIGRATE_PARALLEL`.
    pub parallel_connections: Option<i32>,
}

impl MigrateOptions {
    pub(super) fn bits(&self) -> u32 {
        let parallel = if self.parallel_connections.is_some() { sys::VIR_MIGRATE_PARALLEL } else { 0 };
        self.flags.bits() | parallel
    }

    pub(super) fn parameters(&self) -> MigrateParameters {
        MigrateParameters {
            uri: self.uri.clone(),
            listen_address: self.listen_address.clone(),
            bandwidth: self.bandwidth_mib_s,
            dest_xml: self.destination_xml.clone(),
            parallel_connections: self.parallel_connections,
            ..MigrateParameters::default()
        }
    }

    /// The first text that libvirt could not be given since it holds a NUL.
    pub(super) fn text_with_nul(&self) -> bool {
        [&self.uri, &self.listen_address, &self.destination_xml]
            .into_iter()
            .any(|text| text.as_deref().is_some_and(|text| text.contains('\0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_libvirts() {
        assert_eq!(MigrateOptions::default().bits(), sys::VIR_MIGRATE_LIVE);
        let options = MigrateOptions {
            flags: MigrateFlags { auto_converge: true, ..MigrateFlags::default() },
            parallel_connections: Some(2),
            ..MigrateOptions::default()
        };
        assert_eq!(
            options.bits(),
            sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_AUTO_CONVERGE | sys::VIR_MIGRATE_PARALLEL
        );
    }
}
