//! What a run did: one JSON line in the event log.
//!
//! The log is an interface: `bench` and operators read it. Times are `CLOCK_MONOTONIC` of the host
//! that ran, in nanoseconds; the wall clock stands beside the trigger to line hosts up.

use std::io;
use std::path::Path;

use ctx_format::ClassName;
use ctx_format::manifest::Sha256;
use ctx_io::jsonl::{self, Appender};
use serde::{Deserialize, Serialize};

use super::ack::{Acknowledgement, Answer};
use super::domain::Strategy;
use super::trigger::Trigger;
use crate::clock::Stamp;

/// The phases of a recontextualization, in order (paper, section "Evaluation", Fig. 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Ask libvirt what the domain is, wants and has.
    Resolve,
    /// Detach the device that is there, until the guest has let go.
    Detach,
    /// Gather this host's data and write the image.
    Build,
    /// Attach the new device, until libvirt shows it.
    Attach,
    /// Wait until the guest has answered; only where it has a way to.
    Acknowledge,
}

impl Phase {
    /// The phase's name, as in the log.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Resolve => "resolve",
            Phase::Detach => "detach",
            Phase::Build => "build",
            Phase::Attach => "attach",
            Phase::Acknowledge => "acknowledge",
        }
    }
}

/// When a phase was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseTime {
    /// Which phase.
    pub name: Phase,
    /// Its start, `CLOCK_MONOTONIC` in nanoseconds.
    pub start_ns: u64,
    /// Its end, `CLOCK_MONOTONIC` in nanoseconds; where the run failed in this phase, that moment.
    pub end_ns: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The guest has the new device.
    Done,
    /// The guest has the new device, but did not acknowledge it in time, or a hook of its failed;
    /// `error` says which.
    Degraded,
    /// There was nothing to do; `error` says why.
    Skipped,
    /// It failed; `error` says where and what to do.
    Failed,
}

/// The image that was attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Its SHA-256.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub bytes: u64,
}

/// One run on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The run's id, unique over hosts.
    pub run: String,
    /// The host that it ran on, by its own name.
    pub host: String,
    /// The domain's name.
    pub domain: String,
    /// The domain's UUID.
    pub uuid: String,
    /// The device's target name; `None` when the run ended before one was known.
    pub target: Option<String>,
    /// The class on the device; `None` as above.
    pub class: Option<ClassName>,
    /// How the device was replaced.
    pub strategy: Strategy,
    /// Why the run was started.
    pub trigger: Trigger,
    /// When the event was received that asked for it.
    pub received: Stamp,
    /// How many later requests it answered too, since it had not yet started when they came.
    pub coalesced: u32,
    /// Which attempt at the same request it is, from 1.
    pub attempt: u32,
    /// The phases, in order.
    pub phases: Vec<PhaseTime>,
    /// From `received` to the end of the last phase, in nanoseconds; the guest's part, *acknowledge*,
    /// is not in it.
    pub total_ns: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// The generation on the device now, when the run was done.
    pub generation: Option<u64>,
    /// The image on the device now, when the run was done.
    pub iso: Option<Image>,
    /// What went wrong or why nothing was done, and what to do about it.
    pub error: Option<String>,
    /// Whether another try would end the same way; not in the log.
    #[serde(skip)]
    pub permanent: bool,
    /// What the guest answered, where it can answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledgement: Option<Acknowledgement>,
}

impl Record {
    /// Whether another try may help: the same guest refuses the same data again.
    pub fn is_worth_another_try(&self) -> bool {
        let refused = |ack: &Acknowledgement| ack.answer == Answer::Refused;
        self.outcome == Outcome::Failed
            && !self.permanent
            && !self.acknowledgement.as_ref().is_some_and(refused)
    }

    /// The time of a phase in nanoseconds, if the run came to it.
    pub fn phase_ns(&self, name: Phase) -> Option<u64> {
        self.phases.iter().find(|phase| phase.name == name).map(|phase| phase.end_ns - phase.start_ns)
    }

    /// Appends it to the log at `path` as one line, in one write, so that readers and other writers
    /// never see half of it; also where a crash left half of another ([`ctx_io::jsonl`]).
    ///
    /// # Errors
    /// Whatever the file system answers.
    pub fn append(&self, path: &Path) -> io::Result<()> {
        let mut log = Appender::open(path, 0o640)?;
        log.append(self)?;
        log.sync()
    }

    /// Reads a log. A line that is not a record is left out, and named in the result.
    ///
    /// # Errors
    /// What reading returns.
    pub fn read_log(path: &Path) -> io::Result<jsonl::Log<Self>> {
        jsonl::read(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            run: "h2-1".into(),
            host: "h2".into(),
            domain: "g1".into(),
            uuid: "u".into(),
            target: Some("sdb".into()),
            class: Some("infrastructure".parse().unwrap()),
            strategy: Strategy::Replace,
            trigger: Trigger::Manual { reason: Some("new key".into()) },
            received: Stamp { monotonic_ns: 100, realtime_ns: 1_795_353_600_000_000_000 },
            coalesced: 1,
            attempt: 1,
            phases: vec![
                PhaseTime { name: Phase::Resolve, start_ns: 110, end_ns: 120 },
                PhaseTime { name: Phase::Detach, start_ns: 120, end_ns: 150 },
            ],
            total_ns: 50,
            outcome: Outcome::Done,
            generation: Some(7),
            iso: Some(Image { sha256: Sha256::of(b""), bytes: 2048 }),
            error: None,
            permanent: false,
            acknowledgement: None,
        }
    }

    #[test]
    fn the_line_in_the_log_is_settled() {
        insta::assert_json_snapshot!(record());
        assert_eq!(record().phase_ns(Phase::Detach), Some(30));
        assert_eq!(record().phase_ns(Phase::Attach), None);
    }

    #[test]
    fn a_torn_line_swallows_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        record().append(&path).unwrap();
        let mut log = std::fs::read(&path).unwrap();
        log.extend_from_slice(b"{\"run\":");
        std::fs::write(&path, log).unwrap();
        let torn = Record::read_log(&path).unwrap();
        assert!(torn.records == [record()] && torn.torn && torn.damaged.is_empty());
        record().append(&path).unwrap();
        let log = Record::read_log(&path).unwrap();
        assert_eq!(log.records, [record(), record()]);
        let said: Vec<String> = log.damaged.iter().map(ToString::to_string).collect();
        assert!(said.len() == 1 && said[0].contains("events.jsonl:2: not a record"), "{said:?}");
    }
}
