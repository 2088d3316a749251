//! Values that a tool takes in coarser units than a scenario: refused where the tool would be told another one.
//!
//! What a scenario says is in the manifest and in the report, so it must be what was done. Scenarios of stored runs are not checked
//! for it: what was done with them is done ([`super::Scenario::parse_stored`]).
//!
//! Not meant are values that are computed: a link's jitter (over √2) and what dilation makes of a link.

use super::{
    Rate, Scenario, Size, Time,
    check::At,
    overlay::{Fault, Table},
};

/// A value in its smallest unit, and how it is printed.
struct Value {
    number: u64,
    print: fn(u64) -> String,
}

impl Value {
    fn size(size: Size) -> Self {
        Self { number: size.bytes(), print: |bytes| Size::from_bytes(bytes).to_string() }
    }

    fn time(time: Time) -> Self {
        Self { number: time.nanos(), print: |nanos| Time::from_nanos(nanos).to_string() }
    }

    fn rate(rate: Rate) -> Self {
        Self { number: rate.bits_per_second(), print: |bits| Rate::from_bits_per_second(bits).to_string() }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// Refuses what a tool would be told rounded.
pub(super) fn check(scenario: &Scenario, table: &Table<'_>) -> Result<(), Fault> {
    let at = At::of(table);
    let migration = &scenario.migration;
    let mut values: Vec<(&[&str], Value, u64, &str)> = vec![
        (
            &["guest", "memory"],
            Value::size(scenario.guest.memory),
            MIB,
            "libvirt is told memory in whole MiB",
        ),
        (
            &["migration", "max_downtime"],
            Value::time(migration.max_downtime),
            MILLISECOND,
            "QEMU takes whole milliseconds",
        ),
        (
            &["migration", "timeout"],
            Value::time(migration.timeout),
            MILLISECOND,
            "the bench waits for whole milliseconds",
        ),
    ];
    if let Some(network) = &scenario.network {
        let bytes = "netem takes whole bytes a second";
        let halves = "half of a delay is in each direction, in whole nanoseconds";
        values.extend([
            (&["network", "remote", "rate"][..], Value::rate(network.remote.rate), 8, bytes),
            (&["network", "remote", "delay"], Value::time(network.remote.delay), 2, halves),
            (&["network", "local", "rate"], Value::rate(network.local.rate), 8, bytes),
            (&["network", "local", "delay"], Value::time(network.local.delay), 2, halves),
        ]);
    }
    if let Some(bonnie) = &scenario.bonnie {
        let mib = "Bonnie++ takes whole MiB";
        values.extend([
            (&["bonnie", "size"][..], Value::size(bonnie.size), MIB, mib),
            (&["bonnie", "per_char"], Value::size(bonnie.per_char), MIB, mib),
            (&["bonnie", "chunk"], Value::size(bonnie.chunk), KIB, "the bench tells Bonnie++ whole KiB"),
        ]);
    }
    for (path, Value { number, print }, unit, why) in values {
        let rest = number % unit;
        if rest == 0 {
            continue;
        }
        let (below, above) = (number - rest, number - rest + unit);
        let help = if below == 0 {
            format!("use \"{}\"", print(above))
        } else {
            format!("use \"{}\" or \"{}\"", print(below), print(above))
        };
        return at.fail(path, None, &format!("{why}, and {} would be rounded", print(number)), &help);
    }
    storm(scenario, &at)
}

/// A storm lasts as long as its changes.
fn storm(scenario: &Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    let Some(layers) = &scenario.layers else { return Ok(()) };
    let (nanos, rate) = (u128::from(layers.storm.nanos()), u128::from(layers.storm_rate));
    if (nanos * rate).is_multiple_of(SECOND.into()) {
        return Ok(());
    }
    let message =
        format!("{} are no whole number of changes at {} a second", layers.storm, layers.storm_rate);
    let help = format!("use storm = \"{}\"", Time::from_secs(layers.storm.nanos().div_ceil(SECOND)));
    at.fail(&["layers", "storm"], None, &message, &help)
}
