//! One trial of the migration experiment: a live migration, with or without recontextualization.
//!
//! This is what happens when a guest has migrated, read from top to bottom: libvirt moves it; the
//! destination's recontextualizer sees it arrive, and resolves, detaches, builds and attaches; the
//! guest's file system shows the new content; a program reads it.

use std::time::{Duration, Instant};

use ctx::libvirt::JobStats;
use ctx::recontext::{Phase, Record};

use super::arrivals::Arrivals;
use super::beats::longest_gap;
use super::clock;
use super::guest::{Account, Migrated};
use super::lab::{DriveError, Lab, VISIBLE};
use super::measure::Measures;
use crate::metric;
use crate::plan::Trial;
use crate::scenario::Arm;
use crate::testbed::site::Site;

/// Migrates the guest from the remote site to the local one and measures it.
///
/// # Errors
/// When the guest could not be prepared, or the migration failed.
pub async fn trial(lab: &Lab, trial: &Trial) -> Result<Measures, DriveError> {
    lab.prepare(trial.arm).await?;
    if trial.arm == Arm::Recontext {
        lab.recontextualizer.start(Site::Local).await?;
    }
    let mut measures = Measures::default();
    let hosts = Site::ALL.map(|site| &lab.testbed.host(site).ssh);
    let [source, destination] = [clock::read(hosts[0]).await?, clock::read(hosts[1]).await?];
    let moved = lab.guest.migrate(Site::Remote, Site::Local).await?;
    migration(&mut measures, &moved);
    if trial.arm == Arm::Recontext {
        recontextualization(lab, &mut measures, &moved).await;
    }
    downtime_probes(lab, &mut measures, &moved).await;
    if let Err(reason) = clock::judge("the source host", source, clock::read(hosts[0]).await?) {
        measures.invalidate(0, &[metric::MIGRATION_TIME_LIBVIRT, metric::DOWNTIME], &reason);
    }
    if let Err(reason) = clock::judge("the destination host", destination, clock::read(hosts[1]).await?) {
        measures.invalidate(0, &[metric::RECONTEXT_TIME, metric::RECONTEXT_PHASE], &reason);
    }
    Ok(measures)
}

/// What the migrate call says, and libvirt's statistics where it keeps any.
pub fn migration(measures: &mut Measures, moved: &Migrated) {
    const MISSING: &str = "libvirt has no statistics of the completed job";
    measures.seconds(metric::MIGRATION_TOTAL, "", moved.total());
    let Account::Kept(stats) = &moved.account else { return };
    let stat = |pick: fn(&JobStats) -> Option<u64>| stats.as_deref().and_then(pick).map(|v| v as f64);
    let seconds = stat(|s| s.time_elapsed_ms).map(|ms| ms / 1000.0);
    measures.maybe(metric::MIGRATION_TIME_LIBVIRT, "", seconds, "s", MISSING);
    measures.maybe(metric::DOWNTIME, "", stat(|s| s.downtime_ms), "ms", MISSING);
    measures.maybe(metric::MEMORY_TRANSFERRED, "", stat(|s| s.memory_processed), "B", MISSING);
}

/// What a recontextualizer wrote down about one run. An acknowledgement that was asked for and that the domain had no
/// way to give is an invalid sample.
pub fn recorded(measures: &mut Measures, record: &Record, acknowledge: bool) {
    measures.seconds(metric::RECONTEXT_TIME, "", Duration::from_nanos(record.total_ns));
    for phase in &record.phases {
        let took = Duration::from_nanos(phase.end_ns.saturating_sub(phase.start_ns));
        measures.seconds(metric::RECONTEXT_PHASE, phase.name.name(), took);
    }
    if acknowledge && acknowledgement(record).is_none() {
        let reason = "the recontextualizer did not wait: it found no way on which the guest answers";
        measures.invalid(metric::RECONTEXT_PHASE, metric::ACKNOWLEDGE, "s", reason);
    }
}

/// How long a run waited for the guest's answer, if it did.
fn acknowledgement(record: &Record) -> Option<Duration> {
    record.phase_ns(Phase::Acknowledge).map(Duration::from_nanos)
}

