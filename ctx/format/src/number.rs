//! Whole numbers in a range that their type states.
//!
//! A setting that is read from a command line or a file is a [`Number`], so that no program goes on with a value
//! that it cannot use, and every refusal names the range.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};

/// A whole number from `LOW` to `HIGH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Number<const LOW: u64, const HIGH: u64>(u64);

/// A number that is none, or out of its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("write a whole number from {low} to {high}")]
pub struct NumberError {
    low: u64,
    high: u64,
}

impl<const LOW: u64, const HIGH: u64> Number<LOW, HIGH> {
    /// The nearest number of the range, for constants.
    pub const fn nearest(value: u64) -> Self {
        if value < LOW {
            Self(LOW)
        } else if value > HIGH {
            Self(HIGH)
        } else {
            Self(value)
        }
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    fn check(value: impl TryInto<u64>) -> Result<Self, NumberError> {
        match value.try_into() {
            Ok(value) if (LOW..=HIGH).contains(&value) => Ok(Self(value)),
            _ => Err(NumberError { low: LOW, high: HIGH }),
        }
    }
}

impl<const LOW: u64, const HIGH: u64> FromStr for Number<LOW, HIGH> {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        // Digits alone: `+1` is no number in a file either.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit()).then_some(text);
        Self::check(digits.and_then(|text| text.parse::<u64>().ok()).map_or(-1, i128::from))
    }
}

impl<const LOW: u64, const HIGH: u64> fmt::Display for Number<LOW, HIGH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<const LOW: u64, const HIGH: u64> Serialize for Number<LOW, HIGH> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de, const LOW: u64, const HIGH: u64> Deserialize<'de> for Number<LOW, HIGH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const LOW: u64, const HIGH: u64>;

        impl<const LOW: u64, const HIGH: u64> de::Visitor<'_> for Visitor<LOW, HIGH> {
            type Value = Number<LOW, HIGH>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {LOW} to {HIGH}")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                Number::check(value).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                Number::check(value).map_err(E::custom)
            }

            fn visit_i128<E: de::Error>(self, value: i128) -> Result<Self::Value, E> {
                Number::check(value).map_err(E::custom)
            }

            fn visit_u128<E: de::Error>(self, value: u128) -> Result<Self::Value, E> {
                Number::check(value).map_err(E::custom)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                Number::check(-1_i8).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// Reads an optional rank, 0 to 65535: for `#[serde(deserialize_with)]`.
///
/// # Errors
/// The deserializer's.
pub fn optional_u16<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    let number = Option::<Number<0, 65535>>::deserialize(deserializer)?;
    Ok(number.and_then(|number| u16::try_from(number.get()).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Seconds = Number<1, 600>;

    #[test]
    fn only_whole_numbers_of_the_range_are_taken_and_the_refusal_names_it() {
        for (text, number) in [("1", 1), ("600", 600), ("0042", 42)] {
            assert_eq!(text.parse::<Seconds>().unwrap().get(), number);
        }
        let wrong =
            ["", "0", "601", "-1", "+1", "1.5", "1e300", "NaN", "inf", " 1", "99999999999999999999", "x"];
        for text in wrong {
            let error = text.parse::<Seconds>().unwrap_err();
            assert_eq!(error.to_string(), "write a whole number from 1 to 600", "{text:?}");
        }
        let all = u64::MAX.to_string().parse::<Number<0, { u64::MAX }>>().unwrap();
        assert_eq!(all.get(), u64::MAX);
    }

    #[test]
    fn files_are_read_by_the_same_rule() {
        let read = |json: &str| serde_json::from_str::<Seconds>(json).map_err(|error| error.to_string());
        assert_eq!(read("600").unwrap().get(), 600);
        for json in ["0", "601", "-1", "1.5", "1e300", "99999999999999999999", "\"1\"", "null", "[]"] {
            assert!(read(json).unwrap_err().contains("a whole number from 1 to 600"), "{json}");
        }
        assert_eq!(serde_json::to_string(&Seconds::nearest(7)).unwrap(), "7");
        assert_eq!((Seconds::nearest(0).get(), Seconds::nearest(9999).get()), (1, 600));
    }
}
