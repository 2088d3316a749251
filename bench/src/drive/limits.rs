//! The deadlines of a trial and of a run.
//!
//! Whatever a trial waits for has a deadline of its own, whose error says more. These are for what is none of it: a thousand
//! things that each take a little too long. A trial that passes its deadline has failed, like one whose migration did. A run that
//! has passed its own begins no other trial; the trials left are for `bench resume`.

use std::time::{Duration, Instant};

use super::estimate;
use super::lab::DriveError;
use crate::doctor::Accelerator;
use crate::plan::Trial;
use crate::progress::{Step, human};
use crate::scenario::{Design, Scenario, Time};

/// A deadline of the design that has passed.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// A trial's.
    #[error("the trial did not end within {}, its deadline ([design] trial_deadline)", human(*limit))]
    Trial {
        /// The deadline.
        limit: Duration,
    },
    /// The run's.
    #[error(
        "the run has passed its deadline of {} ([design] run_deadline) with {left} of {} left", human(*limit), trials(*all)
    )]
    Run {
        /// The deadline.
        limit: Duration,
        /// Trials that were not begun.
        left: usize,
        /// Trials of the plan.
        all: usize,
    },
    /// After a trial that passed its deadline, the next had nowhere to begin.
    #[error("the testbed could not be restored after a trial that passed its deadline: {source}")]
    NotRestored {
        /// What could not be put in its place.
        #[source]
        source: Box<DriveError>,
    },
    /// The same, within the deadline of a trial.
    #[error("the testbed was not restored within {} after a trial that passed its deadline", human(*limit))]
    RestoredLate {
        /// The deadline.
        limit: Duration,
    },
}

fn trials(count: usize) -> String {
    if count == 1 { "1 trial".to_owned() } else { format!("{count} trials") }
}

/// Times that a trial or a run may take longer than is estimated for an emulated machine of two cores.
const SLOWER: u32 = 10;
/// What a trial has besides: for what is given up after minutes, such as a program in the guest that never reads new data.
const PATIENCE: Duration = Duration::from_secs(600);

/// The deadline of a trial that is estimated to take `expected`: the scenario's, or ten times the estimate, 10 min, and twice what a
/// migration may take, there and back.
pub fn of_trial(scenario: &Scenario, expected: Duration) -> Duration {
    scenario.design.trial_deadline.map_or_else(
        || {
            let migrations = match scenario.layers {
                Some(_) => Duration::ZERO,
                None => scenario.migration.timeout.duration() * 2,
            };
            expected * SLOWER + PATIENCE + migrations
        },
        Time::duration,
    )
}

/// The deadline of a trial of a scenario.
pub fn of(scenario: &Scenario, trial: &Trial) -> Duration {
    of_trial(scenario, Duration::from_secs(estimate::trial(scenario, trial, Accelerator::Tcg)))
}

/// The deadlines of a plan's trials, of the one that may take longest, and of its run.
pub fn of_plan(scenario: &Scenario, trials: &[Trial]) -> (Duration, Duration) {
    let longest = trials.iter().map(|trial| of(scenario, trial)).max().unwrap_or_default();
    (longest, of_run(&scenario.design, &estimate::steps(scenario, trials, Accelerator::Tcg)))
}

/// The deadline of a run of these steps: the scenario's, or ten times the estimate and one hour.
pub fn of_run(design: &Design, steps: &[Step]) -> Duration {
    let expected: Duration = steps.iter().map(|step| step.expected).sum();
    design.run_deadline.map_or_else(|| expected * SLOWER + Duration::from_secs(3600), Time::duration)
}

/// Does a trial, and gives it up at its deadline: what it was doing is dropped where it is.
///
/// # Errors
/// The trial's own, or [`LimitError::Trial`].
pub async fn trial<T>(
    limit: Duration,
    trial: impl Future<Output = Result<T, DriveError>>,
) -> Result<T, DriveError> {
    match tokio::time::timeout(limit, trial).await {
        Ok(done) => done,
        Err(_) => Err(LimitError::Trial { limit }.into()),
    }
}

/// Whether a trial was given up, and left things where they were.
pub fn was_cut_off<T>(trial: &Result<T, DriveError>) -> bool {
    matches!(trial, Err(DriveError::Limit(LimitError::Trial { .. })))
}

