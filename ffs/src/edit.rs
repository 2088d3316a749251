//! What a request makes of the layers that are asked for. Pure: nothing is read here.
//!
//! A request is a list of operations that take effect together or not at all. Each is checked
//! against what the ones before it leave, so `remove a` and then `add a=…` is right and the reverse
//! is not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::config::LayerSpec;

/// The most operations that a request may have. Each is a layer at most, and a mount of thousands of layers is a mistake.
pub const MOST: usize = 4096;

/// One operation on the layers of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Add a layer, as `NAME=SOURCE[,priority=N]`; refused when there is one of its name.
    Add(String),
    /// Put a layer in place of the one of its name; refused when there is none.
    Replace(String),
    /// Remove the layer of this name.
    Remove(String),
    /// Bring all layers into this order, highest first.
    Order(Vec<String>),
}

/// The layers that a mount is to show, whether or not their discs are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Layers asked for by name; those that drives bring by themselves are not among them.
    pub layers: Vec<LayerSpec>,
    /// Ranks that an order gave, by layer: they hold for what a drive brings later, too.
    pub ranks: BTreeMap<String, u16>,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The layers asked for from then on.
    pub desired: Desired,
    /// Layers to be read, each with its priority.
    pub load: Vec<LayerSpec>,
    /// Names of layers that are shown no more.
    pub removed: BTreeSet<String>,
}

/// Why a list of operations makes no sense. Nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// No operation at all.
    #[error("nothing to do: name at least one layer")]
    Nothing,
    /// More operations than one switch may have.
    #[error("{0} operations are more than {MOST}, the most that one switch may have: make several of them")]
    TooMany(usize),
    /// A layer cannot be understood.
    #[error("{0}")]
    Layer(String),
    /// Added twice.
    #[error("a layer is named `{0}` already: use replace")]
    Exists(String),
    /// Replaced although it is not there.
    #[error("no layer is named `{0}`: use add")]
    NotThere(String),
    /// Removed or ordered although it is not there.
    #[error("no layer is named `{0}`")]
    Unknown(String),
    /// An order that names a layer twice.
    #[error("the order names `{0}` twice")]
    Twice(String),
    /// An order that leaves one out.
    #[error("the order leaves out `{0}`: name every layer, highest first")]
    LeftOut(String),
}

/// Plans `ops` for a mount that asks for `desired` and shows the layers `shown`, with their
/// priorities.
///
/// # Errors
/// [`EditError`].
pub fn plan(ops: &[Op], desired: &Desired, shown: &BTreeMap<String, u16>) -> Result<Plan, EditError> {
    if ops.is_empty() {
        return Err(EditError::Nothing);
    }
    if ops.len() > MOST {
        return Err(EditError::TooMany(ops.len()));
    }
    let mut plan =
        Plan { desired: Desired { layers: Vec::new(), ranks: desired.ranks.clone() }, ..Plan::default() };
    let mut asked = Specs::default();
    desired.layers.iter().for_each(|spec| asked.put(spec.clone()));
    let mut load = Specs::default();
    // Every name that there is at this point of the list, with its rank. An order may leave out one
    // whose disc has not been there.
    let mut there: BTreeMap<String, u16> = shown.clone();
    for spec in &desired.layers {
        there.entry(spec.name.clone()).or_insert(spec.priority.unwrap_or(0));
    }
    for op in ops {
        match op {
            Op::Add(text) => {
                let spec: LayerSpec = text.parse().map_err(EditError::Layer)?;
                if there.contains_key(&spec.name) {
                    return Err(EditError::Exists(spec.name));
                }
                there.insert(spec.name.clone(), spec.priority.unwrap_or(0));
                plan.removed.remove(&spec.name);
                asked.put(spec.clone());
                load.put(spec);
            }
            Op::Replace(text) => {
                let mut spec: LayerSpec = text.parse().map_err(EditError::Layer)?;
                let Some(&rank) = there.get(&spec.name) else { return Err(EditError::NotThere(spec.name)) };
                if spec.priority.is_some() {
                    plan.desired.ranks.remove(&spec.name);
                }
                let rank = *spec.priority.get_or_insert(rank);
                there.insert(spec.name.clone(), rank);
                plan.removed.remove(&spec.name);
                asked.put(spec.clone());
                load.put(spec);
            }
            Op::Remove(name) => {
                there.remove(name).ok_or_else(|| EditError::Unknown(name.clone()))?;
                asked.remove(name);
                plan.desired.ranks.remove(name);
                load.remove(name);
                plan.removed.insert(name.clone());
            }
            Op::Order(names) => {
                let mut seen = BTreeSet::new();
                for name in names {
                    if !there.contains_key(name) {
                        return Err(EditError::Unknown(name.clone()));
                    }
                    if !seen.insert(name) {
                        return Err(EditError::Twice(name.clone()));
                    }
                }
                if let Some(name) = there
                    .keys()
                    .filter(|name| shown.contains_key(*name) || load.at.contains_key(*name))
                    .find(|name| !seen.contains(name))
                {
                    return Err(EditError::LeftOut(name.clone()));
                }
                for (name, rank) in ranks(names, &there) {
                    for spec in [&mut asked, &mut load].into_iter().filter_map(|specs| specs.get_mut(&name)) {
                        spec.priority = Some(rank);
                    }
                    there.insert(name.clone(), rank);
                    plan.desired.ranks.insert(name, rank);
                }
            }
        }
    }
    plan.desired.layers = asked.list.into_iter().flatten().collect();
    plan.load = load.list.into_iter().flatten().collect();
    Ok(plan)
}

