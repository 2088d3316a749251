//! Small panels side by side, one an operation: a point with its interval for each row, on a logarithmic axis.
//!
//! Rows are the same in every panel, so their names stand once a line, at the left.

use plotters::{prelude::DrawingBackend, style::text_anchor::HPos};

use super::{
    chart::Colour,
    draw::{
        FigureError, GRID, INK, LINE, MARGIN, PAPER, Page, Picture, SMALL, SOFT, TITLE, WIDTH, pixels, width,
        wrap,
    },
};

/// Panels in a line.
const COLUMNS: usize = 3;
/// Height of a row of a panel, in pixels.
const ROW: i32 = 34;
/// Above the rows of a panel: its title and scale.
const HEAD: i32 = 68;
/// Below them: its axis.
const FOOT: i32 = 50;
/// Between panels.
const GAP: i32 = 36;
/// Room for the numbers at the right of a panel.
const NUMBERS: i32 = 96;

/// A figure of panels.
#[derive(Debug, Clone, PartialEq)]
pub struct Panels {
    /// What is shown, in one line.
    pub title: String,
    /// Names of the rows, with the colour of their points.
    pub rows: Vec<(String, Colour)>,
    /// The panels, line by line.
    pub panels: Vec<Panel>,
    /// Sentences under the figure.
    pub caption: Vec<String>,
}

/// One panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// In what.
    pub scale: String,
    /// Whether 1 has a meaning: then it is on the axis, and marked.
    pub ratio: bool,
    /// One a row.
    pub marks: Vec<Mark>,
}

/// What stands in a row of a panel.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    /// A point.
    Value {
        /// Where; above 0.
        value: f64,
        /// Its interval.
        interval: Option<(f64, f64)>,
        /// The number at the right.
        number: String,
    },
    /// No point, but words, such as `cannot`.
    Words(String),
}

impl Panel {
    /// The ends of the axis, and the ticks on it.
    fn axis(&self) -> Option<Axis> {
        let (mut low, mut high) = if self.ratio { (1.0, 1.0) } else { (f64::INFINITY, 0.0_f64) };
        for mark in &self.marks {
            if let Mark::Value { value, interval, .. } = mark {
                let (from, to) = interval.unwrap_or((*value, *value));
                low = low.min(from.min(*value));
                high = high.max(to.max(*value));
            }
        }
        (high > 0.0 && low.is_finite() && low > 0.0).then(|| Axis::holding(low, high))
    }
}

/// A logarithmic axis.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn holding(low: f64, high: f64) -> Self {
        // A little room, and at least a factor of 3 in all, so that noise does not look like a difference.
        let middle = (low * high).sqrt();
        let (low, high) = ((low / 1.15).min(middle / 3_f64.sqrt()), (high * 1.15).max(middle * 3_f64.sqrt()));
        let mut ticks = Vec::new();
        for steps in [&[1.0][..], &[1.0, 3.0], &[1.0, 2.0, 5.0]] {
            ticks = (-6..10)
                .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
                .filter(|tick| (low..=high).contains(tick))
                .collect();
            if ticks.len() >= 3 {
                break;
            }
        }
        Self { low, high, ticks }
    }

    /// Where a value is, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        ((value / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0)
    }
}

fn tick_label(value: f64) -> String {
    if value >= 1000.0 { format!("{}k", value / 1000.0) } else { format!("{}", (value * 1e6).round() / 1e6) }
}

/// Panels with their places.
pub(super) struct Laid<'a> {
    panels: &'a Panels,
    /// Where the panels begin, after the names of rows.
    left: i32,
    /// From the left of one panel to that of the next.
    step: i32,
    top: i32,
    caption: Vec<String>,
}

impl<'a> Laid<'a> {
    pub(super) fn new(panels: &'a Panels) -> Self {
        let names = panels.rows.iter().map(|(name, _)| width(name, SMALL)).max().unwrap_or(0);
        let left = MARGIN + names + 20;
        let step = (WIDTH - MARGIN - left + GAP) / pixels(COLUMNS);
        let caption = panels.caption.iter().flat_map(|line| wrap(line, SMALL, WIDTH - 2 * MARGIN)).collect();
        Self { panels, left, step, top: MARGIN + 56, caption }
    }

    fn rows(&self) -> i32 {
        pixels(self.panels.rows.len()) * ROW
    }

    /// Height of a line of panels.
    fn line(&self) -> i32 {
        HEAD + self.rows() + FOOT
    }

    fn lines(&self) -> i32 {
        pixels(self.panels.panels.len().div_ceil(COLUMNS))
    }

