//! Lays a [`Chart`] out and draws it, the same way as SVG and as PNG.
//!
//! plotters' own chart builder is not used: its labels collide in narrow groups, and its layout
//! of text differs between the two formats. Here text is placed by its baseline and measured with
//! our own font, so both come out alike. Everything is laid out in pixels at twice the size of a
//! page, which gives the PNG its resolution and the SVG its fine coordinates.

use std::{fs, sync::OnceLock};

use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        FontTransform, register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::chart::{Bar, Chart, Colour, three_digits, tick_label, ticks};

/// A figure could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw a figure: {0}; see that the folder for temporary files can be written to")]
pub struct FigureError(String);

fn failed(error: impl std::fmt::Display) -> FigureError {
    FigureError(error.to_string())
}

/// Width in pixels, for 17 cm at 215 dots an inch.
const WIDTH: i32 = 1440;
const PLOT_HEIGHT: i32 = 560;
const MARGIN: i32 = 32;

/// Sizes of text: the em in pixels.
const TITLE: f64 = 30.0;
const LABEL: f64 = 23.0;
const SMALL: f64 = 20.0;

const INK: Colour = (0x1f, 0x24, 0x29);
const SOFT: Colour = (0x5b, 0x64, 0x6d);
const GRID: Colour = (0xe3, 0xe6, 0xe9);

/// `DejaVu` Sans where it is installed, so that what is measured is what is drawn; any sans-serif
/// elsewhere. The bitmap's font is registered under the same name.
const FAMILY: &str = "DejaVu Sans, sans-serif";
static FONT: &[u8] = include_bytes!("../../fonts/DejaVuSans.ttf");

fn register() -> Result<(), FigureError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    if *REGISTERED.get_or_init(|| register_font(FAMILY, FontStyle::Normal, FONT).is_ok()) {
        Ok(())
    } else {
        Err(failed("the built-in font cannot be read"))
    }
}

/// What differs between the formats: how plotters 0.3.7 scales and places text.
#[derive(Clone, Copy)]
enum Format {
    Svg,
    Png,
}

impl Format {
    /// plotters' size of a font whose em is this large. Its SVG divides by 1.24; its bitmap takes
    /// the size as ascent and descent together, 1.164 em in `DejaVu` Sans.
    fn size(self, em: f64) -> f64 {
        match self {
            Self::Svg => em * 1.24,
            Self::Png => em * 1.164,
        }
    }

    /// How far below the baseline the anchor at the bottom lies: half an x-height (0.547 em) in SVG;
    /// the size's 1 ÷ 1.24 − ½ in bitmaps.
    #[expect(clippy::cast_possible_truncation, reason = "a few pixels")]
    fn drop(self, em: f64) -> i32 {
        match self {
            Self::Svg => (em * 0.547 / 2.0).round() as i32,
            Self::Png => (self.size(em) * (1.0 / 1.24 - 0.5)).round() as i32,
        }
    }
}

/// The figure as SVG.
///
/// # Errors
/// The built-in font cannot be read.
pub fn svg(chart: &Chart) -> Result<String, FigureError> {
    register()?;
    let layout = Layout::new(chart);
    let mut text = String::new();
    {
        let size = (WIDTH.unsigned_abs(), layout.height.unsigned_abs());
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        Page { root: &root, format: Format::Svg }.chart(chart, &layout)?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}

/// The figure as PNG.
///
/// # Errors
/// The built-in font cannot be read, or no temporary file can be made.
pub fn png(chart: &Chart) -> Result<Vec<u8>, FigureError> {
    register()?;
    let layout = Layout::new(chart);
    // plotters encodes into files only.
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().join("figure.png");
    {
        let size = (WIDTH.unsigned_abs(), layout.height.unsigned_abs());
        let root = BitMapBackend::new(&path, size).into_drawing_area();
        Page { root: &root, format: Format::Png }.chart(chart, &layout)?;
        root.present().map_err(failed)?;
    }
    fs::read(&path).map_err(failed)
}

/// Width of a text in pixels, by the metrics of our own font.
fn width(text: &str, em: f64) -> i32 {
    let font = (FAMILY, Format::Png.size(em)).into_font();
    font.layout_box(text).map_or(0, |((left, _), (right, _))| right - left)
}

/// Breaks a text into lines no wider than `limit`, at spaces.
fn wrap(text: &str, em: f64, limit: i32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), em) <= limit => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Where everything stands, in pixels from the top left.
struct Layout {
    ticks: Vec<(f64, String)>,
    /// Lines of the legend: entries with the x at which each begins.
    legend: Vec<Vec<(usize, i32)>>,
    /// Label of each group, broken into lines.
    labels: Vec<Vec<String>>,
    caption: Vec<String>,
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    height: i32,
}