/// Layers in the order in which they were put, one of a name: thousands of operations look them up by name.
#[derive(Default)]
struct Specs {
    /// Where one was taken away, `None`.
    list: Vec<Option<LayerSpec>>,
    at: BTreeMap<String, usize>,
}

impl Specs {
    /// Puts one at the end, and takes away the one of its name.
    fn put(&mut self, spec: LayerSpec) {
        if let Some(before) = self.at.insert(spec.name.clone(), self.list.len()) {
            self.list[before] = None;
        }
        self.list.push(Some(spec));
    }

    fn remove(&mut self, name: &str) {
        if let Some(index) = self.at.remove(name) {
            self.list[index] = None;
        }
    }

    fn get_mut(&mut self, name: &str) -> Option<&mut LayerSpec> {
        self.list[*self.at.get(name)?].as_mut()
    }
}

/// Ranks that put layers into an order, highest first, and leave as many as they are as possible:
/// the present ranks are dealt out again, and raised only where two that are equal would be ordered
/// by their names otherwise.
fn ranks(names: &[String], there: &BTreeMap<String, u16>) -> Vec<(String, u16)> {
    let mut dealt: Vec<u16> = names.iter().filter_map(|name| there.get(name).copied()).collect();
    dealt.sort_unstable();
    let mut ranked: Vec<(String, u16)> = Vec::with_capacity(names.len());
    for (name, rank) in names.iter().rev().zip(dealt) {
        let least = match ranked.last() {
            None => 0,
            // Between equals the later name is the higher layer.
            Some((below, rank)) if name > below => *rank,
            Some((_, rank)) => match rank.checked_add(1) {
                Some(next) => next,
                // No room above: number them from 0.
                None => return names.iter().rev().cloned().zip(0..).collect(),
            },
        };
        ranked.push((name.clone(), rank.max(least)));
    }
    ranked
}

