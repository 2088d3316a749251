//! The metrics that a run can hold: their names, units and which way is better.
//!
//! One list for everyone who writes or reads samples, so that a name is never typed twice and a
//! unit never differs between the program that measures and the figure that shows.

/// Whole wall time of the migrate call, on the bench's clock.
pub const MIGRATION_TOTAL: &str = "migration_total";
/// Total time by libvirt's job statistics of the completed job.
pub const MIGRATION_TIME_LIBVIRT: &str = "migration_time_libvirt";
/// Downtime by libvirt's job statistics.
pub const DOWNTIME: &str = "downtime";
/// Longest silence of the guest's heartbeat, as received outside, from the migrate call to the first beat after the
/// switch-over, less the 50 ms between beats. A silence that is no longer than those is too short to be measured.
pub const DOWNTIME_PROBE: &str = "downtime_probe";
/// The same of the guest's answers to pings.
pub const DOWNTIME_PING: &str = "downtime_ping";
/// Memory moved by the migration.
pub const MEMORY_TRANSFERRED: &str = "memory_transferred";
/// Start of the migration until the recontextualizer has finished attaching and the migrate call has returned: the paper's
/// first bar of Fig. 1.
pub const WITH_RECONTEXT_TOTAL: &str = "with_recontext_total";
/// Event received by the recontextualizer until the new device is attached: the paper's third
/// bar of Fig. 1.
pub const RECONTEXT_TIME: &str = "recontext_time";
/// One phase of a recontextualization; the sample's phase is one of [`RECONTEXT_PHASES`],
/// or [`ACKNOWLEDGE`].
pub const RECONTEXT_PHASE: &str = "recontext_phase";
/// From the switch-over, by libvirt's news that the guest runs at the destination, until the guest's probe reads the new
/// content. Below 0 where that news was late. In runs without observations it is from the migrate call's return, or 0 where
/// that was later.
pub const CONTENT_VISIBLE: &str = "content_visible";
/// Migration started until the guest's probe reads the new content.
pub const CONTENT_VISIBLE_FROM_START: &str = "content_visible_from_start";

/// Bonnie++: writing byte by byte.
pub const BONNIE_PUTC: &str = "bonnie_putc";
/// Bonnie++: writing in blocks.
pub const BONNIE_BLOCK_WRITE: &str = "bonnie_block_write";
/// Bonnie++: reading, changing and writing back.
pub const BONNIE_REWRITE: &str = "bonnie_rewrite";
/// Bonnie++: reading byte by byte.
pub const BONNIE_GETC: &str = "bonnie_getc";
/// Bonnie++: reading in blocks.
pub const BONNIE_BLOCK_READ: &str = "bonnie_block_read";
/// Bonnie++: random seeks.
pub const BONNIE_SEEKS: &str = "bonnie_seeks";
/// Bonnie++: creating files in order of their names.
pub const BONNIE_SEQ_CREATE: &str = "bonnie_seq_create";
/// Bonnie++: stat of files in order; its "read" column.
pub const BONNIE_SEQ_STAT: &str = "bonnie_seq_stat";
/// Bonnie++: deleting files in order.
pub const BONNIE_SEQ_DELETE: &str = "bonnie_seq_delete";
/// Bonnie++: creating files in random order.
pub const BONNIE_RAN_CREATE: &str = "bonnie_ran_create";
/// Bonnie++: stat of files in random order; its "read" column.
pub const BONNIE_RAN_STAT: &str = "bonnie_ran_stat";
/// Bonnie++: deleting files in random order.
pub const BONNIE_RAN_DELETE: &str = "bonnie_ran_delete";
/// Bytes through one server's interface in one phase, e.g. `before:remote`.
pub const SERVER_BYTES: &str = "server_bytes";

/// Round-trip time of a link (the sample's phase), measured before anything counts.
pub const LINK_RTT: &str = "link_rtt";
/// Rate of a link (the sample's phase), measured before anything counts.
pub const LINK_RATE: &str = "link_rate";

