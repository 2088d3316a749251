//! Statistics of a job: what libvirt and QEMU say a migration cost.
//!
//! libvirt gives a list of named values that grows from version to version. Each is an `Option`
//! here, since a driver tells only what it knows; a name that is not known is left out.

use serde::{Deserialize, Serialize};

/// A value of libvirt's typed parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Signed(i64),
    Unsigned(u64),
    Double(f64),
    Boolean(bool),
    Text(String),
}

/// How a job stands (`virDomainJobType`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobKind {
    /// There is none.
    #[default]
    None,
    /// Running, with a known amount of work.
    Bounded,
    /// Running, with an unknown amount of work.
    Unbounded,
    /// Ended well.
    Completed,
    /// Failed.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl JobKind {
    pub(super) fn from_raw(kind: i32) -> Self {
        match kind {
            1 => Self::Bounded,
            2 => Self::Unbounded,
            3 => Self::Completed,
            4 => Self::Failed,
            5 => Self::Cancelled,
            _ => Self::None,
        }
    }
}

/// What a job does (`virDomainJobOperation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOperation {
    /// A migration to this host.
    MigrationIn,
    /// A migration from this host.
    MigrationOut,
    /// Anything else: start, save, restore, snapshot, dump, backup.
    Other,
}

/// The statistics of a running or ended job. Times are in milliseconds, amounts in bytes, rates in
/// bytes per second unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobStats {
    /// How the job stands.
    pub kind: JobKind,
    /// What it does.
    pub operation: Option<JobOperation>,
    /// Time since the start of the job, or of the whole job when it has ended.
    pub time_elapsed_ms: Option<u64>,
    /// The same without the clock difference of the hosts, where libvirt could tell.
    pub time_elapsed_net_ms: Option<u64>,
    /// Time that the guest stood still.
    pub downtime_ms: Option<u64>,
    /// The same without the time on the network of the final message.
    pub downtime_net_ms: Option<u64>,
    /// Time to get ready before the first byte of memory.
    pub setup_time_ms: Option<u64>,
    /// All data of the job: memory and disks.
    pub data_total: Option<u64>,
    /// Of it, already sent.
    pub data_processed: Option<u64>,
    /// Of it, not yet sent.
    pub data_remaining: Option<u64>,
    /// The guest's memory.
    pub memory_total: Option<u64>,
    /// Memory sent, pages that were sent again counted again.
    pub memory_processed: Option<u64>,
    /// Memory not yet sent.
    pub memory_remaining: Option<u64>,
    /// Pages that were all one byte, mostly zero.
    pub memory_constant_pages: Option<u64>,
    /// Pages sent in full.
    pub memory_normal_pages: Option<u64>,
    /// The same in bytes.
    pub memory_normal_bytes: Option<u64>,
    /// How fast memory was sent.
    pub memory_bps: Option<u64>,
    /// Pages that the guest dirtied per second.
    pub memory_dirty_rate: Option<u64>,
    /// The size of a page.
    pub memory_page_size: Option<u64>,
    /// Passes over memory.
    pub memory_iteration: Option<u64>,
    /// Pages that the destination asked for in the post-copy phase.
    pub memory_postcopy_requests: Option<u64>,
    /// How much auto-converge slows the guest's CPUs, in percent.
    pub auto_converge_throttle: Option<u64>,
    /// Whether it ended well, where libvirt says so.
    pub success: Option<bool>,
    /// Why it did not.
    pub error: Option<String>,
}

impl JobStats {
    pub(super) fn from_params(kind: JobKind, params: &[(String, Value)]) -> Self {
        let mut stats = Self { kind, ..Self::default() };
        for (name, value) in params {
            let slot = match name.as_str() {
                "operation" => {
                    stats.operation = Some(match value {
                        Value::Signed(4) => JobOperation::MigrationIn,
                        Value::Signed(5) => JobOperation::MigrationOut,
                        _ => JobOperation::Other,
                    });
                    continue;
                }
                "success" => {
                    stats.success = if let Value::Boolean(success) = value { Some(*success) } else { None };
                    continue;
                }
                "errmsg" => {
                    stats.error = if let Value::Text(text) = value { Some(text.clone()) } else { None };
                    continue;
                }
                "time_elapsed" => &mut stats.time_elapsed_ms,
                "time_elapsed_net" => &mut stats.time_elapsed_net_ms,
                "downtime" => &mut stats.downtime_ms,
                "downtime_net" => &mut stats.downtime_net_ms,
                "setup_time" => &mut stats.setup_time_ms,
                "data_total" => &mut stats.data_total,
                "data_processed" => &mut stats.data_processed,
                "data_remaining" => &mut stats.data_remaining,
                "memory_total" => &mut stats.memory_total,
                "memory_processed" => &mut stats.memory_processed,
                "memory_remaining" => &mut stats.memory_remaining,
                "memory_constant" => &mut stats.memory_constant_pages,
                "memory_normal" => &mut stats.memory_normal_pages,
                "memory_normal_bytes" => &mut stats.memory_normal_bytes,
                "memory_bps" => &mut stats.memory_bps,
                "memory_dirty_rate" => &mut stats.memory_dirty_rate,
                "memory_page_size" => &mut stats.memory_page_size,
                "memory_iteration" => &mut stats.memory_iteration,
                "memory_postcopy_requests" => &mut stats.memory_postcopy_requests,
                "auto_converge_throttle" => &mut stats.auto_converge_throttle,
                _ => continue,
            };
            *slot = match value {
                Value::Unsigned(number) => Some(*number),
                Value::Signed(number) => u64::try_from(*number).ok(),
                _ => None,
            };
        }
        stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_to_fields_and_unknown_ones_are_left_out() {
        let params = [
            ("operation".to_owned(), Value::Signed(4)),
            ("time_elapsed".to_owned(), Value::Unsigned(13_200)),
            ("downtime".to_owned(), Value::Unsigned(967)),
            ("auto_converge_throttle".to_owned(), Value::Signed(20)),
            ("success".to_owned(), Value::Boolean(true)),
            ("of_tomorrow".to_owned(), Value::Double(1.0)),
        ];
        let stats = JobStats::from_params(JobKind::Completed, &params);
        assert_eq!(
            stats,
            JobStats {
                kind: JobKind::Completed,
                operation: Some(JobOperation::MigrationIn),
                time_elapsed_ms: Some(13_200),
                downtime_ms: Some(967),
                auto_converge_throttle: Some(20),
                success: Some(true),
                ..JobStats::default()
            }
        );
        let json = serde_json::to_string(&stats).unwrap();
        assert_eq!(serde_json::from_str::<JobStats>(&json).unwrap(), stats);
    }
}
