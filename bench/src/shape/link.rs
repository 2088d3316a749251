//! What a client shall see of a link, and what that means for netem.
//!
//! The paper (section "Functional evaluation") gives its remote link as "25Mbit of bandwidth, with an
//! average 10ms latency", "2% variance following a normal distribution and 25% correlation". Read here as:
//! the rate holds in each direction; the latency is what the link adds to a *round trip*, half of it in
//! each direction; the variance is the standard deviation of that round trip over its mean.
//! The two directions vary independently, so each has the round trip's deviation over √2.
//!
//! On an emulated machine the processor would be measured instead of the network. Then the network is
//! scaled with the machine (time dilation: Gupta et al., NSDI 2008): rates divided by d,
//! delays multiplied by d. Ratios between links stay as they are; absolute numbers are d times slower,
//! so d stands in every sample and caption.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Shape of the variation of the delay: netem's distribution tables (tc-netem(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Every delay within ± the jitter is equally likely: netem without a table.
    Uniform,
    /// Normal, as in the paper.
    #[default]
    Normal,
    /// Pareto.
    Pareto,
    /// A quarter normal and three quarters Pareto.
    ParetoNormal,
}

impl Distribution {
    /// The name of netem's table; none for uniform, which needs no table.
    pub fn table(self) -> Option<&'static str> {
        match self {
            Self::Uniform => None,
            Self::Normal => Some("normal"),
            Self::Pareto => Some("pareto"),
            Self::ParetoNormal => Some("paretonormal"),
        }
    }
}

/// A link between a client and a server, as both directions together show it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// Rate in each direction, in bit/s on the wire (Ethernet frames without preamble and checksum).
    pub rate: u64,
    /// What the link adds to a round trip.
    pub delay: Duration,
    /// Standard deviation of that round-trip time over its mean, 0 to 1.
    pub variation: f64,
    /// How much a packet's delay depends on the one before, 0 to 1.
    pub correlation: f64,
    /// Shape of the variation.
    pub distribution: Distribution,
}

/// A link that cannot be made.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LinkError {
    /// The rate is 0, or below what netem can be told.
    #[error("a rate of {0} bit/s is too small: netem counts whole bytes per second, use at least 8000 bit/s")]
    Rate(u64),
    /// A share that is not between 0 and 1.
    #[error("{what} is {value}, but it is a share: use 0 to 1")]
    Share {
        /// `variation` or `correlation`.
        what: &'static str,
        /// What was given.
        value: f64,
    },
    /// A dilation that would speed the network up, or is no number.
    #[error("a dilation of {0} is not possible: use 1 (real time) or more")]
    Dilation(f64),
    /// netem keeps delays of up to 2^32 ns in its older interface.
    #[error("a delay of {} s is too long: use at most 4 s in a round trip, after dilation", .0.as_secs_f64())]
    Delay(Duration),
}

/// One direction of a link, in the words of tc-netem(8).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Netem {
    /// Bytes per second: netem's unit.
    pub rate: u64,
    /// Mean delay.
    pub delay: Duration,
    /// Standard deviation of the delay (for the uniform distribution: half its width).
    pub jitter: Duration,
    /// Correlation with the packet before, 0 to 1.
    pub correlation: f64,
    /// Table of the distribution.
    pub distribution: Distribution,
    /// Packets that may wait; more are dropped.
    pub limit: u32,
}

/// Longest round-trip delay that is accepted.
const LONGEST: Duration = Duration::from_secs(4);
/// Payload of a full-sized Ethernet frame with TCP timestamps, in bytes: what a packet of the queue carries.
const SEGMENT: f64 = 1448.0;
/// netem's own default queue; TCP's largest usual window (6 MiB) is four times that in packets.
const LEAST_LIMIT: u32 = 1000;

impl Link {
    /// The paper's link between client and remote server: 25 Mbit/s, 10 ms, 2 %, 25 %, normal.
    pub fn paper_remote() -> Self {
        Self {
            rate: 25_000_000,
            delay: Duration::from_millis(10),
            variation: 0.02,
            correlation: 0.25,
            distribution: Distribution::Normal,
        }
    }

