//! Steps of the event log in, the state of each class out.

use std::collections::BTreeMap;

use ctx_format::ClassName;
use ctx_format::ack::{Ack, Hook, Text, Verdict};
use ctx_format::check::Claim;

use crate::events::Step;
use crate::handover::state;

/// The state of every class, and which of them the host has not been told.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// By class; `None` is an image that could not be read.
    states: BTreeMap<Option<ClassName>, State>,
    /// What the image in each drive claims to be.
    claims: BTreeMap<String, Claim>,
    /// The class of each layer that a drive brought, since a layer may have another name.
    classes: BTreeMap<String, ClassName>,
    /// Hooks that ran since the last ones were done.
    hooks: Vec<Hook>,
}

#[derive(Debug)]
struct State {
    ack: Ack,
    /// The mount's generation whose hooks are waited for.
    waits: Option<u64>,
    told: bool,
}

impl Book {
    /// Whether a step can change anything here.
    pub(super) fn minds(step: &Step) -> bool {
        matches!(
            step,
            Step::Reading { .. }
                | Step::Claimed { .. }
                | Step::Verified { .. }
                | Step::Refused { .. }
                | Step::Visible { .. }
                | Step::Hook { .. }
                | Step::HooksDone { .. }
        )
    }

    /// Takes note of a step.
    pub(super) fn note(&mut self, step: &Step) {
        match step {
            Step::Reading { device, .. } => {
                self.claims.remove(device);
            }
            Step::Claimed { device, class, generation } => {
                let claim = Claim { class: class.clone(), generation: *generation };
                self.claims.insert(device.clone(), claim);
            }
            Step::Verified { device, layer, .. } => {
                if let Some(claim) = self.claims.get(device) {
                    self.classes.insert(layer.clone(), claim.class.clone());
                }
            }
            Step::Refused { origin, reason } => {
                // What somebody in the guest was refused is not the host's.
                if let Some(device) = origin.strip_prefix("device:/dev/") {
                    let claim = self.claims.get(device).cloned();
                    let (class, generation) = claim.map(|claim| (claim.class, claim.generation)).unzip();
                    self.set(Ack::refused(class, generation, reason), None);
                }
            }
            Step::Visible { generation, layer, layer_generation: Some(of), changes } => {
                let class = self.classes.get(layer).cloned().or_else(|| layer.parse().ok());
                let Some(class) = class else { return };
                let ack = Ack::applied(class.clone(), *of);
                if *changes > 0 {
                    self.set(ack, Some(*generation));
                    return;
                }
                // The same disc again: what its hooks came to still holds.
                let same =
                    |state: &State| state.ack.result == Verdict::Applied && state.ack.generation == Some(*of);
                match self.states.get_mut(&Some(class)).filter(|state| same(state)) {
                    Some(state) => state.told = false,
                    None => self.set(ack.with_hooks(Vec::new()), None),
                }
            }
            Step::Hook { hook, millis, result, .. } => {
                self.hooks.push(Hook { name: Text::lossy(hook), result: Text::lossy(result), ms: *millis });
            }
            Step::HooksDone { generation } => {
                let hooks = std::mem::take(&mut self.hooks);
                for state in self.states.values_mut() {
                    // Hooks run once for all changes up to their generation.
                    if state.waits.is_some_and(|waits| waits <= *generation) {
                        state.ack = state.ack.clone().with_hooks(hooks.clone());
                        (state.waits, state.told) = (None, false);
                    }
                }
            }
            _ => {}
        }
    }

    /// What another program knew.
    pub(super) fn resume(acks: &state::Acks) -> Self {
        let states = acks
            .states
            .iter()
            .map(|of| (of.ack.class.clone(), State { ack: of.ack.clone(), waits: of.waits, told: of.told }));
        let claims = acks
            .claims
            .iter()
            .cloned()
            .map(|(device, class, generation)| (device, Claim { class, generation }));
        Self {
            states: states.collect(),
            claims: claims.collect(),
            classes: acks.classes.iter().cloned().collect(),
            hooks: acks.hooks.clone(),
        }
    }