const SWATCH: i32 = 24;
const LINE: i32 = 32;

impl Layout {
    fn new(chart: &Chart) -> Self {
        // Room above the highest thing for its number.
        let values = ticks(chart.top() * 1.06);
        let step = values.get(1).copied().unwrap_or(1.0);
        let ticks: Vec<_> = values.into_iter().map(|value| (value, tick_label(value, step))).collect();
        let widest = ticks.iter().map(|(_, label)| width(label, SMALL)).max().unwrap_or(0);
        let left = MARGIN + 40 + widest + 16;
        let right = WIDTH - MARGIN;

        let mut legend: Vec<Vec<(usize, i32)>> = vec![Vec::new()];
        let mut x = left;
        for (index, series) in chart.series.iter().enumerate() {
            let wide = SWATCH + 12 + width(&series.label, LABEL);
            if x > left && x + wide > right {
                legend.push(Vec::new());
                x = left;
            }
            if let Some(line) = legend.last_mut() {
                line.push((index, x));
            }
            x += wide + 44;
        }
        let group = (right - left) / i32::try_from(chart.groups.len().max(1)).unwrap_or(i32::MAX);
        let labels: Vec<_> = chart.groups.iter().map(|one| wrap(&one.label, LABEL, group - 16)).collect();
        let caption = chart.caption.iter().flat_map(|line| wrap(line, SMALL, right - MARGIN)).collect::<Vec<_>>();

        let lines = |count: usize| i32::try_from(count).unwrap_or(0) * LINE;
        let top = MARGIN + 44 + lines(legend.len()) + 36;
        let bottom = top + PLOT_HEIGHT;
        let label_lines = labels.iter().map(Vec::len).max().unwrap_or(0);
        let height = bottom + 16 + lines(label_lines) + 24 + lines(caption.len()) + MARGIN / 2;
        Self { ticks, legend, labels, caption, left, right, top, bottom, height }
    }

    fn y(&self, value: f64) -> i32 {
        let top = self.ticks.last().map_or(1.0, |(value, _)| *value);
        #[expect(clippy::cast_possible_truncation, reason = "within the page")]
        let up = (value / top * f64::from(self.bottom - self.top)).round() as i32;
        self.bottom - up
    }
}

struct Page<'a, B: DrawingBackend> {
    root: &'a DrawingArea<B, Shift>,
    format: Format,
}

