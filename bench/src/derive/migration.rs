//! The values of a live migration and of the recontextualization around it.
//!
//! All moments are the bench's. The guest *has switched*, on every hypervisor, when libvirt of the destination says that it runs
//! there; the call may return later. `migration_total` is the wall time of the call.

use std::time::Duration;

use ctx::libvirt::JobStats;
use ctx::recontext::{Outcome, Phase, Record};

use super::measure::Measures;
use crate::metric;
use crate::observe::beats::INTERVAL;
use crate::observe::clock::{self, Reading};
use crate::observe::trace::{Trace, Wanted, What};

/// What a trial was about.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The infrastructure data of the destination's site, as a program in the guest reads it.
    pub content: &'a str,
    /// Whether a recontextualizer was to wait for the guest's answer.
    pub acknowledge: bool,
}

/// A migration that was seen from its call on.
struct Move<'a> {
    from: &'a str,
    to: &'a str,
    accounts: bool,
    called: u64,
    /// The moment at which the call returned; none where it failed or did not.
    returned: Option<u64>,
    switched: Option<u64>,
}

impl<'a> Move<'a> {
    fn of(trace: &'a Trace) -> Option<Move<'a>> {
        let (called, (from, to, accounts)) = trace.first(|what| match what {
            What::MigrateCalled { from, to, accounts } => Some((from.as_str(), to.as_str(), *accounts)),
            _ => None,
        })?;
        let returned =
            trace.first(|what| matches!(what, What::MigrateReturned { error: None }).then_some(()));
        let switched = trace.first(|what| match what {
            What::Lifecycle { host, change, .. } => (host == to && change == "resumed").then_some(()),
            _ => None,
        });
        let moment = |seen: Option<(u64, ())>| seen.map(|(at, ())| at);
        Some(Move { from, to, accounts, called, returned: moment(returned), switched: moment(switched) })
    }
}

/// Why a blackout is not measured by signs of life.
pub(super) const UNSTEADY: &str =
    "the guest's heartbeat was not steady when the trial began: the runner is busy";

const NO_SWITCH: &str = "libvirt of the destination did not tell when the guest ran there";

/// All values of the migration in a trace; none when none was begun.
pub fn migration(trace: &Trace) -> Measures {
    let mut measures = Measures::default();
    let Some(moved) = Move::of(trace) else { return measures };
    if let Some(returned) = moved.returned {
        measures.seconds(metric::MIGRATION_TOTAL, "", between(moved.called, returned));
        if moved.accounts {
            account(&mut measures, trace, &moved);
        }
    }
    if moved.returned.or(moved.switched).is_some() {
        blackouts(&mut measures, trace, &moved);
    }
    measures
}

/// Libvirt's statistics of the job. They are the source's: the destination's mix the clocks of two hosts.
fn account(measures: &mut Measures, trace: &Trace, moved: &Move<'_>) {
    const MISSING: &str = "libvirt has no statistics of the completed job";
    let stats = trace.first(|what| match what {
        What::JobCompleted { host, stats } if host == moved.from => Some(stats),
        _ => None,
    });
    let stat = |pick: fn(&JobStats) -> Option<u64>| stats.and_then(|(_, s)| pick(s)).map(|v| v as f64);
    let seconds = stat(|s| s.time_elapsed_ms).map(|ms| ms / 1000.0);
    let first = measures.len();
    measures.maybe(metric::MIGRATION_TIME_LIBVIRT, "", seconds, "s", MISSING);
    measures.maybe(metric::DOWNTIME, "", stat(|s| s.downtime_ms), "ms", MISSING);
    if let Err(reason) = judge(trace, moved.from) {
        measures.invalidate(first, &[], &reason);
    }
    measures.maybe(metric::MEMORY_TRANSFERRED, "", stat(|s| s.memory_processed), "B", MISSING);
}

/// The clock of a host from its first reading to its last.
pub(super) fn judge(trace: &Trace, host: &str) -> Result<(), String> {
    let readings: Vec<Reading> = trace
        .observations
        .iter()
        .filter_map(|seen| match &seen.what {
            What::Clock { machine, reading } if machine == host => Some(*reading),
            _ => None,
        })
        .collect();
    match readings.as_slice() {
        [first, .., last] => clock::judge(&format!("host {host}"), *first, *last).map(drop),
        _ => Err(format!("the clock of host {host} was not read before and after")),
    }
}

/// The blackout as it is seen from outside, by a program in the guest and by its kernel.
fn blackouts(measures: &mut Measures, trace: &Trace, moved: &Move<'_>) {
    let Some(arrived) = moved.switched.or(moved.returned) else { return };
    let unsteady = trace.is_unsteady();
    let beats: Vec<u64> = trace.beats.iter().map(|beat| beat.at_ns).collect();
    let pings: Vec<u64> = trace.pings.iter().map(|ping| ping.at_ns).collect();
    let end = trace.observations.last().map_or(arrived, |seen| seen.at_ns);
    for (metric, signs, name) in
        [(metric::DOWNTIME_PROBE, beats, "heartbeat"), (metric::DOWNTIME_PING, pings, "answer to a ping")]
    {
        let silence = silence(&signs, moved.called, arrived, end, name);
        match silence {
            _ if unsteady => {
                measures.invalid(metric, "", "ms", UNSTEADY);
            }
            Ok(silence) => match silence.checked_sub(INTERVAL).filter(|more| !more.is_zero()) {
                Some(more) => measures.add(metric, "", more.as_secs_f64() * 1000.0, "ms"),
                // No longer than the pause between two signs of life anyway.
                None => measures.censored(metric, "", "ms"),
            },
            Err(reason) => measures.invalid(metric, "", "ms", &reason),
        }
    }
}

/// The longest pause between signs of life in a row, from the last one before `called` to the first one from `arrived` on.
/// `end` is when nobody listened any more.
fn silence(signs: &[u64], called: u64, arrived: u64, end: u64, name: &str) -> Result<Duration, String> {
    let after = signs.partition_point(|&at| at < arrived);
    let before = signs.partition_point(|&at| at < called).saturating_sub(1);
    let Some(signs) = signs.get(before..=after).filter(|_| after < signs.len()) else {
        let last = signs.last().copied().unwrap_or(called);
        // Rounded down: it was more.
        let tenths = between(last, end.max(last)).as_millis() / 100;
        let (whole, tenth) = (tenths / 10, tenths % 10);
        return Err(format!(
            "no {name} came after the switch: the guest was silent for more than {whole}.{tenth} s"
        ));
    };
    let pauses = signs.windows(2).map(|pair| between(pair[0], pair[1]));
    pauses.max().ok_or_else(|| format!("no {name} came before the switch"))
}

fn between(from: u64, to: u64) -> Duration {
    Duration::from_nanos(to.saturating_sub(from))
}

/// The values of a recontextualization that a migration's end started, with when a program could read the new data.
pub fn recontextualized(trace: &Trace, asked: Asked<'_>) -> Measures {
    let mut measures = Measures::default();
    let Some(moved) = Move::of(trace) else { return measures };
    // The call returned, and only then was anything waited for.
    let Some(returned) = moved.returned else { return measures };
    match record_on(trace, moved.to, moved.called) {
        Ok((written, record)) => {
            // Until the device is attached; the record is written when the guest, too, has answered. A migration ends with
            // its call, which may return later.
            let attached = written.saturating_sub(record.phase_ns(Phase::Acknowledge).unwrap_or_default());
            let ended = attached.max(returned);
            measures.seconds(metric::WITH_RECONTEXT_TOTAL, "", between(moved.called, ended));
            let first = measures.len();
            recorded(&mut measures, record, asked.acknowledge);
            if let Err(reason) = judge(trace, moved.to) {
                measures.invalidate(first, &[], &reason);
            }
        }
        Err(reason) => {
            measures.invalid(metric::WITH_RECONTEXT_TOTAL, "", "s", &reason);
            measures.invalid(metric::RECONTEXT_TIME, "", "s", &reason);
        }
    }
    let shows = |at: u64, content: Option<&str>| at >= moved.called && content == Some(asked.content);
    match trace.beats.iter().find(|beat| shows(beat.at_ns, beat.content())) {
        Some(beat) => {
            // Earlier than the switch it cannot be read; the news of the switch may be late.
            let seconds = moved.switched.map(|at| (beat.at_ns as f64 - at as f64) / 1e9);
            measures.maybe(metric::CONTENT_VISIBLE, "", seconds, "s", NO_SWITCH);
            measures.seconds(metric::CONTENT_VISIBLE_FROM_START, "", between(moved.called, beat.at_ns));
        }
        None => measures.invalid(metric::CONTENT_VISIBLE, "", "s", &missed(trace, Wanted::Content)),
    }
    measures
}

/// The values of a recontextualization that was asked for, without regard to a migration; none when none was.
pub fn requested(trace: &Trace, acknowledge: bool) -> Measures {
    let mut measures = Measures::default();
    let Some((asked, host)) = trace.first(|what| match what {
        What::Requested { host } => Some(host),
        _ => None,
    }) else {
        return measures;
    };
    match record_on(trace, host, asked) {
        Ok((_, record)) => recorded(&mut measures, record, acknowledge),
        Err(reason) => measures.invalid(metric::RECONTEXT_TIME, "", "s", &reason),
    }
    if let Err(reason) = judge(trace, host) {
        measures.invalidate(0, &[], &reason);
    }
    measures
}

/// The first run that was done or failed on a host from a moment on, and when its record came.
fn record_on<'a>(trace: &'a Trace, host: &str, from: u64) -> Result<(u64, &'a Record), String> {
    let found = trace.observations.iter().find_map(|seen| match &seen.what {
        What::Recontextualized { host: on, record }
            if on == host && seen.at_ns >= from && record.outcome != Outcome::Skipped =>
        {
            Some((seen.at_ns, record.as_ref()))
        }
        _ => None,
    });
    match found {
        Some((at, record)) if record.outcome == Outcome::Done => Ok((at, record)),
        Some((_, record)) => {
            let reason = record.error.as_deref().unwrap_or("it gave no reason");
            Err(format!("host {host}: recontextualization failed: {reason}"))
        }
        None => Err(missed(trace, Wanted::Record)),
    }
}

/// Why something that was waited for is not there.
fn missed(trace: &Trace, what: Wanted) -> String {
    let told = trace.first(|seen| match seen {
        What::Missed { wanted, reason } if *wanted == what => Some(reason.clone()),
        _ => None,
    });
    told.map_or_else(|| "the trial ended before it came".to_owned(), |(_, reason)| reason)
}

/// What a recontextualizer wrote down about one run. An acknowledgement that was asked for and that the domain had no
/// way to give is an invalid sample.
fn recorded(measures: &mut Measures, record: &Record, acknowledge: bool) {
    measures.seconds(metric::RECONTEXT_TIME, "", Duration::from_nanos(record.total_ns));
    for phase in &record.phases {
        measures.seconds(metric::RECONTEXT_PHASE, phase.name.name(), between(phase.start_ns, phase.end_ns));
    }
    if acknowledge && record.phase_ns(Phase::Acknowledge).is_none() {
        let reason = "the recontextualizer did not wait: it found no way on which the guest answers";
        measures.invalid(metric::RECONTEXT_PHASE, metric::ACKNOWLEDGE, "s", reason);
    }
}

#[cfg(test)]
pub(crate) mod tests;
