//! What is running, how far, and how long yet.
//!
//! A long command says beforehand which steps it will take and about how long each takes. As steps
//! end, the estimate for the rest is scaled by how the ended ones compared with their estimates.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ctx_io::errln;
use indicatif::{ProgressBar, ProgressStyle};

/// One step to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is, e.g. `block 2 of 5, recontext: migrate`.
    pub what: String,
    /// About how long it takes.
    pub expected: Duration,
}

impl Step {
    /// A step of about `seconds`.
    pub fn new(what: impl Into<String>, seconds: u64) -> Step {
        Step { what: what.into(), expected: Duration::from_secs(seconds) }
    }
}

/// How long the steps that are left will take: their estimates, scaled by how long the ended ones
/// took against theirs. `current` is the running step with the time it has run.
fn remaining(
    ended: &[(Duration, Duration)],
    current: Option<(Duration, Duration)>,
    left: &[Step],
) -> Duration {
    let expected: f64 = ended.iter().map(|(e, _)| e.as_secs_f64()).sum();
    let took: f64 = ended.iter().map(|(_, t)| t.as_secs_f64()).sum();
    // A little of the estimate is mixed in, so that the first short step does not swing the rest.
    let scale = (took + 30.0) / (expected + 30.0);
    let left: f64 = left.iter().map(|s| s.expected.as_secs_f64()).sum();
    let current =
        current.map_or(0.0, |(expected, ran)| (expected.as_secs_f64() * scale - ran.as_secs_f64()).max(0.0));
    Duration::try_from_secs_f64(left * scale + current).unwrap_or(Duration::MAX)
}

/// `4 min 10 s`, `50 s`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) if m < 10 => format!("{m} min {s:02} s"),
        (0, m, _) => format!("{m} min"),
        (h, m, _) => format!("{h} h {m:02} min"),
    }
}

#[derive(Debug)]
struct State {
    steps: Vec<Step>,
    next: usize,
    ended: Vec<(Duration, Duration)>,
    began: Option<(Step, Instant)>,
}

/// The display of a command: a bar on a terminal, a line a step elsewhere. Clones share it.
#[derive(Debug, Clone)]
pub struct Progress {
    state: Arc<Mutex<State>>,
    started: Instant,
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    /// A display for the given steps, on standard error.
    pub fn new(steps: Vec<Step>) -> Progress {
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let bar = if terminal { ProgressBar::new(steps.len() as u64) } else { ProgressBar::hidden() };
        // The template is a constant; were it wrong, the default style would serve.
        if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:24}] {pos}/{len} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_secs(1));
        Progress {
            state: Arc::new(Mutex::new(State { steps, next: 0, ended: vec![], began: None })),
            started: Instant::now(),
            bar,
            terminal,
        }
    }

    /// The next step begins (and the one before it, if any, has ended).
    pub fn begin(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((step, since)) = state.began.take() {
            state.ended.push((step.expected, since.elapsed()));
        }
        let Some(step) = state.steps.get(state.next).cloned() else { return };
        state.next += 1;
        let left = remaining(&state.ended, Some((step.expected, Duration::ZERO)), &state.steps[state.next..]);
        let message = format!("{} (about {} left)", step.what, human(left));
        self.bar.set_position(state.next as u64 - 1);
        self.bar.set_message(message.clone());
        if !self.terminal {
            errln!("[{:>9}] {}/{} {message}", human(self.started.elapsed()), state.next, state.steps.len());
        }
        state.began = Some((step, Instant::now()));
    }

    /// A line that stays, above the bar.
    pub fn note(&self, line: &str) {
        if self.terminal {
            self.bar.println(line);
        } else {
            errln!("            {line}");
        }
    }

    /// All steps have ended.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_ended_leaves_the_estimates_as_they_are() {
        let left = [Step::new("x", 40), Step::new("y", 20)];
        assert_eq!(remaining(&[], None, &left), Duration::from_secs(60));
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_secs(50)), "50 s");
        assert_eq!(human(Duration::from_secs(250)), "4 min 10 s");
        assert_eq!(human(Duration::from_secs(1500)), "25 min");
        assert_eq!(human(Duration::from_secs(3720)), "1 h 02 min");
    }

    proptest! {
        #[test]
        fn slower_steps_never_shorten_the_rest(expected in 1u64..600, took in 1u64..600, more in 0u64..600) {
            let left = [Step::new("x", 100)];
            let s = Duration::from_secs;
            prop_assert!(
                remaining(&[(s(expected), s(took + more))], None, &left) >= remaining(&[(s(expected), s(took))], None, &left)
            );
        }
    }
}