impl<B: DrawingBackend> Page<'_, B> {
    fn chart(&self, chart: &Chart, layout: &Layout) -> Result<(), FigureError> {
        self.root.fill(&WHITE).map_err(failed)?;
        self.text(&chart.title, TITLE, INK, HPos::Left, (layout.left, MARGIN + 24))?;
        self.legend(chart, layout)?;
        self.axis(chart, layout)?;
        let count = i32::try_from(chart.groups.len().max(1)).map_err(failed)?;
        let room = (layout.right - layout.left) / count;
        for (index, (group, label)) in (0..).zip(chart.groups.iter().zip(&layout.labels)) {
            let start = layout.left + index * room;
            self.bars(&group.bars, chart, layout, start, room)?;
            for (line, text) in (1..).zip(label) {
                let at = (start + room / 2, layout.bottom + 10 + line * LINE - 4);
                self.text(text, LABEL, INK, HPos::Center, at)?;
            }
        }
        // The axis over the feet of the bars.
        self.line((layout.left, layout.bottom), (layout.right, layout.bottom), INK, 2)?;
        let first = layout.height - MARGIN / 2 - LINE * i32::try_from(layout.caption.len()).map_err(failed)?;
        for (line, text) in (1..).zip(&layout.caption) {
            self.text(text, SMALL, SOFT, HPos::Left, (MARGIN, first + line * LINE - 10))?;
        }
        Ok(())
    }

    fn legend(&self, chart: &Chart, layout: &Layout) -> Result<(), FigureError> {
        for (line, entries) in (1..).zip(&layout.legend) {
            let baseline = MARGIN + 40 + line * LINE;
            for (index, x) in entries {
                let Some(series) = chart.series.get(*index) else { continue };
                self.rectangle((*x, baseline - 20), (x + SWATCH, baseline + 4), series.colour)?;
                self.text(&series.label, LABEL, INK, HPos::Left, (x + SWATCH + 12, baseline))?;
            }
        }
        Ok(())
    }

    fn axis(&self, chart: &Chart, layout: &Layout) -> Result<(), FigureError> {
        for (value, label) in &layout.ticks {
            let y = layout.y(*value);
            if *value > 0.0 {
                self.line((layout.left, y), (layout.right, y), GRID, 2)?;
            }
            self.text(label, SMALL, SOFT, HPos::Right, (layout.left - 14, y + 7))?;
        }
        // Turned by 270° the baseline is a vertical line, and below it is to the right.
        let style = self.style(LABEL, INK, HPos::Center).transform(FontTransform::Rotate270);
        let at = (MARGIN + 20 + self.format.drop(LABEL), i32::midpoint(layout.top, layout.bottom));
        self.root.draw(&Text::new(chart.y_label.as_str(), at, style)).map_err(failed)
    }

    fn bars(&self, bars: &[Bar], chart: &Chart, layout: &Layout, start: i32, room: i32) -> Result<(), FigureError> {
        let count = i32::try_from(bars.len().max(1)).map_err(failed)?;
        // A third of the room stays free; few bars do not become slabs.
        let wide = (room * 2 / 3 / count).min(150);
        let first = start + (room - wide * count) / 2;
        for (index, (bar, series)) in (0..).zip(bars.iter().zip(&chart.series)) {
            let left = first + index * wide;
            let (middle, inner) = (left + wide / 2, (left + 4, left + wide - 4));
            match bar {
                Bar::Value { mean, sd, dots, too_fast } => {
                    let y = layout.y(*mean);
                    self.rectangle((inner.0, y), (inner.1, layout.bottom), series.colour)?;
                    self.dots(dots, layout, middle, wide)?;
                    let mut top = y.min(dots.iter().map(|dot| layout.y(*dot)).min().unwrap_or(y) - 6);
                    if let Some(sd) = sd.filter(|sd| *sd > 0.0) {
                        let (high, low) = (layout.y(mean + sd), layout.y((mean - sd).max(0.0)));
                        self.line((middle, high), (middle, low), INK, 3)?;
                        for y in [high, low] {
                            self.line((middle - 10, y), (middle + 10, y), INK, 3)?;
                        }
                        top = top.min(high);
                    }
                    let mut number = three_digits(*mean);
                    if *too_fast > 0 {
                        number.push_str(" +++");
                    }
                    self.text(&number, self.fitting(&number, wide), INK, HPos::Center, (middle, top - 10))?;
                }
                Bar::TooFast { .. } => self.text("+++", LABEL, INK, HPos::Center, (middle, layout.bottom - 12))?,
                Bar::None => self.text("none", SMALL, SOFT, HPos::Center, (middle, layout.bottom - 12))?,
            }
        }
        Ok(())
    }

    /// A size at which a number does not run into its neighbours'.
    #[expect(clippy::unused_self, reason = "reads as one with what is drawn")]
    fn fitting(&self, text: &str, room: i32) -> f64 {
        let natural = f64::from(width(text, SMALL).max(1));
        SMALL * (f64::from(room + 6) / natural).clamp(0.6, 1.0)
    }

    /// Single values from left to right in the order in which they were measured.
    fn dots(&self, dots: &[f64], layout: &Layout, middle: i32, wide: i32) -> Result<(), FigureError> {
        let last = i32::try_from(dots.len().max(2) - 1).map_err(failed)?;
        let spread = wide * 5 / 10;
        for (index, dot) in (0..).zip(dots) {
            let x = if dots.len() == 1 { middle } else { middle - spread / 2 + spread * index / last };
            let at = (x, layout.y(*dot));
            self.root.draw(&Circle::new(at, 6, WHITE.filled())).map_err(failed)?;
            self.root.draw(&Circle::new(at, 4, rgb(INK).filled())).map_err(failed)?;
        }
        Ok(())
    }

    fn style(&self, em: f64, colour: Colour, across: HPos) -> TextStyle<'static> {
        (FAMILY, self.format.size(em)).into_font().color(&rgb(colour)).pos(Pos::new(across, VPos::Bottom))
    }

    /// A text whose baseline is at `y`.
    fn text(&self, text: &str, em: f64, colour: Colour, across: HPos, (x, y): (i32, i32)) -> Result<(), FigureError> {
        let at = (x, y + self.format.drop(em));
        self.root.draw(&Text::new(text, at, self.style(em, colour, across))).map_err(failed)
    }

    fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: Colour) -> Result<(), FigureError> {
        self.root.draw(&Rectangle::new([from, to], rgb(colour).filled())).map_err(failed)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), colour: Colour, wide: u32) -> Result<(), FigureError> {
        self.root.draw(&PathElement::new([from, to], rgb(colour).stroke_width(wide))).map_err(failed)
    }
}

fn rgb((red, green, blue): Colour) -> RGBColor {
    RGBColor(red, green, blue)
}
