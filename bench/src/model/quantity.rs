//! Quantities with units, as a person writes them: `"1 MiB"`, `"25 Mbit/s"`, `"10 ms"`, `"2 %"`.
//!
//! Each is a whole number of its smallest unit, so that what is written, kept and printed is the
//! same value exactly, and a number without a unit or with the wrong one is refused.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a quantity; the sentence says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QuantityError(String);

/// A unit's name and its size in the smallest unit.
type Unit = (&'static str, u64);

/// What distinguishes one kind of quantity from another.
struct Kind {
    /// With its article, as an error names it.
    noun: &'static str,
    example: &'static str,
    /// Ascending; the first is the smallest and has size 1.
    units: &'static [Unit],
    print: Print,
}

/// The unit in which a value is printed: always the largest that is exact and, beyond that, …
enum Print {
    /// … gives a whole number; binary units would get long fractions.
    Whole,
    /// … is not larger than the value.
    AtLeastOne,
    /// … may be larger than the value: 0.5 %.
    Any,
}

impl Kind {
    fn names(&self) -> String {
        self.units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    fn parse(&self, text: &str) -> Result<u64, QuantityError> {
        let text = text.trim();
        let fail = |why: &str| {
            QuantityError(format!("`{text}` is not {}: {why}, e.g. \"{}\"", self.noun, self.example))
        };
        if text.starts_with(['-', '\u{2212}']) {
            return Err(fail("it cannot be negative; write a number and a unit"));
        }
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..split], text[split..].trim());
        if number.is_empty() {
            return Err(fail("write a number and a unit"));
        }
        if unit.is_empty() {
            return Err(fail(&format!("its unit is missing ({})", self.names())));
        }
        let unit = if unit == "\u{b5}s" { "us" } else { unit };
        let Some(&(_, size)) = self.units.iter().find(|(name, _)| *name == unit) else {
            return Err(fail(&format!("`{unit}` is not one of its units ({})", self.names())));
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) || fraction.contains('.') {
            return Err(fail("write the number as digits with at most one point"));
        }
        let too_large = || fail("it is too large");
        let mut value = whole.parse::<u64>().ok().and_then(|w| w.checked_mul(size)).ok_or_else(too_large)?;
        // Digit by digit, so that 1.02 ms is exactly 1 020 000 ns.
        let mut rest = u128::from(size);
        let mut scaled = 0_u128;
        if fraction.len() > 15 {
            return Err(fail("it has more than 15 digits after the point"));
        }
        if !fraction.is_empty() {
            let digits: u128 = fraction.parse().map_err(|_| too_large())?;
            let ten = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| too_large())?);
            rest = rest.checked_mul(digits).ok_or_else(too_large)?;
            if !rest.is_multiple_of(ten) {
                return Err(fail(&format!("it is finer than 1 {}", self.units[0].0)));
            }
            scaled = rest / ten;
        }
        value = u64::try_from(scaled).ok().and_then(|s| value.checked_add(s)).ok_or_else(too_large)?;
        Ok(value)
    }

    /// In the largest unit that gives an exact decimal; zero in the example's, `0 ms` and not `0 ns`.
    fn show(&self, value: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &(name, size) = self
            .units
            .iter()
            .rev()
            .find(|(name, size)| match value {
                0 => self.example.ends_with(name),
                _ => match self.print {
                    Print::Whole => value.is_multiple_of(*size),
                    Print::AtLeastOne => value >= *size && decimals(value, *size).is_some(),
                    Print::Any => decimals(value, *size).is_some(),
                },
            })
            .unwrap_or(&self.units[0]);
        match decimals(value, size).as_deref() {
            None | Some("") => f.pad(&format!("{} {name}", value / size)),
            Some(digits) => f.pad(&format!("{}.{digits} {name}", value / size)),
        }
    }
}

/// The digits after the point of `value / size`, when they end within nine.
fn decimals(value: u64, size: u64) -> Option<String> {
    let (size, mut rest) = (u128::from(size), u128::from(value % size));
    let mut digits = String::new();
    while rest > 0 {
        if digits.len() == 9 {
            return None;
        }
        digits.push_str(&(rest * 10 / size).to_string());
        rest = rest * 10 % size;
    }
    Some(digits)
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl FromStr for $name {
            type Err = QuantityError;
            fn from_str(text: &str) -> Result<Self, QuantityError> {
                $kind.parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $kind.show(self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} as a text with its unit, e.g. \"{}\"", $kind.noun, $kind.example)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let units: Vec<_> = $kind.units.iter().map(|(name, _)| *name).collect();
                json_schema!({
                    "type": "string",
                    "description": format!("{} with its unit ({})", $kind.noun, units.join(", ")),
                    "pattern": format!("^ *[0-9]+(\\.[0-9]+)? *({}) *$", units.join("|")),
                    "examples": [$kind.example],
                })
            }
        }
    };
}

