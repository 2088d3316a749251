//! Parameters: `"${x}"` alone takes the value as it is, within a text its words; `$${` is a plain `${`.

use std::collections::BTreeMap;

use super::text::Fault;
use super::tree::{Node, Table, Value};
use crate::model::{Rate, Size, Time};

/// The most bytes that a text may have after substitution.
const LONGEST: usize = 1 << 20;

/// The most bytes that a list or table may have after substitution, all its texts together.
const LARGEST: usize = 4 << 20;

/// Values by name: an author's parameters, and what the testbed gives names to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parameters {
    values: BTreeMap<String, Node>,
    /// Addresses, sites: `host.a.management`.
    testbed: BTreeMap<String, String>,
}

impl Parameters {
    /// Resolves the values of a table, which may name each other.
    ///
    /// # Errors
    /// A name is unknown, a value names itself, or a table is put into a text.
    pub(crate) fn resolve(table: &Table, testbed: BTreeMap<String, String>) -> Result<Self, Fault> {
        let mut this = Self { values: BTreeMap::new(), testbed };
        for entry in &table.entries {
            let mut open = Vec::new();
            this.value(&entry.key, table, &mut open)?;
        }
        Ok(this)
    }

    fn value(&mut self, name: &str, table: &Table, open: &mut Vec<String>) -> Result<(), Fault> {
        if self.values.contains_key(name) {
            return Ok(());
        }
        let Some(node) = table.get(name) else { return Ok(()) };
        if open.iter().any(|one| one == name) {
            let message = format!("parameter `{name}` is made of itself: {} → {name}", open.join(" → "));
            return Err(Fault::new(node.span.clone(), message, "break the circle"));
        }
        open.push(name.to_owned());
        let mut names = Vec::new();
        collect(node, &mut names);
        for used in names {
            self.value(used.split('.').next().unwrap_or_default(), table, open)?;
        }
        open.pop();
        let mut node = node.clone();
        self.substitute(&mut node)?;
        self.values.insert(name.to_owned(), node);
        Ok(())
    }

    /// The same with one more value, such as that of a loop.
    #[must_use]
    pub(crate) fn with(&self, name: &str, node: Node) -> Self {
        let mut this = self.clone();
        this.values.insert(name.to_owned(), node);
        this
    }

    /// Puts values where they are named.
    ///
    /// # Errors
    /// A name is unknown, or a list or table is put into a text.
    pub(crate) fn substitute(&self, node: &mut Node) -> Result<(), Fault> {
        match &mut node.value {
            Value::List(items) => {
                let mut weight = 0;
                items.iter_mut().try_for_each(|item| {
                    self.substitute(item)?;
                    add(&mut weight, item)
                })
            }
            Value::Table(table) => self.substitute_in(table),
            Value::Text(text) if text.contains("${") => {
                if let Some(name) = alone(text)
                    && let Some(value) = self.values.get(name)
                {
                    node.value = value.value.clone();
                    return Ok(());
                }
                let text = text.clone();
                let filled = self.fill(&text, node)?;
                node.value = Value::Text(filled);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The same in all values of a table.
    ///
    /// # Errors
    /// As [`Parameters::substitute`].
    pub(crate) fn substitute_in(&self, table: &mut Table) -> Result<(), Fault> {
        let mut weight = 0;
        table.entries.iter_mut().try_for_each(|entry| {
            self.substitute(&mut entry.node)?;
            add(&mut weight, &entry.node)
        })
    }

    fn fill(&self, text: &str, node: &Node) -> Result<String, Fault> {
        let fail = |message: String, help: &str| Err(Fault::new(node.span.clone(), message, help));
        let mut filled = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            let (before, after) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                filled.push_str(before);
                filled.push_str("${");
                rest = &after[2..];
                continue;
            }
            filled.push_str(before);
            let Some(end) = after.find('}') else {
                return fail("`${` has no `}`".into(), "close it, or write `$${` for a plain `${`");
            };
            let name = &after[2..end];
            match self.word(name) {
                Ok(Some(word)) => filled.push_str(&word),
                Ok(None) => {
                    let known: Vec<&str> = self.values.keys().map(String::as_str).collect();
                    let help = format!(
                        "parameters are {}; declare it under [parameters], or write `$${{{name}}}` for the shell's own",
                        if known.is_empty() { "(none)".to_owned() } else { known.join(", ") }
                    );
                    return fail(format!("there is no parameter `{name}`"), &help);
                }
                Err(kind) => {
                    return fail(
                        format!("parameter `{name}` is {kind}, which has no place in a text"),
                        "write it alone: \"${…}\"",
                    );
                }
            }
            if filled.len() > LONGEST {
                return fail(format!("this text grows beyond {LONGEST} bytes"), "use shorter parameters");
            }
            rest = &after[end + 1..];
        }
        filled.push_str(rest);
        Ok(filled)
    }

    /// A parameter's words; the kind of one that has none.
    fn word(&self, name: &str) -> Result<Option<String>, &'static str> {
        if let Some(node) = self.values.get(name) {
            return node.scalar().map(Some).ok_or_else(|| node.value.kind());
        }
        if let Some(word) = self.testbed.get(name) {
            return Ok(Some(word.clone()));
        }
        // `size.mib`: a quantity in a unit, as programs take it.
        let Some((name, unit)) = name.rsplit_once('.') else { return Ok(None) };
        let Some(text) = self.values.get(name).and_then(Node::text) else { return Ok(None) };
        Ok(in_unit(text, unit))
    }
}