/// What the destination's recontextualizer recorded, and when a program in the guest could read it.
async fn recontextualization(lab: &Lab, measures: &mut Measures, moved: &Migrated) {
    match lab.recontextualizer.record(Site::Local, moved.started, VISIBLE).await {
        Ok(record) => {
            // Until the device is attached; the record is written when the guest, too, has answered.
            let all = record.at.duration_since(moved.started);
            let attached = all.saturating_sub(acknowledgement(&record.value).unwrap_or_default());
            measures.seconds(metric::WITH_RECONTEXT_TOTAL, "", attached);
            recorded(measures, &record.value, lab.scenario.recontext.acknowledge);
        }
        Err(error) => {
            let reason = error.to_string();
            measures.invalid(metric::WITH_RECONTEXT_TOTAL, "", "s", &reason);
            measures.invalid(metric::RECONTEXT_TIME, "", "s", &reason);
        }
    }
    match lab.visible(Site::Local, moved.started, VISIBLE).await {
        Ok(at) => {
            measures.seconds(metric::CONTENT_VISIBLE, "", at.saturating_duration_since(moved.ended));
            measures.seconds(metric::CONTENT_VISIBLE_FROM_START, "", at.duration_since(moved.started));
        }
        Err(error) => measures.invalid(metric::CONTENT_VISIBLE, "", "s", &error.to_string()),
    }
}

/// The blackout as it is seen from outside: the longest silence around the switch of a program in the
/// guest, and of its kernel.
pub async fn downtime_probes(lab: &Lab, measures: &mut Measures, moved: &Migrated) {
    let program = silence(&lab.beats, moved).await;
    measures.maybe(metric::DOWNTIME_PROBE, "", program, "ms", "no heartbeat came around the switch");
    let kernel = silence(&lab.pings.answers, moved).await;
    measures.maybe(metric::DOWNTIME_PING, "", kernel, "ms", "no answer to a ping came around the switch");
}

/// The longest silence between a migration's start and the first sign of life after it, in milliseconds.
async fn silence<T: Clone>(signs: &Arrivals<T>, moved: &Migrated) -> Option<f64> {
    let arrived = signs.first(moved.ended, Duration::from_secs(30), |_| true).await;
    let until = arrived.map_or_else(Instant::now, |arrival| arrival.at);
    let signs: Vec<_> = signs.since(moved.started).into_iter().filter(|sign| sign.at <= until).collect();
    longest_gap(&signs).map(|gap| gap.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run as a daemon's event log has it.
    fn record(acknowledged: bool) -> Record {
        let mut line = serde_json::json!({
            "run": "host-2-1", "host": "host-2", "domain": "guest", "uuid": "u", "target": "sdb",
            "class": "infrastructure", "strategy": "replace", "trigger": { "kind": "manual", "reason": null },
            "received": { "monotonic_ns": 0, "realtime_ns": 0 }, "coalesced": 0, "attempt": 1,
            "phases": [{ "name": "attach", "start_ns": 0, "end_ns": 500_000_000 }], "total_ns": 500_000_000,
            "outcome": "done", "generation": 2, "iso": null, "error": null
        });
        if acknowledged {
            let phase =
                serde_json::json!({ "name": "acknowledge", "start_ns": 500_000_000, "end_ns": 750_000_000 });
            line["phases"].as_array_mut().unwrap().push(phase);
        }
        serde_json::from_value(line).unwrap()
    }

    #[test]
    fn an_acknowledgement_is_one_more_phase_and_missing_only_where_it_was_asked_for() {
        let measured = |acknowledged, asked| {
            let mut measures = Measures::default();
            recorded(&mut measures, &record(acknowledged), asked);
            measures
        };
        let mut without = Measures::default();
        without.seconds(metric::RECONTEXT_TIME, "", Duration::from_millis(500));
        without.seconds(metric::RECONTEXT_PHASE, "attach", Duration::from_millis(500));
        assert_eq!(measured(false, false), without);
        let mut with = without.clone();
        with.seconds(metric::RECONTEXT_PHASE, metric::ACKNOWLEDGE, Duration::from_millis(250));
        assert_eq!(measured(true, true), with);
        let mut lacking = without;
        let reason = "the recontextualizer did not wait: it found no way on which the guest answers";
        lacking.invalid(metric::RECONTEXT_PHASE, metric::ACKNOWLEDGE, "s", reason);
        assert_eq!(measured(false, true), lacking);
        assert_eq!(Phase::Acknowledge.name(), metric::ACKNOWLEDGE);
    }
}