const SIZE: Kind = Kind {
    noun: "a size",
    example: "1 MiB",
    units: &[
        ("B", 1),
        ("kB", 1000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ],
    print: Print::Whole,
};

const RATE: Kind = Kind {
    noun: "a rate",
    example: "25 Mbit/s",
    units: &[("bit/s", 1), ("kbit/s", 1000), ("Mbit/s", 1_000_000), ("Gbit/s", 1_000_000_000)],
    print: Print::AtLeastOne,
};

const TIME: Kind = Kind {
    noun: "a time",
    example: "10 ms",
    units: &[
        ("ns", 1),
        ("us", 1000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("min", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ],
    print: Print::AtLeastOne,
};

const PERCENT: Kind =
    Kind { noun: "a percentage", example: "2 %", units: &[("ppm", 1), ("%", 10_000)], print: Print::Any };

quantity!(
    /// A size in bytes.
    Size,
    SIZE
);
quantity!(
    /// A data rate in bits a second.
    Rate,
    RATE
);
quantity!(
    /// A time, a delay or a limit, never negative.
    Time,
    TIME
);
quantity!(
    /// A share of something, in percent.
    Percent,
    PERCENT
);

impl Size {
    /// From bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// From mebibytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// In KiB, rounded down.
    pub const fn kib(self) -> u64 {
        self.0 >> 10
    }

    /// In MiB, rounded down.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl Rate {
    /// From bits a second.
    pub const fn from_bits_per_second(bits: u64) -> Self {
        Self(bits)
    }

    /// In bits a second.
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }

    /// In bytes a second, rounded down.
    pub const fn bytes_per_second(self) -> u64 {
        self.0 / 8
    }

    /// The rate of a link in dilated time.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "non-negative, only smaller")]
    pub fn divided_by(self, dilation: f64) -> Self {
        Self((self.0 as f64 / dilation).round() as u64)
    }
}

impl Time {
    /// From milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }

    /// From seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(s * 1_000_000_000)
    }

    /// From nanoseconds.
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// As the standard library's duration.
    pub const fn duration(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// In nanoseconds.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// In whole microseconds, rounded down.
    pub const fn micros(self) -> u64 {
        self.0 / 1000
    }

    /// In milliseconds.
    pub fn millis_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// A delay in dilated time.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, non-negative")]
    pub fn multiplied_by(self, factor: f64) -> Self {
        Self((self.0 as f64 * factor).round() as u64)
    }
}

impl Percent {
    /// From whole percent.
    pub const fn from_percent(percent: u64) -> Self {
        Self(percent * 10_000)
    }

    /// As a fraction: 2 % is 0.02.
    pub fn fraction(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// As a number of percent: 2 % is 2.
    pub fn percent(self) -> f64 {
        self.0 as f64 / 1e4
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_and_prints_the_paper_s_own_values() {
        assert_eq!("1.02 ms".parse::<Time>().unwrap().micros(), 1020);
        assert_eq!("25Mbit/s".parse::<Rate>().unwrap().bits_per_second(), 25_000_000);
        assert_eq!("0.5 %".parse::<Percent>().unwrap().fraction().to_bits(), 0.005_f64.to_bits());
        for text in ["1.02 ms", "10 ms", "5 min", "300 ms", "1.5 s", "90 s", "0 ms", "1 ns"] {
            let printed = text.parse::<Time>().unwrap().to_string();
            assert_eq!(printed.parse::<Time>(), text.parse::<Time>(), "{text} {printed}");
        }
        assert_eq!("0.5 %".parse::<Percent>().unwrap().to_string(), "0.5 %");
        assert_eq!("64 KiB".parse::<Size>().unwrap().to_string(), "64 KiB");
        assert_eq!("0 B".parse::<Size>().unwrap().to_string(), "0 MiB");
        assert_eq!("5 min".parse::<Time>().unwrap().to_string(), "5 min");
        assert_eq!("100 s".parse::<Time>().unwrap().to_string(), "100 s");
    }

    #[test]
    fn says_what_is_wrong() {
        let say = |text: &str| text.parse::<Time>().unwrap_err().to_string();
        insta::assert_snapshot!(say("-10 ms"), @r#"`-10 ms` is not a time: it cannot be negative; write a number and a unit, e.g. "10 ms""#);
        insta::assert_snapshot!(say("10"), @r#"`10` is not a time: its unit is missing (ns, us, ms, s, min, h), e.g. "10 ms""#);
        insta::assert_snapshot!(say("10 Mbit/s"), @r#"`10 Mbit/s` is not a time: `Mbit/s` is not one of its units (ns, us, ms, s, min, h), e.g. "10 ms""#);
        insta::assert_snapshot!(say("0.1 ns"), @r#"`0.1 ns` is not a time: it is finer than 1 ns, e.g. "10 ms""#);
        insta::assert_snapshot!(say("99999999999 h"), @r#"`99999999999 h` is not a time: it is too large, e.g. "10 ms""#);
        insta::assert_snapshot!(say("1..2 s"), @r#"`1..2 s` is not a time: write the number as digits with at most one point, e.g. "10 ms""#);
        insta::assert_snapshot!(say("soon"), @r#"`soon` is not a time: write a number and a unit, e.g. "10 ms""#);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(value: u64) {
            prop_assert_eq!(Size(value).to_string().parse(), Ok(Size(value)));
            prop_assert_eq!(Rate(value).to_string().parse(), Ok(Rate(value)));
            prop_assert_eq!(Time(value).to_string().parse(), Ok(Time(value)));
            prop_assert_eq!(Percent(value).to_string().parse(), Ok(Percent(value)));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Time>();
        }
    }
}