/// Reads a list of operations: one a line, `add NAME=SOURCE…`, `replace NAME=SOURCE…`, `remove NAME…`
/// or `order NAME…`, several names or layers on a line as several operations; `#` begins a comment. Paths of layers need
/// not be UTF-8.
///
/// # Errors
/// A sentence with the line's number.
pub fn parse_script(text: &[u8]) -> Result<Vec<Op>, String> {
    let mut ops = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let Some(verb) = words.next().filter(|verb| !verb.starts_with(b"#")) else { continue };
        let words: Vec<&[u8]> = words.collect();
        let shown = String::from_utf8_lossy(verb);
        let wrong = |what: &str| format!("line {number}: {what}");
        if words.is_empty() {
            return Err(wrong(&format!("`{shown}` of what?")));
        }
        let layer = |word: &[u8]| {
            LayerSpec::from_bytes(word).map(|spec| spec.to_string()).map_err(|error| wrong(&error))
        };
        let name = |word: &[u8]| {
            let name = std::str::from_utf8(word).map(str::to_owned);
            let shown = String::from_utf8_lossy(word);
            name.map_err(|_| wrong(&format!("the layer's name `{shown}` is not UTF-8")))
        };
        for &word in words.iter().filter(|_| verb != b"order") {
            ops.push(match verb {
                b"add" => Op::Add(layer(word)?),
                b"replace" => Op::Replace(layer(word)?),
                b"remove" => Op::Remove(name(word)?),
                _ => return Err(wrong(&format!("`{shown}` is not `add`, `replace`, `remove` or `order`"))),
            });
        }
        if verb == b"order" {
            ops.push(Op::Order(words.into_iter().map(name).collect::<Result<_, _>>()?));
        }
    }
    match ops.len() {
        0 => Err(EditError::Nothing.to_string()),
        1..=MOST => Ok(ops),
        many => Err(EditError::TooMany(many).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(layers: &[(&str, u16)]) -> BTreeMap<String, u16> {
        layers.iter().map(|(name, rank)| ((*name).to_owned(), *rank)).collect()
    }

    fn order(names: &[&str]) -> Op {
        Op::Order(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn operations_see_what_the_ones_before_leave() {
        let have = shown(&[("a", 1), ("b", 2)]);
        let ops = [Op::Remove("a".into()), Op::Add("a=dir:/x,priority=7".into()), Op::Remove("b".into())];
        let plan = plan(&ops, &Desired::default(), &have).unwrap();
        assert_eq!(plan.load, ["a=dir:/x,priority=7".parse().unwrap()]);
        assert_eq!(plan.removed, BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let have = shown(&[("a", 1), ("b", 2)]);
        for (ops, says) in [
            (vec![], "nothing"),
            (vec![Op::Add("a=dir:/x".into())], "use replace"),
            (vec![Op::Replace("c=dir:/x".into())], "use add"),
            (vec![Op::Remove("c".into())], "no layer"),
            (vec![Op::Remove("a".into()), Op::Replace("a=dir:/x".into())], "use add"),
            (vec![order(&["a"])], "leaves out `b`"),
            (vec![order(&["a", "b", "a"])], "twice"),
            (vec![order(&["a", "b", "c"])], "no layer"),
        ] {
            let error = plan(&ops, &Desired::default(), &have).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_replacement_keeps_its_rank_and_an_order_outlives_it() {
        let have = shown(&[("a", 1), ("b", 2)]);
        let ops = [order(&["a", "b"]), Op::Replace("a=iso:/x".into())];
        let plan = plan(&ops, &Desired::default(), &have).unwrap();
        assert_eq!(plan.desired.ranks, shown(&[("a", 2), ("b", 1)]));
        assert_eq!(plan.load[0].priority, Some(2));
    }

    #[test]
    fn scripts_say_where_they_are_wrong() {
        let ops =
            parse_script(b"# both at once\nreplace a=iso:/a b=dir:/b\n\nremove c\norder b a\n").unwrap();
        assert_eq!(ops.len(), 4);
        assert_eq!(ops[3], order(&["b", "a"]));
        assert!(parse_script(b"add a=dir:/x\nmove a").unwrap_err().starts_with("line 2: `move`"));
        assert!(parse_script(b"add a=nfs:/x").unwrap_err().starts_with("line 1: "));
        assert!(parse_script(b"remove").unwrap_err().contains("of what"));
        assert!(parse_script(b"# nothing").is_err());
        let ops = parse_script(b"add a=dir:/\xff\r\n").unwrap();
        assert_eq!(ops, [Op::Add("a=dir%:/%ff".to_owned())]);
        assert!(parse_script(b"remove \xff").unwrap_err().starts_with("line 1: the layer's name"));
    }

    #[test]
    fn a_switch_has_so_many_operations_and_no_more() {
        let script = |count: usize| (0..count).map(|n| format!("add l{n}=dir:/x\n")).collect::<String>();
        let ops = parse_script(script(MOST).as_bytes()).unwrap();
        let planned = plan(&ops, &Desired::default(), &BTreeMap::new()).unwrap();
        assert_eq!(planned.load.len(), MOST);
        assert_eq!(planned.desired.layers, planned.load);
        let says = "4097 operations are more than 4096, the most";
        assert!(parse_script(script(MOST + 1).as_bytes()).unwrap_err().contains(says));
        let ops = vec![Op::Remove("a".into()); MOST + 1];
        assert!(plan(&ops, &Desired::default(), &BTreeMap::new()).unwrap_err().to_string().contains(says));
    }

    proptest! {
        #[test]
        fn ranks_give_the_order(ranked in proptest::collection::btree_map("[a-d]{1,2}", any::<u16>(), 1..8), seed: usize) {
            let mut names: Vec<String> = ranked.keys().cloned().collect();
            let len = names.len();
            for at in 0..len {
                names.swap(at, (seed >> at) % len);
            }
            let mut sorted = ranks(&names, &ranked);
            sorted.sort_by(|a, b| (b.1, &b.0).cmp(&(a.1, &a.0)));
            let sorted: Vec<String> = sorted.into_iter().map(|(name, _)| name).collect();
            prop_assert_eq!(sorted, names);
        }

        #[test]
        fn a_strict_order_that_holds_changes_nothing(ranked in proptest::collection::btree_map("[a-z]{1,3}", any::<u16>(), 1..8)) {
            let mut names: Vec<String> = ranked.keys().cloned().collect();
            names.sort_by(|a, b| (ranked[b], b).cmp(&(ranked[a], a)));
            let after: BTreeMap<String, u16> = ranks(&names, &ranked).into_iter().collect();
            prop_assert_eq!(after, ranked);
        }
    }
}
