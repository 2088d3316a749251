//! Lays a figure out and draws it, the same way as SVG and as PNG. What a [`Chart`] of bars looks like is here, what
//! panels look like in `panels`.
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

use super::{
    Drawing,
    chart::{Bar, Chart, Colour, three_digits, tick_label, ticks},
    panels, timeline,
};

/// A figure could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw a figure: {0}; see that the folder for temporary files can be written to")]
pub struct FigureError(String);

fn failed(error: impl std::fmt::Display) -> FigureError {
    FigureError(error.to_string())
}

/// Width in pixels, for 17 cm at 215 dots an inch.
pub(super) const WIDTH: i32 = 1440;
const PLOT_HEIGHT: i32 = 560;
pub(super) const MARGIN: i32 = 32;
/// How much larger than the picture a bitmap is drawn.
const FINE: i32 = 2;

/// Sizes of text: the em in pixels.
pub(super) const TITLE: f64 = 30.0;
pub(super) const LABEL: f64 = 23.0;
pub(super) const SMALL: f64 = 20.0;

pub(super) const INK: Colour = (0x1f, 0x24, 0x29);
pub(super) const SOFT: Colour = (0x5b, 0x64, 0x6d);
pub(super) const GRID: Colour = (0xe3, 0xe6, 0xe9);
pub(super) const PAPER: Colour = (0xff, 0xff, 0xff);

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
    /// Pixels that are drawn for one of the layout.
    const fn scale(self) -> i32 {
        match self {
            Self::Svg => 1,
            Self::Png => FINE,
        }
    }

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
pub fn svg(drawing: &Drawing) -> Result<String, FigureError> {
    register()?;
    match drawing {
        Drawing::Bars(chart) => svg_of(&Bars { chart, layout: Layout::new(chart) }),
        Drawing::Panels(panels) => svg_of(&panels::Laid::new(panels)),
        Drawing::Timeline(one) => svg_of(&timeline::Laid::new(one)),
    }
}

fn svg_of(picture: &impl Picture) -> Result<String, FigureError> {
    let mut text = String::new();
    {
        let size = (WIDTH.unsigned_abs(), picture.height().unsigned_abs());
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        picture.paint(&Page { root: &root, format: Format::Svg })?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}

/// The figure as PNG.
///
/// Drawn at twice the size and averaged: plotters puts letters on whole pixels and draws
/// circles with hard edges.
///
/// # Errors
/// The built-in font cannot be read, or no temporary file can be made.
pub fn png(drawing: &Drawing) -> Result<Vec<u8>, FigureError> {
    register()?;
    match drawing {
        Drawing::Bars(chart) => png_of(&Bars { chart, layout: Layout::new(chart) }),
        Drawing::Panels(panels) => png_of(&panels::Laid::new(panels)),
        Drawing::Timeline(one) => png_of(&timeline::Laid::new(one)),
    }
}

fn png_of(picture: &impl Picture) -> Result<Vec<u8>, FigureError> {
    let (wide, high) = (WIDTH.unsigned_abs(), picture.height().unsigned_abs());
    let fine = FINE.unsigned_abs();
    // White from the start: filling pixel by pixel takes longer than all the rest.
    let mut large = vec![0xff_u8; (3 * wide * high * fine * fine) as usize];
    {
        let root = BitMapBackend::with_buffer(&mut large, (wide * fine, high * fine)).into_drawing_area();
        picture.paint(&Page { root: &root, format: Format::Png })?;
        root.present().map_err(failed)?;
    }
    let small = averaged(&large, wide as usize, high as usize, fine as usize);
    // plotters encodes into files only.
    let folder = tempfile::tempdir().map_err(failed)?;
    let path = folder.path().join("figure.png");
    {
        let mut page = BitMapBackend::new(&path, (wide, high));
        page.blit_bitmap((0, 0), (wide, high), &small).map_err(failed)?;
        page.present().map_err(failed)?;
    }
    fs::read(&path).map_err(failed)
}

/// A picture in RGB whose pixels are the means of `fine` by `fine` pixels of a larger one.
fn averaged(large: &[u8], wide: usize, high: usize, fine: usize) -> Vec<u8> {
    let mut small = Vec::with_capacity(3 * wide * high);
    let mut sums = vec![0_u32; 3 * wide];
    let count = u32::try_from(fine * fine).unwrap_or(1);
    for band in large.chunks_exact(3 * wide * fine * fine) {
        sums.fill(0);
        for row in band.chunks_exact(3 * wide * fine) {
            for (sum, pixels) in sums.chunks_exact_mut(3).zip(row.chunks_exact(3 * fine)) {
                for pixel in pixels.chunks_exact(3) {
                    for (sum, part) in sum.iter_mut().zip(pixel) {
                        *sum += u32::from(*part);
                    }
                }
            }
        }
        // A mean of bytes fits a byte.
        small.extend(sums.iter().map(|sum| u8::try_from((sum + count / 2) / count).unwrap_or(u8::MAX)));
    }
    small
}

/// Width of a text in pixels, by the metrics of our own font.
pub(super) fn width(text: &str, em: f64) -> i32 {
    // Measured large, since the result is a whole number.
    let font = (FAMILY, Format::Png.size(em * 16.0)).into_font();
    font.layout_box(text).map_or(0, |((left, _), (right, _))| (right - left + 15) / 16)
}

/// A number of things as a factor of pixels.
pub(super) fn pixels(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(0)
}

/// Breaks a text into lines no wider than `limit`, at spaces.
pub(super) fn wrap(text: &str, em: f64, limit: i32) -> Vec<String> {
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
pub(super) const LINE: i32 = 32;

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
        let caption =
            chart.caption.iter().flat_map(|line| wrap(line, SMALL, right - MARGIN)).collect::<Vec<_>>();

        let lines = |count: usize| pixels(count) * LINE;
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

/// A figure that is laid out.
pub(super) trait Picture {
    /// Its height in pixels.
    fn height(&self) -> i32;

    /// Draws it on a white page.
    fn paint<B: DrawingBackend>(&self, page: &Page<'_, B>) -> Result<(), FigureError>;
}

struct Bars<'a> {
    chart: &'a Chart,
    layout: Layout,
}

impl Picture for Bars<'_> {
    fn height(&self) -> i32 {
        self.layout.height
    }

    fn paint<B: DrawingBackend>(&self, page: &Page<'_, B>) -> Result<(), FigureError> {
        page.chart(self.chart, &self.layout)
    }
}

/// A page of either format, with what is drawn on it.
pub(super) struct Page<'a, B: DrawingBackend> {
    root: &'a DrawingArea<B, Shift>,
    format: Format,
}