/// A quantity as a plain number of a unit; none where it is no such quantity, or no whole number of small units.
fn in_unit(text: &str, unit: &str) -> Option<String> {
    let size = || text.parse::<Size>().ok().map(Size::bytes);
    let whole = |value: u64, of: u64| value.is_multiple_of(of).then(|| (value / of).to_string());
    match unit {
        "bytes" => whole(size()?, 1),
        "kib" => whole(size()?, 1 << 10),
        "mib" => whole(size()?, 1 << 20),
        "seconds" => Some(text.parse::<Time>().ok()?.duration().as_secs_f64().to_string()),
        "ms" => Some((text.parse::<Time>().ok()?.duration().as_secs_f64() * 1e3).to_string()),
        "bits_per_second" => Some(text.parse::<Rate>().ok()?.bits_per_second().to_string()),
        _ => None,
    }
}

/// The name in a text that is nothing else than one.
fn alone(text: &str) -> Option<&str> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    (!name.contains(['{', '}', '$'])).then_some(name)
}

/// Adds a value to the weight of what it is in. A few parameters that double each other would fill all memory.
fn add(weight: &mut usize, node: &Node) -> Result<(), Fault> {
    *weight += weigh(node);
    if *weight > LARGEST {
        let message = format!("parameters make this larger than {} MiB", LARGEST >> 20);
        return Err(Fault::new(node.span.clone(), message, "use fewer of them, or shorter ones"));
    }
    Ok(())
}

/// About how many bytes a value takes.
fn weigh(node: &Node) -> usize {
    let inner = match &node.value {
        Value::Text(text) => text.len(),
        Value::List(items) => items.iter().map(weigh).sum(),
        Value::Table(table) => table.entries.iter().map(|entry| entry.key.len() + weigh(&entry.node)).sum(),
        Value::Integer(_) | Value::Float(_) | Value::Bool(_) => 0,
    };
    inner + size_of::<Node>()
}

/// Names in a value.
fn collect(node: &Node, names: &mut Vec<String>) {
    match &node.value {
        Value::Text(text) => {
            for part in text.split("${").skip(1) {
                names.extend(part.split_once('}').map(|(name, _)| name.to_owned()));
            }
        }
        Value::List(items) => items.iter().for_each(|item| collect(item, names)),
        Value::Table(table) => table.entries.iter().for_each(|entry| collect(&entry.node, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::tree::parse;
    use super::*;

    fn filled(parameters: &str, text: &str) -> Result<Value, String> {
        let testbed = BTreeMap::from([("server.s.data".to_owned(), "198.18.2.40".to_owned())]);
        let parameters =
            Parameters::resolve(&parse(parameters, 0).unwrap(), testbed).map_err(|fault| fault.message)?;
        let mut node = Node { span: 0..1, value: Value::Text(text.into()) };
        parameters.substitute(&mut node).map_err(|fault| fault.message)?;
        Ok(node.value)
    }

    #[test]
    fn alone_it_keeps_its_type_and_in_a_text_its_words() {
        assert_eq!(filled("x = 7", "${x}"), Ok(Value::Integer(7)));
        assert_eq!(filled("x = 7", "a ${x} b"), Ok(Value::Text("a 7 b".into())));
        assert_eq!(filled("x = 7", "$${x} $x"), Ok(Value::Text("${x} $x".into())));
        assert_eq!(filled("", "http://${server.s.data}/"), Ok(Value::Text("http://198.18.2.40/".into())));
        assert_eq!(filled("a = '${b}'\nb = 'c'", "${a}${a}"), Ok(Value::Text("cc".into())));
        assert_eq!(
            filled("s = '8 MiB'\nt = '1.5 s'", "${s.mib} ${s.kib} ${t.seconds}"),
            Ok(Value::Text("8 8192 1.5".into()))
        );
    }

    #[test]
    fn what_is_unknown_circular_or_no_word_is_told() {
        assert!(filled("x = 1", "${y}").unwrap_err().contains("no parameter `y`"));
        assert!(filled("a = '${b}'\nb = '${a}'", "x").unwrap_err().contains("made of itself: a → b → a"));
        assert!(filled("x = [1]", "n ${x}").unwrap_err().contains("a list"));
        assert!(filled("x = 1", "${x").unwrap_err().contains("no `}`"));
        assert!(filled("s = '1 KiB'", "${s.mib}").is_err());
    }
}
