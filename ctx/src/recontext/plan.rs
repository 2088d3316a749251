//! The steps of a run, as a pure machine: the same for both strategies. Where media are swapped, the
//! *device* here is the medium: an empty drive has none, detaching ejects and attaching inserts.
//!
//! A crash may come between any two steps, and also between a step's effect and the knowledge of
//! it. What makes that harmless is the order: the generation is reserved on disk before anything
//! carries it, and committed after the device is seen; detaching what is not there and building
//! anew are allowed at any time. So a run that was cut off is completed by a new run, and
//! [`unfinished`] says whether one is needed. The simulation in the tests cuts it at every point.

use serde::{Deserialize, Serialize};

/// What is known of one device across crashes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// The highest generation that was ever reserved.
    pub generation: u64,
    /// The generation that was seen attached at the end of a run, if no run has started since.
    pub attached: Option<u64>,
}

/// One step of a run. Steps are done in order; each may be done again after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Detach the device that is there.
    Detach,
    /// Write to the journal: this generation is taken, nothing is known to be attached.
    Reserve(u64),
    /// Write the image of this generation.
    Write(u64),
    /// Attach it.
    Attach(u64),
    /// Write to the journal: this generation is attached.
    Commit(u64),
    /// Nothing is left to do.
    Done,
}

/// A run's way through the steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    step: Step,
    generation: u64,
}

impl Plan {
    /// The plan for a device, present or not. `floor` is a lower bound for the generation from
    /// elsewhere: what the domain brought along, and the clock.
    pub fn new(journal: &Journal, present: bool, floor: u64) -> Self {
        let generation = journal.generation.saturating_add(1).max(floor);
        Self { step: if present { Step::Detach } else { Step::Reserve(generation) }, generation }
    }

    /// The step to do now.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The generation that this run makes.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The plan after the step was done.
    #[must_use]
    pub fn done(self) -> Self {
        let generation = self.generation;
        let step = match self.step {
            Step::Detach => Step::Reserve(generation),
            Step::Reserve(_) => Step::Write(generation),
            Step::Write(_) => Step::Attach(generation),
            Step::Attach(_) => Step::Commit(generation),
            Step::Commit(_) | Step::Done => Step::Done,
        };
        Self { step, generation }
    }
}

impl Journal {
    /// The journal after [`Step::Reserve`].
    #[must_use]
    pub fn reserved(&self, generation: u64) -> Self {
        Self { generation, attached: None }
    }

    /// The journal after [`Step::Commit`].
    #[must_use]
    pub fn committed(&self, generation: u64) -> Self {
        Self { generation, attached: Some(generation) }
    }
}

/// What is at a device's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No device, or an empty one: a migration leaves behind an image that the new host lacks.
    Nothing,
    /// Our image of this generation.
    Ours(u64),
    /// Something else: the image that the domain was started with, or another host's.
    Foreign,
}