impl<B: DrawingBackend> Page<'_, B> {
    fn chart(&self, chart: &Chart, layout: &Layout) -> Result<(), FigureError> {
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
        self.caption(&layout.caption, layout.height)
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
        let (x, y) = self.pixel((MARGIN + 20, i32::midpoint(layout.top, layout.bottom)));
        let at = (x + self.format.drop(self.em(LABEL)), y);
        self.root.draw(&Text::new(chart.y_label.as_str(), at, style)).map_err(failed)
    }

    fn bars(
        &self,
        bars: &[Bar],
        chart: &Chart,
        layout: &Layout,
        start: i32,
        room: i32,
    ) -> Result<(), FigureError> {
        let count = i32::try_from(bars.len().max(1)).map_err(failed)?;
        // A fifth of the room stays free; few bars do not become slabs.
        let wide = (room * 4 / 5 / count).min(150);
        let first = start + (room - wide * count) / 2;
        for (index, (bar, series)) in (0..).zip(bars.iter().zip(&chart.series)) {
            let left = first + index * wide;
            let (middle, inner) = (left + wide / 2, (left + 4, left + wide - 4));
            match bar {
                Bar::Value { mean, sd, dots, too_fast } => {
                    let y = layout.y(*mean);
                    self.rectangle((inner.0, y), (inner.1, layout.bottom), series.colour)?;
                    let mut top = y.min(dots.iter().map(|dot| layout.y(*dot)).min().unwrap_or(y) - 4);
                    // Whisker and dots side by side, so that neither hides the other.
                    let whisker = left + wide * 3 / 10;
                    if let Some(sd) = sd.filter(|sd| *sd > 0.0) {
                        let (high, low) = (layout.y(mean + sd), layout.y((mean - sd).max(0.0)));
                        self.line((whisker, high), (whisker, low), INK, 3)?;
                        let half = (wide / 8).min(9);
                        for y in [high, low] {
                            self.line((whisker - half, y), (whisker + half, y), INK, 3)?;
                        }
                        top = top.min(high);
                    }
                    let from = if sd.is_some() { wide * 5 / 10 } else { wide * 2 / 10 };
                    self.dots(dots, layout, (left + from, left + wide * 9 / 10))?;
                    let mut number = three_digits(*mean);
                    if *too_fast > 0 {
                        number.push_str(" +++");
                    }
                    self.text(&number, self.fitting(&number, wide), INK, HPos::Center, (middle, top - 10))?;
                }
                Bar::TooFast { .. } => {
                    let em = self.fitting("+++", wide - 12);
                    self.text("+++", em, INK, HPos::Center, (middle, layout.bottom - 12))?;
                }
                Bar::None => {
                    let em = self.fitting("none", wide - 12);
                    self.text("none", em, SOFT, HPos::Center, (middle, layout.bottom - 12))?;
                }
            }
        }
        Ok(())
    }

    /// A size at which a number does not run into its neighbours'.
    #[expect(clippy::unused_self, reason = "reads as one with what is drawn")]
    fn fitting(&self, text: &str, room: i32) -> f64 {
        let natural = f64::from(width(text, SMALL).max(1));
        SMALL * (f64::from(room) / natural).clamp(0.6, 1.0)
    }

    /// Single values from left to right in the order in which they were measured.
    fn dots(&self, dots: &[f64], layout: &Layout, (from, to): (i32, i32)) -> Result<(), FigureError> {
        let last = i32::try_from(dots.len()).map_err(failed)? - 1;
        let radius = if (to - from) / last.max(1) >= 6 { 4 } else { 3 };
        for (index, dot) in (0..).zip(dots) {
            let x = if last == 0 { i32::midpoint(from, to) } else { from + (to - from) * index / last };
            let at = (x, layout.y(*dot));
            self.disc(at, radius + 1, PAPER)?;
            self.disc(at, radius, INK)?;
        }
        Ok(())
    }

    fn pixel(&self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.format.scale(), y * self.format.scale())
    }

    fn em(&self, em: f64) -> f64 {
        em * f64::from(self.format.scale())
    }

    fn style(&self, em: f64, colour: Colour, across: HPos) -> TextStyle<'static> {
        let font = (FAMILY, self.format.size(self.em(em))).into_font();
        font.color(&rgb(colour)).pos(Pos::new(across, VPos::Bottom))
    }

    /// Sentences at the foot of a figure of some height, already in lines.
    pub(super) fn caption(&self, lines: &[String], height: i32) -> Result<(), FigureError> {
        let first = height - MARGIN / 2 - LINE * pixels(lines.len());
        for (line, text) in (1..).zip(lines) {
            self.text(text, SMALL, SOFT, HPos::Left, (MARGIN, first + line * LINE - 10))?;
        }
        Ok(())
    }

    /// A text whose baseline is at `y`.
    pub(super) fn text(
        &self,
        text: &str,
        em: f64,
        colour: Colour,
        across: HPos,
        at: (i32, i32),
    ) -> Result<(), FigureError> {
        let (x, y) = self.pixel(at);
        let at = (x, y + self.format.drop(self.em(em)));
        self.root.draw(&Text::new(text, at, self.style(em, colour, across))).map_err(failed)
    }

    pub(super) fn rectangle(
        &self,
        from: (i32, i32),
        to: (i32, i32),
        colour: Colour,
    ) -> Result<(), FigureError> {
        let corners = [self.pixel(from), self.pixel(to)];
        self.root.draw(&Rectangle::new(corners, rgb(colour).filled())).map_err(failed)
    }

    pub(super) fn disc(&self, at: (i32, i32), radius: i32, colour: Colour) -> Result<(), FigureError> {
        let circle = Circle::new(self.pixel(at), radius * self.format.scale(), rgb(colour).filled());
        self.root.draw(&circle).map_err(failed)
    }

    pub(super) fn line(
        &self,
        from: (i32, i32),
        to: (i32, i32),
        colour: Colour,
        wide: u32,
    ) -> Result<(), FigureError> {
        let style = rgb(colour).stroke_width(wide * self.format.scale().unsigned_abs());
        self.root.draw(&PathElement::new([self.pixel(from), self.pixel(to)], style)).map_err(failed)
    }
}

fn rgb((red, green, blue): Colour) -> RGBColor {
    RGBColor(red, green, blue)
}
