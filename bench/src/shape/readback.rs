//! What the kernel says it shapes, compared with what was asked.
//!
//! tc reports success for settings that it rounds, and another program may have changed them since, so what
//! counts is `tc -j … show`. One thing the kernel does not give back is netem's distribution table.

use serde::Deserialize;
use serde_json::Value;

use super::link::Netem;
use super::tc::{BAND, FROM_CLIENT, IFB, INGRESS, ROOT, Shape, TO_CLIENT};

/// Bytes that were shaped since the shaping was made: what this one client exchanged with this server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes to the client.
    pub to_client: u64,
    /// Bytes from the client.
    pub from_client: u64,
    /// Packets dropped in either direction, since the queue was full.
    pub dropped: u64,
}

impl Counters {
    /// What was added since `before`; none when the shaping was made anew in between.
    pub fn since(self, before: Self) -> Option<Self> {
        Some(Self {
            to_client: self.to_client.checked_sub(before.to_client)?,
            from_client: self.from_client.checked_sub(before.from_client)?,
            dropped: self.dropped.checked_sub(before.dropped)?,
        })
    }
}

/// A difference between what was asked and what the kernel has.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Mismatch {
    /// tc printed something else than the four JSON documents.
    #[error("cannot read what tc printed ({what}): {reason}")]
    Unreadable {
        /// Which document.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A qdisc or filter is not there.
    #[error("{device}: no {what}: the shaping was not made, or another program removed it; apply it again")]
    Missing {
        /// Interface.
        device: String,
        /// What was looked for.
        what: String,
    },
    /// A qdisc or filter that was not asked for is there.
    #[error("{device}: {what} was not asked for: another program shapes this interface; remove it")]
    Foreign {
        /// Interface.
        device: String,
        /// What was found.
        what: String,
    },
    /// A setting has another value.
    #[error("{device}: {what} is {found}, asked was {asked}")]
    Differs {
        /// Interface.
        device: String,
        /// The setting, with its unit.
        what: &'static str,
        /// What the kernel has.
        found: String,
        /// What was asked.
        asked: String,
    },
}

#[derive(Deserialize)]
struct Qdisc {
    kind: String,
    handle: String,
    parent: Option<String>,
    #[serde(default)]
    root: bool,
    #[serde(default)]
    options: Value,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    drops: u64,
}

#[derive(Deserialize)]
struct Filter {
    kind: String,
    /// Absent in the line that tc prints for the priority as a whole.
    options: Option<Value>,
}

/// Compares what [`Shape::read`] printed with the shape; the counters when they agree.
///
/// # Errors
/// The first [`Mismatch`].
pub fn compare(shape: &Shape, printed: &str) -> Result<Counters, Mismatch> {
    let mut lines = printed.lines();
    let qdiscs: Vec<Qdisc> = document("qdiscs of the interface", lines.next())?;
    let ifb: Vec<Qdisc> = document("qdiscs of the ifb", lines.next())?;
    let towards: Vec<Filter> = document("filters towards the client", lines.next())?;
    let from: Vec<Filter> = document("filters from the client", lines.next())?;
    let device = shape.device.as_str();
    let asked = shape.link.direction();

    let prio = qdisc(device, &qdiscs, "prio", ROOT)?;
    if !prio.root {
        return Err(differs(device, "root qdisc", &prio.parent, "prio"));
    }
    let bands = &prio.options["bands"];
    if bands != 2 {
        return Err(differs(device, "bands of prio", bands, "2"));
    }
    let open = prio.options["priomap"].as_array().is_some_and(|map| map.iter().all(|band| band == 0));
    if !open {
        return Err(differs(device, "priomap", &prio.options["priomap"], "all in the unshaped band"));
    }
    let to_client = qdisc(device, &qdiscs, "netem", TO_CLIENT)?;
    if to_client.parent.as_deref() != Some(BAND) {
        return Err(differs(device, "parent of netem", &to_client.parent, BAND));
    }
    let from_client = qdisc(IFB, &ifb, "netem", FROM_CLIENT)?;
    qdisc(device, &qdiscs, "ingress", INGRESS)?;
    same_netem(device, &to_client.options, &asked)?;
    same_netem(IFB, &from_client.options, &asked)?;
    let ours = |q: &&Qdisc| ![ROOT, TO_CLIENT, INGRESS].contains(&q.handle.as_str());
    if let Some(other) = qdiscs.iter().find(ours) {
        return Err(foreign(device, format!("qdisc {} {}", other.kind, other.handle)));
    }

    let client = shape.client.to_string();
    let options = only_filter(device, "filter towards the client", &towards)?;
    same(device, "flower dst_ip", &options["keys"]["dst_ip"], &client)?;
    same(device, "flower classid", &options["classid"], BAND)?;
    let options = only_filter(device, "filter from the client", &from)?;
    same(device, "flower src_ip", &options["keys"]["src_ip"], &client)?;
    same(device, "mirred to_dev", &options["actions"][0]["to_dev"], IFB)?;

    Ok(Counters {
        to_client: to_client.bytes,
        from_client: from_client.bytes,
        dropped: to_client.drops + from_client.drops,
    })
}

fn document<T: for<'a> Deserialize<'a>>(what: &'static str, line: Option<&str>) -> Result<T, Mismatch> {
    let line = line.unwrap_or_default();
    serde_json::from_str(line).map_err(|error| Mismatch::Unreadable { what, reason: error.to_string() })
}

fn qdisc<'a>(device: &str, all: &'a [Qdisc], kind: &str, handle: &str) -> Result<&'a Qdisc, Mismatch> {
    all.iter()
        .find(|q| q.kind == kind && q.handle == handle)
        .ok_or_else(|| Mismatch::Missing { device: device.into(), what: format!("{kind} qdisc {handle}") })
}