    /// What [`Book::resume`] takes.
    pub(super) fn to_state(&self) -> state::Acks {
        let states = self.states.values().map(|of| state::AckState {
            ack: of.ack.clone(),
            waits: of.waits,
            told: of.told,
        });
        let claims =
            self.claims.iter().map(|(device, claim)| (device.clone(), claim.class.clone(), claim.generation));
        state::Acks {
            states: states.collect(),
            claims: claims.collect(),
            classes: self.classes.clone().into_iter().collect(),
            hooks: self.hooks.clone(),
            port: None,
        }
    }

    fn set(&mut self, ack: Ack, waits: Option<u64>) {
        self.states.insert(ack.class.clone(), State { ack, waits, told: false });
    }

    /// All states.
    pub(super) fn states(&self) -> Vec<&Ack> {
        self.states.values().map(|state| &state.ack).collect()
    }

    /// The places in [`Book::states`] of those that the host has not been told.
    pub(super) fn untold(&self) -> Vec<usize> {
        self.states.values().enumerate().filter_map(|(at, state)| (!state.told).then_some(at)).collect()
    }

    /// The host was told the state at a place.
    pub(super) fn told(&mut self, at: usize) {
        if let Some(state) = self.states.values_mut().nth(at) {
            state.told = true;
        }
    }

    /// Whoever was told is gone.
    pub(super) fn all_anew(&mut self) {
        self.states.values_mut().for_each(|state| state.told = false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn book(steps: &[Step]) -> Book {
        let mut book = Book::default();
        for step in steps {
            book.note(step);
        }
        book
    }

    fn claimed(generation: u64) -> Step {
        Step::Claimed { device: "sr0".into(), class: "infrastructure".parse().unwrap(), generation }
    }

    fn visible(generation: u64, layer: &str, of: u64, changes: usize) -> Step {
        Step::Visible { generation, layer: layer.into(), layer_generation: Some(of), changes }
    }

    fn hook(generation: u64, result: &str) -> Step {
        Step::Hook { hook: "h".into(), generation, millis: 1, result: result.into() }
    }

    #[test]
    fn applied_is_told_at_once_and_again_when_the_hooks_are_done() {
        let mut book = book(&[
            claimed(7),
            Step::Verified { device: "sr0".into(), layer: "named".into(), generation: Some(7) },
            visible(3, "named", 7, 2),
        ]);
        assert_eq!(book.untold(), [0]);
        assert_eq!(book.states()[0].node(), "infrastructure");
        assert_eq!(book.states()[0].hooks, None);
        book.told(0);
        book.note(&hook(3, "exit 1"));
        assert!(book.untold().is_empty());
        // Another program knows the same.
        let mut book = Book::resume(&book.to_state());
        book.note(&Step::HooksDone { generation: 4 });
        assert_eq!(book.untold(), [0]);
        assert_eq!(book.states()[0].hooks.as_ref().unwrap()[0].result.as_str(), "exit 1");
        // The same disc again keeps what is known; a host that is new hears all of it.
        book.told(0);
        book.note(&visible(5, "named", 7, 0));
        assert_eq!(book.states()[0].hooks.as_ref().unwrap().len(), 1);
        book.told(0);
        book.all_anew();
        assert_eq!(book.untold(), [0]);
    }

    #[test]
    fn a_refusal_names_what_the_image_claimed() {
        let refused = Step::Refused { origin: "device:/dev/sr0".into(), reason: "unsigned".into() };
        let reading = Step::Reading { device: "sr0".into(), attempt: 1 };
        let states = book(&[claimed(6), refused.clone()]);
        assert_eq!(states.states()[0].generation, Some(6));
        // What another disc claimed before is not said of this one.
        let states = book(&[claimed(6), reading, refused]);
        assert_eq!((states.states()[0].node(), states.states()[0].generation), ("-", None));
        let local = Step::Refused { origin: "iso:/x".into(), reason: "gone".into() };
        assert!(book(&[local]).states().is_empty());
    }

    #[test]
    fn hooks_of_an_earlier_change_are_not_taken_for_those_of_a_later() {
        let states = book(&[visible(1, "a", 1, 1), visible(2, "b", 1, 1), Step::HooksDone { generation: 1 }]);
        let hooks: Vec<bool> = states.states().iter().map(|ack| ack.hooks.is_some()).collect();
        assert_eq!(hooks, [true, false]);
        // Without a change there is no hook to wait for.
        assert!(book(&[visible(1, "a", 1, 0)]).states()[0].hooks.as_ref().unwrap().is_empty());
    }
}
