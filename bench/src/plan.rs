//! The plan: the trials of a scenario, in the order in which they are done.
//!
//! The design is paired: every block has each arm once, close together in time, so that what
//! drifts (load, temperature, caches) meets all arms alike and cancels in the differences within a
//! block. The order within each block is drawn from the scenario's seed, so that none of the arms
//! always comes first; the same scenario always gives the same plan.
//!
//! In experiment `gluster` a trial is one migration with Bonnie++ at three points that have their
//! own order by nature ([`Trial::phases`]); what is compared, `before` with `after`, is paired
//! within the trial. In experiment `layers` it is one file system, mounted and probed.

use std::collections::BTreeSet;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    metric,
    scenario::{Arm, Experiment, Scenario},
};

/// One trial: one migration, or one file system, and what is measured around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Trial {
    /// Block of the paired design, from 1; 0 for every trial of the warm-up.
    pub block: u32,
    /// Arm of the design.
    pub arm: Arm,
    /// Position in the run, from 0; unique.
    pub order: u32,
    /// Whether Bonnie++'s file operations run in it.
    pub file_operations: bool,
}

impl Trial {
    /// Whether it is warm-up, which statistics leave out.
    pub const fn is_warmup(&self) -> bool {
        self.block == 0
    }

    /// The points at which Bonnie++ runs, in order; empty for other experiments.
    pub const fn phases(experiment: Experiment) -> &'static [&'static str] {
        match experiment {
            Experiment::Migration | Experiment::Layers => &[],
            Experiment::Gluster => &[metric::PHASE_HOME, metric::PHASE_BEFORE, metric::PHASE_AFTER],
        }
    }
}

/// The trials of a scenario, in the order in which they are done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The trials; each one's `order` is its index.
    pub trials: Vec<Trial>,
}

impl Plan {
    /// Draws the plan of a scenario from its seed.
    pub fn new(scenario: &Scenario) -> Self {
        let design = &scenario.design;
        let file_blocks = scenario.bonnie.as_ref().filter(|b| b.files > 0).map_or(0, |b| b.file_blocks);
        // ChaCha8 gives the same stream on every platform and in every release.
        let mut random = ChaCha8Rng::seed_from_u64(design.seed);
        let blocks = std::iter::repeat_n(0, design.warmup as usize).chain(1..=design.blocks);
        let drawn = blocks.flat_map(|block| {
            let mut arms = design.arms.clone();
            arms.shuffle(&mut random);
            arms.into_iter().map(move |arm| (block, arm))
        });
        let trials = (0..)
            .zip(drawn)
            .map(|(order, (block, arm))| Trial {
                block,
                arm,
                order,
                file_operations: (1..=file_blocks).contains(&block),
            })
            .collect();
        Self { trials }
    }

    /// The trials that a run does from here, when those in `ended` have. The warm-up is among them even if it has ended: what
    /// it had warmed is gone with the process that did it. None when no trial is left.
    pub fn left(&self, ended: &BTreeSet<u32>) -> Vec<Trial> {
        let is_left = |trial: &&Trial| !ended.contains(&trial.order);
        if !self.trials.iter().any(|trial| is_left(&trial)) {
            return Vec::new();
        }
        self.trials.iter().filter(|trial| trial.is_warmup() || is_left(trial)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn scenario(blocks: u32, warmup: u32, seed: u64) -> Scenario {
        let text = format!(
            "title = \"t\"\nexperiment = \"migration\"\n\
             [design]\narms = [\"plain\", \"recontext\"]\nblocks = {blocks}\nwarmup = {warmup}\nseed = {seed}\n"
        );
        Scenario::parse("t.toml", &text, None).unwrap()
    }

    #[test]
    fn the_paper_s_seed_gives_this_order_for_ever() {
        let order: Vec<_> = Plan::new(&scenario(5, 1, 20_150_417))
            .trials
            .iter()
            .map(|t| format!("{}{}", t.block, &t.arm.name()[..1]))
            .collect();
        insta::assert_snapshot!(order.join(" "));
    }

    #[test]
    fn file_operations_run_in_the_first_blocks_that_count() {
        let text = "title = \"t\"\nexperiment = \"gluster\"\n\
            [design]\narms = [\"recontext\"]\nblocks = 4\nwarmup = 2\nseed = 1\n\
            [network.remote]\nrate = \"25 Mbit/s\"\ndelay = \"10 ms\"\n\
            [network.local]\nrate = \"500 Mbit/s\"\ndelay = \"1.02 ms\"\n[bonnie]\nfile_blocks = 2\n";
        let plan = Plan::new(&Scenario::parse("t.toml", text, None).unwrap());
        let runs: Vec<_> = plan.trials.iter().map(|t| (t.block, t.file_operations)).collect();
        assert_eq!(runs, [(0, false), (0, false), (1, true), (2, true), (3, false), (4, false)]);
        assert_eq!(Trial::phases(Experiment::Gluster), ["home", "before", "after"]);
    }

    proptest! {
        #[test]
        fn every_block_has_every_arm_once(blocks in 1_u32..40, warmup in 0_u32..4, seed in 0_u64..1 << 62) {
            let plan = Plan::new(&scenario(blocks, warmup, seed));
            prop_assert_eq!(plan.trials.len(), 2 * (blocks + warmup) as usize);
            for (index, trial) in plan.trials.iter().enumerate() {
                prop_assert_eq!(trial.order as usize, index);
            }
            prop_assert!(plan.trials.is_sorted_by_key(|trial| trial.block));
            for block in 1..=blocks {
                let arms: Vec<_> = plan.trials.iter().filter(|t| t.block == block).map(|t| t.arm).collect();
                prop_assert_eq!(arms.len(), 2);
                prop_assert_eq!(arms.into_iter().collect::<HashSet<_>>().len(), 2);
            }
            prop_assert_eq!(plan.trials.iter().filter(|t| t.is_warmup()).count(), 2 * warmup as usize);
            prop_assert_eq!(&plan, &Plan::new(&scenario(blocks, warmup, seed)));
        }
    }

    #[test]
    fn a_resumed_run_warms_up_again_and_does_what_is_left() {
        let plan = Plan::new(&scenario(2, 1, 7));
        let orders = |ended: &[u32]| -> Vec<u32> {
            plan.left(&ended.iter().copied().collect()).iter().map(|trial| trial.order).collect()
        };
        assert_eq!(orders(&[]), [0, 1, 2, 3, 4, 5]);
        // Cut off within the warm-up, after it, and within what counts.
        assert_eq!(orders(&[0]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(orders(&[0, 1]), [0, 1, 2, 3, 4, 5]);
        assert_eq!(orders(&[0, 1, 2, 3, 4]), [0, 1, 5]);
        // Nothing is left to warm up for.
        assert_eq!(orders(&[0, 1, 2, 3, 4, 5]), [0; 0]);
        let cold = Plan::new(&scenario(2, 0, 7));
        let orders: Vec<u32> = cold.left(&BTreeSet::from([0])).iter().map(|trial| trial.order).collect();
        assert_eq!(orders, [1, 2, 3]);
    }

    #[test]
    fn neither_arm_always_comes_first() {
        let plan = Plan::new(&scenario(200, 0, 7));
        let first = plan.trials.iter().step_by(2).filter(|t| t.arm == Arm::Plain).count();
        assert!((60..=140).contains(&first), "{first} of 200");
    }
}