fn only_filter<'a>(device: &str, what: &str, all: &'a [Filter]) -> Result<&'a Value, Mismatch> {
    let mut real = all.iter().filter_map(|f| f.options.as_ref().map(|options| (f, options)));
    let missing = || Mismatch::Missing { device: device.into(), what: what.into() };
    let (first, options) = real.next().ok_or_else(missing)?;
    if first.kind != "flower" {
        return Err(foreign(device, format!("a {} filter", first.kind)));
    }
    match real.next() {
        Some((second, _)) => Err(foreign(device, format!("a second {} filter", second.kind))),
        None => Ok(options),
    }
}

fn same(device: &str, what: &'static str, found: &Value, asked: &str) -> Result<(), Mismatch> {
    if found == asked { Ok(()) } else { Err(differs(device, what, found, asked)) }
}

/// tc prints times in seconds with six significant digits.
fn same_netem(device: &str, found: &Value, asked: &Netem) -> Result<(), Mismatch> {
    let exact = [
        ("limit", &found["limit"], u64::from(asked.limit)),
        ("rate (B/s)", &found["rate"]["rate"], asked.rate),
    ];
    for (what, found, asked) in exact {
        if found.as_u64() != Some(asked) {
            return Err(differs(device, what, found, &asked.to_string()));
        }
    }
    let delay = &found["delay"];
    let mut near = vec![("delay (s)", &delay["delay"], asked.delay.as_secs_f64())];
    if !asked.jitter.is_zero() {
        near.push(("jitter (s)", &delay["jitter"], asked.jitter.as_secs_f64()));
        near.push(("correlation", &delay["correlation"], asked.correlation));
    }
    for (what, found, asked) in near {
        let value = found.as_f64().unwrap_or(0.0);
        if (value - asked).abs() > asked * 1e-4 + 1e-6 {
            return Err(differs(device, what, found, &asked.to_string()));
        }
    }
    // Loss, duplication and the like would be keys of their own.
    let known = ["limit", "delay", "rate", "seed", "ecn", "gap"];
    let other = found.as_object().and_then(|map| map.keys().find(|key| !known.contains(&key.as_str())));
    other.map_or(Ok(()), |key| Err(foreign(device, format!("netem's setting \"{key}\""))))
}

fn differs(device: &str, what: &'static str, found: &impl serde::Serialize, asked: &str) -> Mismatch {
    let found = serde_json::to_string(found).unwrap_or_default();
    Mismatch::Differs { device: device.into(), what, found, asked: asked.into() }
}

fn foreign(device: &str, what: String) -> Mismatch {
    Mismatch::Foreign { device: device.into(), what }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::super::link::Link;
    use super::*;

    /// Printed by iproute2 6.15 on kernel 6.12 after `Shape::apply`, the client having pinged.
    const PRINTED: &str = include_str!("fixtures/tc-readback.txt");

    fn shape() -> Shape {
        Shape {
            device: "eth0".into(),
            client: Ipv4Addr::new(198, 18, 1, 3),
            link: Link::paper_remote().dilated(5.0).unwrap(),
        }
    }

    #[test]
    fn a_real_dump_agrees_and_counts() {
        let counters = compare(&shape(), PRINTED).unwrap();
        assert!(counters.to_client > 0 && counters.from_client > 0, "{counters:?}");
        assert_eq!(counters.dropped, 0);
        let later = Counters { to_client: counters.to_client + 7, ..counters };
        assert_eq!(later.since(counters).unwrap().to_client, 7);
        assert_eq!(counters.since(later), None);
    }

    #[test]
    fn another_rate_delay_client_or_device_is_told_apart() {
        let mut asked = shape();
        asked.link.rate += 8;
        let error = compare(&asked, PRINTED).unwrap_err().to_string();
        assert_eq!(error, "eth0: rate (B/s) is 625000, asked was 625001");
        asked = shape();
        asked.link.delay += Duration::from_micros(100);
        assert!(matches!(compare(&asked, PRINTED), Err(Mismatch::Differs { what: "delay (s)", .. })));
        asked = shape();
        asked.client = Ipv4Addr::new(198, 18, 1, 4);
        let error = compare(&asked, PRINTED).unwrap_err().to_string();
        assert_eq!(error, "eth0: flower dst_ip is \"198.18.1.3\", asked was 198.18.1.4");
    }

    #[test]
    fn what_is_missing_or_foreign_is_named() {
        let unshaped =
            "[{\"kind\":\"fq_codel\",\"handle\":\"0:\",\"root\":true,\"options\":{}}]\n[]\n[]\n[]\n";
        let error = compare(&shape(), unshaped).unwrap_err();
        assert!(matches!(&error, Mismatch::Missing { what, .. } if what == "prio qdisc 1:"), "{error}");
        let lossy = PRINTED.replacen("\"ecn\":false", "\"ecn\":false,\"loss-random\":{\"loss\":0.01}", 1);
        let error = compare(&shape(), &lossy).unwrap_err().to_string();
        assert!(error.contains("loss-random"), "{error}");
        let unfiltered = PRINTED.lines().take(2).chain(["[]", "[]"]).collect::<Vec<_>>().join("\n");
        let error = compare(&shape(), &unfiltered).unwrap_err().to_string();
        assert!(error.starts_with("eth0: no filter towards the client"), "{error}");
    }

    #[test]
    fn what_is_not_json_is_an_error_and_no_panic() {
        for printed in ["", "[]", "Cannot find device", "{}\n{}\n{}\n{}\n"] {
            assert!(matches!(
                compare(&shape(), printed),
                Err(Mismatch::Unreadable { .. } | Mismatch::Missing { .. })
            ));
        }
    }
}
