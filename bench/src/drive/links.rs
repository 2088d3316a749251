//! What was measured of the links before anything counts, and how it is kept.
//!
//! Each boot measures them: links that are not as asked stop a run also when it is resumed. But a run stands on one
//! calibration, the first that was accepted: that one is in the manifest and in the samples, one a link. Every other is an event
//! in the log. Samples of a refused one are invalid, with the reason.

use serde_json::{Value, json};

use crate::derive::measure::{Conditions, Measures};
use crate::metric;
use crate::plan::Trial;
use crate::scenario::Arm;
use crate::shape::Path;
use crate::store::{RunFolder, StoreError};

/// Kind of the event: the links as measured, the qdiscs as read back, and why they were refused, if they were.
const LINKS_MEASURED: &str = "links_measured";

/// One calibration.
pub(super) struct Measured<'a> {
    /// The shaped links, and the path that is never shaped, by the phase of their samples.
    pub(super) paths: [(&'a str, &'a Path); 3],
    /// All of it, for the manifest.
    pub(super) links: Value,
    /// The kernel's own words about the shaping.
    pub(super) qdiscs: Value,
    /// Why the links are not as asked; none when they are.
    pub(super) refused: Option<String>,
}

/// Writes a calibration down.
///
/// # Errors
/// The run's folder cannot be written.
pub(super) fn write(
    folder: &RunFolder,
    conditions: &Conditions,
    calibration: Measured<'_>,
) -> Result<(), StoreError> {
    let Measured { paths, links, qdiscs, refused } = calibration;
    folder.event(LINKS_MEASURED, &json!({ "links": links, "qdiscs": qdiscs, "refused": refused }))?;
    if folder.has_valid(metric::LINK_RTT)? {
        return Ok(());
    }
    folder.update_manifest(|manifest| {
        manifest.links = links;
        manifest.qdiscs = qdiscs;
    })?;
    let mut measures = Measures::default();
    for (name, path) in paths {
        measures.add(metric::LINK_RTT, name, path.ping.median, "ms");
        measures.add(metric::LINK_RATE, name, path.rate() / 1e6, "Mbit/s");
    }
    if let Some(reason) = refused {
        measures.invalidate(0, &[], &reason);
    }
    let trial = Trial { block: 0, arm: Arm::Recontext, order: 0, file_operations: false };
    folder.samples(&measures.samples(&trial, conditions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;
    use crate::scenario::Scenario;
    use crate::shape::{Iperf, Ping};
    use crate::store::{About, StoredRun};

    const TEXT: &str = "title = \"t\"\nexperiment = \"gluster\"\n\
        [design]\narms = [\"recontext\"]\nblocks = 1\nseed = 1\n\
        [network.remote]\nrate = \"25 Mbit/s\"\ndelay = \"10 ms\"\n\
        [network.local]\nrate = \"500 Mbit/s\"\ndelay = \"1.02 ms\"\n";

    fn path(ms: f64) -> Path {
        let ping = Ping { sent: 20, received: 20, min: ms, avg: ms, max: ms, mdev: 0.3, median: ms };
        let iperf = Iperf { rate: 1e6, retransmits: 0, seconds: 5.0 };
        Path { ping, up: iperf.clone(), down: iperf }
    }

    /// A boot of the run that measures this.
    fn boot(folder: &RunFolder, ms: f64, refused: Option<&str>) {
        let path = path(ms);
        let measured = Measured {
            paths: ["remote", "local", "server-server"].map(|name| (name, &path)),
            links: json!({ "ms": ms }),
            qdiscs: json!([ms]),
            refused: refused.map(str::to_owned),
        };
        let conditions = Conditions { accelerator: "tcg", hypervisor: "kvm", dilation: 5.0 };
        write(folder, &conditions, measured).unwrap();
    }

    /// The round trips of one link with their reasons.
    fn round_trips(run: &std::path::Path) -> Vec<(f64, String)> {
        let stored = StoredRun::read(run).unwrap();
        let of_link = |s: &&crate::model::Sample| s.metric == metric::LINK_RTT && s.phase == "remote";
        let value = |s: &crate::model::Sample| (s.value.unwrap(), s.reason.clone());
        stored.samples.iter().filter(of_link).map(value).collect()
    }

    #[test]
    fn a_resumed_run_measures_links_again_and_keeps_the_first_accepted_samples() {
        let root = tempfile::tempdir().unwrap();
        let scenario = Scenario::parse("t.toml", TEXT, None).unwrap();
        let folder =
            RunFolder::create(root.path(), &scenario, &Plan::new(&scenario), About::default()).unwrap();
        let run = folder.path().to_owned();
        boot(&folder, 1.0, Some("too slow"));
        assert_eq!(folder.manifest().links, json!({ "ms": 1.0 }));
        drop(folder);
        for ms in [2.0, 3.0] {
            boot(&RunFolder::open(&run).unwrap(), ms, None);
        }
        boot(&RunFolder::open(&run).unwrap(), 4.0, Some("too slow"));
        // One valid sample a link, and the manifest's links are those.
        assert_eq!(round_trips(&run), [(1.0, "too slow".to_owned()), (2.0, String::new())]);
        let stored = StoredRun::read(&run).unwrap();
        assert_eq!((stored.manifest.links, stored.manifest.qdiscs), (json!({ "ms": 2.0 }), json!([2.0])));
        // And the log has each.
        let measured: Vec<_> = stored
            .events
            .iter()
            .filter(|event| event.kind == LINKS_MEASURED)
            .map(|event| (event.payload["links"]["ms"].as_f64().unwrap(), event.payload["refused"].is_null()))
            .collect();
        assert_eq!(measured, [(1.0, false), (2.0, true), (3.0, true), (4.0, false)]);
    }
}