/// Restores what a trial that was cut off has left, within a deadline of its own.
///
/// # Errors
/// [`LimitError::NotRestored`], [`LimitError::RestoredLate`].
pub async fn restored(
    limit: Duration,
    restore: impl Future<Output = Result<(), DriveError>>,
) -> Result<(), DriveError> {
    match tokio::time::timeout(limit, restore).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(LimitError::NotRestored { source: source.into() }.into()),
        Err(_) => Err(LimitError::RestoredLate { limit }.into()),
    }
}

/// The deadline of a run that goes on now.
#[derive(Debug, Clone, Copy)]
pub struct RunLimit {
    limit: Duration,
    began: Instant,
    all: usize,
}

impl RunLimit {
    /// A run of these trials that begins now; its plan has `all`.
    pub fn begin(scenario: &Scenario, trials: &[Trial], all: usize) -> RunLimit {
        RunLimit { limit: of_plan(scenario, trials).1, began: Instant::now(), all }
    }

    /// Whether another trial may begin, of `left` that have not been done.
    ///
    /// # Errors
    /// [`LimitError::Run`].
    pub fn allows(&self, left: usize) -> Result<(), DriveError> {
        self.allows_after(self.began.elapsed(), left)
    }

    fn allows_after(&self, elapsed: Duration, left: usize) -> Result<(), DriveError> {
        if elapsed < self.limit {
            return Ok(());
        }
        Err(LimitError::Run { limit: self.limit, left, all: self.all }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(design: &str) -> Scenario {
        let text = format!(
            "title = \"t\"\nexperiment = \"migration\"\n\
             [design]\narms = [\"plain\"]\nblocks = 2\nseed = 1\n{design}\n[migration]\ntimeout = \"5 min\"\n"
        );
        Scenario::parse("t.toml", &text, None).unwrap()
    }

    #[test]
    fn deadlines_follow_the_estimate_unless_the_scenario_has_them() {
        let by_itself = scenario("");
        let steps = [Step::new("boot", 60), Step::new("block 1", 20)];
        assert_eq!(human(of_trial(&by_itself, Duration::from_secs(20))), "23 min");
        assert_eq!(human(of_run(&by_itself.design, &steps)), "1 h 13 min");
        let asked = scenario("trial_deadline = \"20 min\"\nrun_deadline = \"1.5 h\"");
        assert_eq!(human(of_trial(&asked, Duration::from_secs(20))), "20 min");
        assert_eq!(human(of_run(&asked.design, &steps)), "1 h 30 min");
    }

    #[tokio::test]
    async fn a_trial_that_hangs_is_cut_off_and_one_that_fails_is_not() {
        let limit = Duration::from_millis(20);
        let hung = trial(limit, std::future::pending::<Result<(), _>>()).await;
        assert!(was_cut_off(&hung));
        let said = hung.unwrap_err().to_string();
        assert_eq!(said, "the trial did not end within 0 s, its deadline ([design] trial_deadline)");
        let long = Duration::from_secs(600);
        let failed = trial(long, async { Err::<(), _>(DriveError::Workload("broken".into())) }).await;
        assert!(!was_cut_off(&failed));
        assert_eq!(failed.unwrap_err().to_string(), "broken");
        assert!(trial(long, async { Ok(7) }).await.is_ok_and(|value| value == 7));
    }

    #[tokio::test]
    async fn what_cannot_be_restored_is_told_with_why() {
        let broken = async { Err(DriveError::Workload("no guest".into())) };
        let error = restored(Duration::from_secs(600), broken).await.unwrap_err().to_string();
        assert_eq!(
            error,
            "the testbed could not be restored after a trial that passed its deadline: no guest"
        );
        let late = restored(Duration::from_millis(20), std::future::pending()).await.unwrap_err();
        assert!(late.to_string().starts_with("the testbed was not restored within 0 s"), "{late}");
    }

    #[test]
    fn a_run_begins_no_trial_after_its_deadline() {
        let asked = scenario("run_deadline = \"10 min\"");
        let run = RunLimit::begin(&asked, &[], 12);
        assert!(run.allows_after(Duration::from_secs(599), 4).is_ok());
        let error = run.allows_after(Duration::from_secs(600), 4).unwrap_err().to_string();
        let said =
            "the run has passed its deadline of 10 min ([design] run_deadline) with 4 of 12 trials left";
        assert_eq!(error, said);
    }
}