    /// The paper's link between client and local server: 500 Mbit/s, 1.02 ms, 0.5 %.
    ///
    /// The paper gives no correlation and no distribution for it: taken as for the remote one.
    pub fn paper_local() -> Self {
        Self {
            rate: 500_000_000,
            delay: Duration::from_micros(1020),
            variation: 0.005,
            correlation: 0.25,
            distribution: Distribution::Normal,
        }
    }

    /// Says whether netem can make this link.
    ///
    /// # Errors
    /// [`LinkError`] with the value and what to use instead.
    pub fn check(&self) -> Result<(), LinkError> {
        if self.rate < 8000 {
            return Err(LinkError::Rate(self.rate));
        }
        for (what, value) in [("variation", self.variation), ("correlation", self.correlation)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(LinkError::Share { what, value });
            }
        }
        if self.delay > LONGEST { Err(LinkError::Delay(self.delay)) } else { Ok(()) }
    }

    /// The link in a network that is `dilation` times slower: rate ÷ d, delay × d.
    ///
    /// # Errors
    /// [`LinkError`] when the dilation is below 1 or the slower link cannot be made.
    pub fn dilated(&self, dilation: f64) -> Result<Self, LinkError> {
        if !(dilation >= 1.0 && dilation.is_finite()) {
            return Err(LinkError::Dilation(dilation));
        }
        let delay = Duration::try_from_secs_f64(self.delay.as_secs_f64() * dilation)
            .map_err(|_| LinkError::Dilation(dilation))?;
        // Within u64 since it is at most `self.rate`, and not negative.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rate = (self.rate as f64 / dilation).round() as u64;
        let link = Self { rate, delay, ..*self };
        link.check().map(|()| link)
    }

    /// One direction of the link.
    pub fn direction(&self) -> Netem {
        let delay = self.delay / 2;
        let jitter = self.delay.as_secs_f64() * self.variation / std::f64::consts::SQRT_2;
        // A share of the delay, which `check` has seen to be finite and not negative.
        let jitter = Duration::try_from_secs_f64(jitter).unwrap_or_default();
        let rate = self.rate / 8;
        // Four times what the link itself holds: a queue that only ever overflows for a sender that
        // ignores the link, so that netem's limit is never what is measured.
        let held = rate as f64 * self.delay.as_secs_f64() / SEGMENT;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let limit = ((4.0 * held).ceil() as u32).max(LEAST_LIMIT);
        Netem { rate, delay, jitter, correlation: self.correlation, distribution: self.distribution, limit }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_remote_link_of_the_paper_in_each_direction() {
        let netem = Link::paper_remote().direction();
        assert_eq!(netem.rate, 3_125_000);
        assert_eq!(netem.delay, Duration::from_millis(5));
        assert!((netem.jitter.as_secs_f64() - 0.2e-3 / 2f64.sqrt()).abs() < 1e-9);
        assert_eq!(netem.limit, 1000);
    }

    #[test]
    fn a_fast_and_long_link_has_a_queue_that_holds_it() {
        let link = Link { rate: 10_000_000_000, delay: Duration::from_millis(100), ..Link::paper_local() };
        assert!(f64::from(link.direction().limit) * SEGMENT > 4.0 * 1.25e9 * 0.1 * 0.99);
    }

    #[test]
    fn what_cannot_be_made_is_refused_with_its_value() {
        let link = Link::paper_remote();
        assert_eq!(link.dilated(0.5).unwrap_err(), LinkError::Dilation(0.5));
        assert!(link.dilated(f64::NAN).is_err());
        assert!(link.dilated(1e9).is_err());
        assert!(matches!(Link { rate: 7, ..link }.check(), Err(LinkError::Rate(7))));
        let error = Link { variation: 2.0, ..link }.check().unwrap_err();
        assert_eq!(error.to_string(), "variation is 2, but it is a share: use 0 to 1");
    }

    proptest! {
        #[test]
        fn dilation_keeps_what_the_link_holds(d in 1.0..50.0f64) {
            let link = Link::paper_remote();
            let slow = link.dilated(d).unwrap();
            let held = |l: &Link| l.rate as f64 * l.delay.as_secs_f64();
            prop_assert!((held(&slow) / held(&link) - 1.0).abs() < 1e-4);
        }
    }
}