/// A layer's lookups and reads: stat of each name on a fresh mount.
pub const STAT_COLD: &str = "stat_cold";
/// stat of each name again.
pub const STAT_WARM: &str = "stat_warm";
/// stat of names that do not exist, on a fresh mount.
pub const NEGATIVE_COLD: &str = "negative_cold";
/// The same again.
pub const NEGATIVE_WARM: &str = "negative_warm";
/// open, read of 4 KiB, close; warm.
pub const OPEN_READ: &str = "open_read";
/// open, listing, close of a directory; warm.
pub const READDIR: &str = "readdir";
/// First read of a large file from end to end.
pub const SEQ_FIRST: &str = "seq_first";
/// Later reads of it.
pub const SEQ_READ: &str = "seq_read";
/// Request of a swap until a reader has seen the new content: median of a trial's swaps.
pub const SWAP_VISIBLE: &str = "swap_visible";
/// The same: 99th percentile.
pub const SWAP_VISIBLE_P99: &str = "swap_visible_p99";
/// Request of a swap until a watcher was told of the last changed path: median of a trial's swaps.
pub const SWAP_EVENT: &str = "swap_event";
/// The same: 99th percentile.
pub const SWAP_EVENT_P99: &str = "swap_event_p99";
/// Changed paths of which a watcher was told too early or never.
pub const EVENT_FAULTS: &str = "event_faults";
/// Swap of a layer whose entries all change and are all cached by the kernel, until it is done.
pub const SWAP_CACHED: &str = "swap_cached";
/// What of that is because they are cached: less the same swap with none cached.
pub const INVALIDATE: &str = "invalidate";
/// Entries that were still the old ones after the swap was done.
pub const STALE: &str = "stale_entries";
/// Reads of a version older than one seen before in another file, while layers changed.
pub const MIXED_READS: &str = "mixed_reads";
/// Reads of a file that was not all of one version, meanwhile.
pub const TORN_READS: &str = "torn_reads";
/// Reads that failed meanwhile.
pub const STORM_ERRORS: &str = "storm_errors";
/// Reads made meanwhile.
pub const STORM_READS: &str = "storm_reads";
/// Mounting the large union, until it answers.
pub const MANY_MOUNT: &str = "many_mount";
/// Resident memory of the program behind it.
pub const MANY_MEMORY: &str = "many_memory";
/// A trial that could not be done to its end.
pub const TRIAL_FAILED: &str = "trial_failed";

/// What needs layers that change while they are shown.
pub const CHANGES: [&str; 12] = [
    SWAP_VISIBLE,
    SWAP_VISIBLE_P99,
    SWAP_EVENT,
    SWAP_EVENT_P99,
    EVENT_FAULTS,
    SWAP_CACHED,
    INVALIDATE,
    STALE,
    MIXED_READS,
    TORN_READS,
    STORM_ERRORS,
    STORM_READS,
];

/// The metrics of experiment `layers` that are compared with native, in the order of its tables.
pub const LAYERS: [&str; 15] = [
    STAT_COLD,
    STAT_WARM,
    NEGATIVE_COLD,
    NEGATIVE_WARM,
    OPEN_READ,
    READDIR,
    SEQ_FIRST,
    SEQ_READ,
    SWAP_VISIBLE,
    SWAP_VISIBLE_P99,
    SWAP_EVENT,
    SWAP_EVENT_P99,
    SWAP_CACHED,
    MANY_MOUNT,
    MANY_MEMORY,
];

/// Those that count what went wrong.
pub const FAULTS: [&str; 5] = [MIXED_READS, TORN_READS, STORM_ERRORS, EVENT_FAULTS, STALE];

/// The phases of a recontextualization, in order (paper, section "A recontextualization mechanism").
pub const RECONTEXT_PHASES: [&str; 4] = ["resolve", "detach", "build", "attach"];
/// The guest's part after them, where a scenario asks for it: until it has said that programs see the new data.
pub const ACKNOWLEDGE: &str = "acknowledge";

/// Bonnie++ at the first host, where the remote server's site is.
pub const PHASE_HOME: &str = "home";
/// Bonnie++ after the migration and before recontextualization: still on the remote server.
pub const PHASE_BEFORE: &str = "before";
/// Bonnie++ after recontextualization: on the local server.
pub const PHASE_AFTER: &str = "after";

/// Throughput metrics of Bonnie++, in the order of Fig. 6.
pub const BONNIE_THROUGHPUT: [&str; 5] =
    [BONNIE_PUTC, BONNIE_BLOCK_WRITE, BONNIE_REWRITE, BONNIE_GETC, BONNIE_BLOCK_READ];

/// File-operation metrics of Bonnie++, in the order of Fig. 7.
pub const BONNIE_FILES: [&str; 6] = [
    BONNIE_SEQ_CREATE,
    BONNIE_SEQ_STAT,
    BONNIE_SEQ_DELETE,
    BONNIE_RAN_CREATE,
    BONNIE_RAN_STAT,
    BONNIE_RAN_DELETE,
];

pub use crate::model::Better;

/// What is known of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name in samples.
    pub name: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// The unit of its samples.
    pub unit: &'static str,
    /// Which way it gets better.
    pub better: Better,
}

const fn metric(name: &'static str, label: &'static str, unit: &'static str, better: Better) -> Metric {
    Metric { name, label, unit, better }
}