    fn names<B: DrawingBackend>(&self, page: &Page<'_, B>, top: i32) -> Result<(), FigureError> {
        for (number, (name, _)) in (0..).zip(&self.panels.rows) {
            let at = (self.left - 20, top + HEAD + number * ROW + ROW / 2 + 7);
            page.text(name, SMALL, INK, HPos::Right, at)?;
        }
        Ok(())
    }

    fn panel<B: DrawingBackend>(
        &self,
        page: &Page<'_, B>,
        panel: &Panel,
        (left, top): (i32, i32),
    ) -> Result<(), FigureError> {
        let right = left + self.step - GAP - NUMBERS;
        page.text(&panel.title, SMALL, INK, HPos::Left, (left, top + 26))?;
        page.text(&panel.scale, SMALL, SOFT, HPos::Left, (left, top + 52))?;
        let (first, last) = (top + HEAD, top + HEAD + self.rows());
        let axis = panel.axis();
        #[expect(clippy::cast_possible_truncation, reason = "within the page")]
        let x = |axis: &Axis, value: f64| left + (axis.at(value) * f64::from(right - left)).round() as i32;
        if let Some(axis) = &axis {
            for tick in &axis.ticks {
                let here = x(axis, *tick);
                page.line((here, first), (here, last), GRID, 2)?;
                page.text(&tick_label(*tick), SMALL * 0.9, SOFT, HPos::Center, (here, last + 26))?;
            }
            if panel.ratio {
                let one = x(axis, 1.0);
                page.line((one, first), (one, last), SOFT, 2)?;
            }
            page.line((left, last), (right, last), SOFT, 2)?;
        }
        for (number, (mark, (_, colour))) in (0..).zip(panel.marks.iter().zip(&self.panels.rows)) {
            let y = first + number * ROW + ROW / 2;
            match (mark, &axis) {
                (Mark::Value { value, interval, number }, Some(axis)) => {
                    if let Some((low, high)) = interval {
                        let (low, high) = (x(axis, *low), x(axis, *high));
                        page.line((low, y), (high, y), *colour, 4)?;
                        for end in [low, high] {
                            page.line((end, y - 7), (end, y + 7), *colour, 3)?;
                        }
                    }
                    let at = (x(axis, *value), y);
                    page.disc(at, 8, PAPER)?;
                    page.disc(at, 7, *colour)?;
                    page.text(number, SMALL, INK, HPos::Right, (right + NUMBERS, y + 7))?;
                }
                (Mark::Value { number, .. }, None) => {
                    page.text(number, SMALL, INK, HPos::Left, (left, y + 7))?;
                }
                (Mark::Words(words), _) => {
                    // On white, so that the grid does not strike it out.
                    let end = left + 8 + width(words, SMALL);
                    page.line((left, y), (end + 8, y), PAPER, 24)?;
                    page.text(words, SMALL, SOFT, HPos::Left, (left + 8, y + 7))?;
                }
            }
        }
        Ok(())
    }
}

impl Picture for Laid<'_> {
    fn height(&self) -> i32 {
        self.top + self.lines() * self.line() + 16 + pixels(self.caption.len()) * LINE + MARGIN / 2
    }

    fn paint<B: DrawingBackend>(&self, page: &Page<'_, B>) -> Result<(), FigureError> {
        page.text(&self.panels.title, TITLE, INK, HPos::Left, (MARGIN, MARGIN + 24))?;
        for (index, panel) in self.panels.panels.iter().enumerate() {
            let (line, column) = (pixels(index / COLUMNS), pixels(index % COLUMNS));
            let top = self.top + line * self.line();
            if column == 0 {
                self.names(page, top)?;
            }
            self.panel(page, panel, (self.left + column * self.step, top))?;
        }
        page.caption(&self.caption, self.height())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_axis_holds_its_values_and_has_ticks(low in 1e-3..1e4_f64, factor in 1.0..1e4_f64) {
            let axis = Axis::holding(low, low * factor);
            prop_assert!((2..=12).contains(&axis.ticks.len()), "{:?}", axis);
            let (from, to) = (axis.at(low), axis.at(low * factor));
            prop_assert!(from > 0.0 && to < 1.0 && from <= to);
        }
    }

    #[test]
    fn the_axis_of_a_ratio_has_one_on_it() {
        let value = Mark::Value { value: 40.0, interval: Some((30.0, 50.0)), number: "40".into() };
        let panel = Panel {
            title: "t".into(),
            scale: "s".into(),
            ratio: true,
            marks: vec![value, Mark::Words("cannot".into())],
        };
        let axis = panel.axis().unwrap();
        assert!(axis.low < 1.0 && axis.high > 50.0);
        assert_eq!(Panel { marks: vec![Mark::Words("cannot".into())], ratio: false, ..panel }.axis(), None);
    }
}
