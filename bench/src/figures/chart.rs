//! The description of a grouped bar chart, which is what all figures of the paper are.

/// A colour as red, green and blue.
pub type Colour = (u8, u8, u8);

/// A grouped bar chart, from zero up.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// What is shown, in one line.
    pub title: String,
    /// Quantity and unit of the y axis.
    pub y_label: String,
    /// One entry of the legend each; the bars of every group follow their order.
    pub series: Vec<Series>,
    /// Groups of bars from left to right.
    pub groups: Vec<BarGroup>,
    /// Sentences under the chart.
    pub caption: Vec<String>,
}

/// What bars of one colour have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// The colour of its bars.
    pub colour: Colour,
}

/// Bars that stand together.
#[derive(Debug, Clone, PartialEq)]
pub struct BarGroup {
    /// Its name under the axis.
    pub label: String,
    /// One a series.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone, PartialEq)]
pub enum Bar {
    /// A mean with what it is the mean of.
    Value {
        /// Height.
        mean: f64,
        /// Half the length of the whisker; none for a single value.
        sd: Option<f64>,
        /// The single values, in the order in which they were measured.
        dots: Vec<f64>,
        /// How many values more were too fast to measure, so that the true mean is higher.
        too_fast: usize,
    },
    /// Every value was too fast to measure: a mark, and never zero.
    TooFast {
        /// How many.
        count: usize,
    },
    /// There is no valid sample.
    None,
}

impl Chart {
    /// The highest thing drawn.
    pub(super) fn top(&self) -> f64 {
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        bars.fold(0.0, |top, bar| match bar {
            Bar::Value { mean, sd, dots, .. } => {
                dots.iter().copied().fold(top.max(mean + sd.unwrap_or(0.0)), f64::max)
            }
            _ => top,
        })
    }
}

/// Ticks of an axis from zero that holds `top`: steps of 1, 2, 2.5 or 5 times a power of ten, four to
/// seven of them.
pub(super) fn ticks(top: f64) -> Vec<f64> {
    let top = if top > 0.0 && top.is_finite() { top } else { 1.0 };
    let rough = top / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * power);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 2 and 10")]
    let count = (top / step).ceil() as u32;
    (0..=count).map(|i| f64::from(i) * step).collect()
}

/// A tick's number with the decimals that its step needs.
pub(super) fn tick_label(value: f64, step: f64) -> String {
    let decimals = (0..8).find(|d| {
        let scaled = step * 10_f64.powi(*d);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.abs().max(1.0)
    });
    group_thousands(&format!("{value:.*}", usize::try_from(decimals.unwrap_or(2)).unwrap_or(2)))
}

/// A value with three significant digits.
pub fn three_digits(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    #[expect(clippy::cast_possible_truncation, reason = "an exponent")]
    let exponent = value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(exponent - 2);
    // Rounding first: 9.999 is 10.0 and not 10.00.
    let rounded = (value / scale).round() * scale;
    #[expect(clippy::cast_possible_truncation, reason = "an exponent")]
    let decimals = 2 - rounded.abs().log10().floor() as i32;
    group_thousands(&format!("{rounded:.*}", usize::try_from(decimals).unwrap_or(0)))
}

/// Thin spaces between thousands from five digits on.
pub fn group_thousands(number: &str) -> String {
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(w, f)| (w, Some(f)));
    let digits = whole.trim_start_matches('-');
    let mut out = whole[..whole.len() - digits.len()].to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && digits.len() > 4 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{2009}');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_as_people_read_them() {
        let all: Vec<_> = [0.0, 0.012_345, 1.0, 9.999, 18.26, 574.0, 3598.4, 12_345.6, 1_234_567.0]
            .map(three_digits)
            .into();
        assert_eq!(
            all,
            [
                "0",
                "0.0123",
                "1.00",
                "10.0",
                "18.3",
                "574",
                "3600",
                "12\u{2009}300",
                "1\u{2009}230\u{2009}000"
            ]
        );
        assert_eq!(tick_label(7.5, 2.5), "7.5");
        assert_eq!(tick_label(20.0, 5.0), "20");
        assert_eq!(tick_label(0.04, 0.02), "0.04");
    }

    proptest! {
        #[test]
        fn ticks_hold_the_top(exponent in -6.0..9.0_f64) {
            let top = 10_f64.powf(exponent);
            let ticks = ticks(top);
            prop_assert!(ticks[0] == 0.0 && *ticks.last().unwrap() >= top * (1.0 - 1e-9));
            prop_assert!((3..=7).contains(&ticks.len()), "{:?}", ticks);
        }
    }
}
