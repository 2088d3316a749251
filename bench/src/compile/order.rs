//! The trials of a design, in the order in which they are done.
//!
//! The design is paired: every block has each arm once, close together in time, so that what drifts (load, temperature, caches) meets
//! all arms alike and cancels in the differences within a block. The order within each block is drawn from the scenario's seed, so that none
//! of the arms always comes first; the same scenario always gives the same trials.

use std::ops::Range;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::points::MOST;
use crate::language::text::Fault;
use crate::language::tree::Table;
use crate::model::{Design, Plan, Time, Trial};

/// Where a key of `[design]` stands.
fn at(tables: &Table, key: &str) -> Range<usize> {
    let table = tables.get("design").and_then(|design| design.table());
    table.and_then(|table| table.get(key)).map_or(0..0, |node| node.span.clone())
}

/// Refuses a design with too many trials. Asked before arms are compiled, which takes its time for thousands.
pub(super) fn few(arms: usize, design: &Design, tables: &Table) -> Result<(), Fault> {
    let count = arms.saturating_mul(design.blocks as usize + design.warmup as usize);
    if count <= MOST {
        return Ok(());
    }
    let message = format!("{count} trials ({arms} arms in each block) are more than {MOST}");
    Err(Fault::new(at(tables, "blocks"), message, "use fewer blocks, or fewer points of the matrix"))
}

/// Draws the trials of a plan from its seed.
pub(super) fn trials(plan: &Plan, tables: &Table) -> Result<Vec<Trial>, Fault> {
    let design = &plan.design;
    let at = |key: &str| at(tables, key);
    let (least, most) = (Time::from_secs(1), Time::from_secs(30 * 24 * 3600));
    for (key, time) in [("trial_deadline", design.trial_deadline), ("run_deadline", design.run_deadline)] {
        if let Some(time) = time.filter(|time| !(least..=most).contains(time)) {
            let message = format!("{key} = \"{time}\" gives up everything, or nothing");
            let help = format!(
                "use \"{least}\" to \"{most}\", or remove it: by default it follows from the estimate"
            );
            return Err(Fault::new(at(key), message, help));
        }
    }
    if let (Some(trial), Some(run)) = (design.trial_deadline, design.run_deadline)
        && trial > run
    {
        let message = format!("a trial may take \"{trial}\", and the run that it is in \"{run}\"");
        return Err(Fault::new(at("trial_deadline"), message, "use at most run_deadline"));
    }
    // ChaCha8 gives the same stream on every platform and in every release.
    let mut random = ChaCha8Rng::seed_from_u64(design.seed);
    let blocks = std::iter::repeat_n(0, design.warmup as usize).chain(1..=design.blocks);
    let drawn = blocks.flat_map(|block| {
        let mut arms: Vec<&str> = plan.arms.iter().map(|arm| arm.name.as_str()).collect();
        arms.shuffle(&mut random);
        arms.into_iter().map(move |arm| (block, arm.to_owned()))
    });
    Ok((0..).zip(drawn).map(|(order, (block, arm))| Trial { block, arm, order }).collect())
}
