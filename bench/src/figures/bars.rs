//! From statistics to bars and captions, shared by all figures.

use super::{
    Context,
    chart::{Bar, Colour},
};
use crate::stats::{Analysis, Group, Summary, analysis::Row};

/// Colours that stay apart for colour-blind readers and, by their lightness, in grey (Okabe and Ito,
/// Color Universal Design, 2008).
pub(super) const BLUE: Colour = (0x00, 0x72, 0xb2);
pub(super) const SKY: Colour = (0x8c, 0xc8, 0xee);
pub(super) const ORANGE: Colour = (0xe6, 0x9f, 0x00);
pub(super) const GREEN: Colour = (0x00, 0x9e, 0x73);
pub(super) const PURPLE: Colour = (0xcc, 0x79, 0xa7);
pub(super) const SAND: Colour = (0xf5, 0xd2, 0x8c);

/// Collects the rows that a figure shows, for its bars and for what its caption says of them.
#[derive(Default)]
pub(super) struct Used<'a> {
    rows: Vec<&'a Row>,
}

impl<'a> Used<'a> {
    /// The bar of one cell; with several dilations the one that has most values.
    pub(super) fn bar(
        &mut self,
        analysis: &'a Analysis,
        group: &Group,
        metric: &str,
        phase: &str,
        arm: Option<&str>,
    ) -> Bar {
        let row = analysis
            .rows
            .iter()
            .filter(|row| row.group == *group && row.metric == metric && row.phase == phase)
            .filter(|row| arm.is_none_or(|arm| row.arm == arm))
            // The first of equals: max_by_key gives the last.
            .rev()
            .max_by_key(|row| row.summary.n + row.summary.censored);
        let Some(row) = row else { return Bar::None };
        self.rows.push(row);
        bar(&row.summary)
    }

    /// What every caption has to say.
    pub(super) fn caption(&self, context: &Context) -> Vec<String> {
        let mut lines = Vec::new();
        if self.rows.is_empty() {
            lines.push("No samples.".to_owned());
        } else {
            lines.push(format!(
                "Bars: mean; whiskers: ± 1 standard deviation; dots: single values. {}.",
                self.counts()
            ));
        }
        let too_fast: usize = self.rows.iter().map(|row| row.summary.censored).sum();
        if too_fast > 0 {
            lines.push(format!(
                "+++: too fast to measure ({too_fast} values), which is no zero; their bar's true mean is higher."
            ));
        }
        let mut machine: Vec<String> = Vec::new();
        for row in &self.rows {
            let name = row.group.name();
            if !machine.contains(&name) {
                machine.push(name);
            }
        }
        let mut dilations: Vec<f64> = self.rows.iter().map(|row| row.dilation).collect();
        dilations.sort_unstable_by(f64::total_cmp);
        dilations.dedup();
        if dilations.iter().any(|d| (d - 1.0).abs() > f64::EPSILON) {
            let all: Vec<_> = dilations.iter().map(ToString::to_string).collect();
            machine.push(match all.as_slice() {
                [one] => format!("links dilated by {one}: rates ÷ {one}, delays × {one}"),
                _ => format!("links dilated by {} (rates divided, delays multiplied)", all.join(" and ")),
            });
        }
        if let Some(profile) = &context.profile {
            machine.push(format!("profile \u{201c}{profile}\u{201d}"));
        }
        if !context.scenario.is_empty() {
            machine.push(format!("scenario {}", context.scenario));
        }
        if !context.runs.is_empty() {
            machine.push(format!("run {}", context.runs.join(", ")));
        }
        lines.push(format!("{}.", machine.join("; ")));
        lines
    }

    fn counts(&self) -> String {
        let n = self.rows.iter().map(|row| row.summary.n + row.summary.censored);
        let (least, most) = n.fold((usize::MAX, 0), |(least, most), n| (least.min(n), most.max(n)));
        let invalid: usize = self.rows.iter().map(|row| row.summary.invalid).sum();
        let n = if least == most { format!("n = {most}") } else { format!("n = {least} to {most}") };
        let values = if most == 1 { "value" } else { "values" };
        format!("{n} valid {values} per bar, {invalid} invalid in all")
    }
}

fn bar(summary: &Summary) -> Bar {
    match (summary.mean, summary.censored) {
        (Some(mean), too_fast) => Bar::Value { mean, sd: summary.sd, dots: summary.values.clone(), too_fast },
        (None, 0) => Bar::None,
        (None, count) => Bar::TooFast { count },
    }
}