/// All metrics, in the order in which tables show them.
pub const ALL: [Metric; 49] = [
    metric(MIGRATION_TOTAL, "Migration", "s", Better::Lower),
    metric(MIGRATION_TIME_LIBVIRT, "Migration (libvirt)", "s", Better::Lower),
    metric(WITH_RECONTEXT_TOTAL, "Migration with recontextualization", "s", Better::Lower),
    metric(RECONTEXT_TIME, "In the recontextualizer", "s", Better::Lower),
    metric(RECONTEXT_PHASE, "Recontextualization phase", "s", Better::Lower),
    metric(CONTENT_VISIBLE, "New content visible, after migration", "s", Better::Lower),
    metric(CONTENT_VISIBLE_FROM_START, "New content visible, from start", "s", Better::Lower),
    metric(DOWNTIME, "Downtime (libvirt)", "ms", Better::Lower),
    metric(DOWNTIME_PROBE, "Downtime (heartbeat)", "ms", Better::Lower),
    metric(DOWNTIME_PING, "Downtime (ping)", "ms", Better::Lower),
    metric(MEMORY_TRANSFERRED, "Memory transferred", "B", Better::Neither),
    metric(BONNIE_PUTC, "Per-char write", "KiB/s", Better::Higher),
    metric(BONNIE_BLOCK_WRITE, "Block write", "KiB/s", Better::Higher),
    metric(BONNIE_REWRITE, "Rewrite", "KiB/s", Better::Higher),
    metric(BONNIE_GETC, "Per-char read", "KiB/s", Better::Higher),
    metric(BONNIE_BLOCK_READ, "Block read", "KiB/s", Better::Higher),
    metric(BONNIE_SEEKS, "Random seeks", "1/s", Better::Higher),
    metric(BONNIE_SEQ_CREATE, "Sequential create", "files/s", Better::Higher),
    metric(BONNIE_SEQ_STAT, "Sequential read", "files/s", Better::Higher),
    metric(BONNIE_SEQ_DELETE, "Sequential delete", "files/s", Better::Higher),
    metric(BONNIE_RAN_CREATE, "Random create", "files/s", Better::Higher),
    metric(BONNIE_RAN_STAT, "Random read", "files/s", Better::Higher),
    metric(BONNIE_RAN_DELETE, "Random delete", "files/s", Better::Higher),
    metric(SERVER_BYTES, "Bytes through a server", "B", Better::Neither),
    metric(LINK_RTT, "Round trip of a link", "ms", Better::Neither),
    metric(LINK_RATE, "Rate of a link", "Mbit/s", Better::Neither),
    metric(STAT_COLD, "stat, cold", "µs", Better::Lower),
    metric(STAT_WARM, "stat, warm", "µs", Better::Lower),
    metric(NEGATIVE_COLD, "stat of no file, cold", "µs", Better::Lower),
    metric(NEGATIVE_WARM, "stat of no file, warm", "µs", Better::Lower),
    metric(OPEN_READ, "open + read 4 KiB + close", "µs", Better::Lower),
    metric(READDIR, "List the directory", "µs", Better::Lower),
    metric(SEQ_FIRST, "Sequential read, first", "GB/s", Better::Higher),
    metric(SEQ_READ, "Sequential read, again", "GB/s", Better::Higher),
    metric(SWAP_VISIBLE, "Swap → content seen, median", "ms", Better::Lower),
    metric(SWAP_VISIBLE_P99, "Swap → content seen, p99", "ms", Better::Lower),
    metric(SWAP_EVENT, "Swap → last watcher's event, median", "ms", Better::Lower),
    metric(SWAP_EVENT_P99, "Swap → last watcher's event, p99", "ms", Better::Lower),
    metric(EVENT_FAULTS, "Paths told too early or never", "1", Better::Lower),
    metric(SWAP_CACHED, "Swap with all entries cached", "ms", Better::Lower),
    metric(INVALIDATE, "Of that, invalidation", "ms", Better::Lower),
    metric(STALE, "Entries still old after it", "1", Better::Lower),
    metric(MIXED_READS, "Mixed reads", "1", Better::Lower),
    metric(TORN_READS, "Torn reads", "1", Better::Lower),
    metric(STORM_ERRORS, "Failed reads", "1", Better::Lower),
    metric(STORM_READS, "Reads while layers changed", "1", Better::Neither),
    metric(MANY_MOUNT, "Mount the large union", "ms", Better::Lower),
    metric(MANY_MEMORY, "Memory for the large union", "MiB", Better::Lower),
    metric(TRIAL_FAILED, "Trial not done to its end", "1", Better::Neither),
];

/// What is known of the metric of this name.
pub fn find(name: &str) -> Option<&'static Metric> {
    ALL.iter().find(|metric| metric.name == name)
}

/// The unit in which a metric is kept; `1` for one that is not in the list.
pub fn unit(name: &str) -> &'static str {
    find(name).map_or("1", |metric| metric.unit)
}

/// The name of a metric for people; its own when it is not in the list.
pub fn label(name: &str) -> &str {
    find(name).map_or(name, |metric| metric.label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_there_once() {
        let mut names: Vec<_> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for name in BONNIE_THROUGHPUT.iter().chain(&BONNIE_FILES) {
            assert!(find(name).is_some(), "{name}");
        }
        assert_eq!(unit(DOWNTIME), "ms");
        assert_eq!(unit("else"), "1");
    }
}