/// Whether a run was cut off or missed, so that one is needed now. `arrived` says that the domain
/// runs here because it has migrated here: then a foreign image is another host's.
pub fn unfinished(journal: &Journal, seen: Seen, arrived: bool) -> bool {
    match seen {
        Seen::Nothing => true,
        Seen::Ours(generation) => journal.attached != Some(generation),
        Seen::Foreign => arrived || (journal.generation > 0 && journal.attached.is_none()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A host with one domain: what survives a crash of the daemon.
    #[derive(Debug, Default)]
    struct World {
        journal: Journal,
        /// Generations on the devices at the target; the hypervisor allows one.
        devices: Vec<u64>,
        /// How many more times a guest that holds the device refuses to let it go.
        refusals: u8,
        images: Vec<u64>,
        /// Every generation that a guest was ever shown, in order.
        shown: Vec<u64>,
    }

    /// Cut off.
    struct Crash;

    /// The image of the host that the domain came from.
    const FOREIGN: u64 = 0;

    impl World {
        fn seen(&self) -> Seen {
            match self.devices.first() {
                None => Seen::Nothing,
                Some(&FOREIGN) => Seen::Foreign,
                Some(&generation) => Seen::Ours(generation),
            }
        }

        /// Runs until the end or until the crash at effect number `crash`, before or after it.
        fn run(&mut self, mut crash: Option<(usize, bool)>, floor: u64) -> Result<(), Crash> {
            let mut plan = Plan::new(&self.journal, !self.devices.is_empty(), floor);
            while plan.step() != Step::Done {
                if matches!(crash, Some((0, false))) {
                    return Err(Crash);
                }
                match plan.step() {
                    // Given up at the deadline: like a cut before the effect.
                    Step::Detach if self.refusals > 0 => {
                        self.refusals -= 1;
                        return Err(Crash);
                    }
                    Step::Detach => self.devices.clear(),
                    Step::Reserve(generation) => self.journal = self.journal.reserved(generation),
                    Step::Write(generation) => self.images.push(generation),
                    Step::Attach(generation) => {
                        assert!(self.devices.is_empty(), "two devices at one target");
                        assert!(self.images.contains(&generation), "attached before it was written");
                        self.devices.push(generation);
                        self.shown.push(generation);
                    }
                    Step::Commit(generation) => self.journal = self.journal.committed(generation),
                    Step::Done => {}
                }
                if matches!(crash, Some((0, true))) {
                    return Err(Crash);
                }
                crash = crash.map(|(effects, after)| (effects - 1, after));
                plan = plan.done();
            }
            Ok(())
        }
    }

    proptest! {
        /// Any number of runs, each cut off anywhere, the device taken away or replaced by others in
        /// between: one start that is not cut off ends with one device of the newest generation.
        #[test]
        fn a_restart_completes_whatever_was_cut_off(
            runs in proptest::collection::vec((0usize..6, any::<bool>(), 0u8..4, 0u64..30), 0..12),
            refusals in 0u8..4,
        ) {
            let mut world = World { refusals, ..World::default() };
            for (effects, after, outside, floor) in runs {
                match outside {
                    0 => world.devices.clear(),
                    // As after a migration: the device is there with another host's image.
                    1 => world.devices = vec![FOREIGN],
                    _ => {}
                }
                let _ = world.run(Some((effects, after)), floor);
            }
            // The guest lets go at last.
            world.refusals = 0;
            let before = world.shown.iter().copied().max().unwrap_or(0);
            if unfinished(&world.journal, world.seen(), true) {
                prop_assert!(world.run(None, 0).is_ok());
                prop_assert!(world.devices[0] > before, "an older generation than shown before");
            }
            prop_assert_eq!(world.devices.len(), 1);
            prop_assert_eq!(Some(world.devices[0]), world.shown.iter().copied().max());
            prop_assert!(!unfinished(&world.journal, world.seen(), true));
            prop_assert!(world.shown.is_sorted_by(|a, b| a < b), "a generation did not grow");
        }
    }

    #[test]
    fn the_image_that_a_domain_was_started_with_is_left_alone_until_it_moves() {
        assert!(!unfinished(&Journal::default(), Seen::Foreign, false));
        assert!(unfinished(&Journal::default(), Seen::Foreign, true));
        assert!(unfinished(&Journal { generation: 3, attached: None }, Seen::Foreign, false));
    }

    #[test]
    fn a_device_that_is_gone_is_not_detached() {
        let plan = Plan::new(&Journal { generation: 4, attached: Some(4) }, false, 0);
        assert_eq!(plan.step(), Step::Reserve(5));
    }

    #[test]
    fn what_the_domain_brought_along_is_exceeded() {
        assert_eq!(Plan::new(&Journal::default(), true, 80).generation(), 80);
        assert_eq!(Plan::new(&Journal { generation: 90, attached: None }, true, 80).generation(), 91);
    }
}
