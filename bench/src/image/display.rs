//! Shows builds on the terminal: a bar for each image; plain lines, one a stage, where there is no terminal.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ctx_io::errln;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Progress, Stage};

/// Steps of a bar.
const STEPS: u64 = 1000;

/// What shows builds on standard error; give [`Display::show`] to [`super::build`].
#[derive(Debug)]
pub struct Display {
    terminal: bool,
    all: MultiProgress,
    bars: Mutex<BTreeMap<String, ProgressBar>>,
}

impl Default for Display {
    fn default() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), all: MultiProgress::new(), bars: Mutex::default() }
    }
}

impl Display {
    /// Shows one report.
    pub fn show(&self, progress: &Progress) {
        if !self.terminal {
            errln!("{}", line(progress));
            return;
        }
        // A bar that another thread left in the middle is still a bar.
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bars.entry(progress.image.clone()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(STEPS));
            if let Ok(style) = ProgressStyle::with_template("{prefix:<10} {elapsed:>4} {bar:30} {msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(progress.image.clone());
            bar.enable_steady_tick(Duration::from_millis(500));
            bar
        });
        // Between 0 and STEPS, so nothing is lost.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        bar.set_position((progress.done * STEPS as f64) as u64);
        bar.set_message(message(progress));
        if progress.stage == Stage::Done {
            bar.finish();
        }
    }
}

fn line(progress: &Progress) -> String {
    format!("image {}: {:3.0} % {}", progress.image, progress.done * 100.0, message(progress))
}

fn message(progress: &Progress) -> String {
    match progress.left {
        Some(left) if progress.stage != Stage::Done => {
            format!("{}, about {} s left", progress.stage.label(), left.as_secs())
        }
        _ => progress.stage.label().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_how_far_and_how_long_yet() {
        let progress = Progress::at("guest", Stage::Packages, Duration::from_secs(45));
        assert_eq!(line(&progress), "image guest:  45 % installing packages, about 55 s left");
        let done = Progress::at("guest", Stage::Done, Duration::from_secs(45));
        assert_eq!(line(&done), "image guest: 100 % done");
    }
}
