//! The acknowledgement: what a guest tells its host about the context data that it was given.
//!
//! One line of JSON for each class, the newest state of it: this generation is applied, or was refused
//! and why, and what the hooks came to. It travels over a virtio-serial port named [`PORT`], in xenstore
//! below [`XENSTORE`], or lies in a file in the guest.
//!
//! ```json
//! {"ack":1,"class":"infrastructure","generation":7,"result":"applied","hooks":[{"name":"mount","result":"ok","ms":12}]}
//! {"ack":1,"class":"infrastructure","generation":6,"result":"refused","why":"older than 7"}
//! ```
//!
//! To a host this is hostile input: it may say anything, at any length and speed. So a line is limited
//! to [`MAX_ACK`] bytes before it is parsed, unknown fields are refused, and no text in it is long or
//! has a control character that could forge a line of a log or drive a terminal.
//!
//! On a port, the guest writes a line whenever a state changes, and all of them when the host's side is
//! opened or asks with [`QUESTION`]: a host that was started later, or to which the guest has migrated,
//! misses nothing.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::class::ClassName;

/// The name of the virtio-serial port.
pub const PORT: &str = "org.ctx.ack.0";

/// The directory in xenstore, from the guest's own domain; in it each class has a node of its name, and
/// an image whose class could not be read has [`NO_CLASS`].
pub const XENSTORE: &str = "data/ctx-ack";

/// The node in xenstore of an image of no known class. No class can have this name.
pub const NO_CLASS: &str = "-";

/// What a host writes to the port to be told everything again.
pub const QUESTION: &[u8] = b"?\n";

/// The longest line in bytes, its newline included. With a path it must fit into a xenstore message
/// (4096 bytes).
pub const MAX_ACK: usize = 3072;

/// How many hooks are named; the rest is counted.
pub const MAX_HOOKS: usize = 12;

/// The only format so far.
const FORMAT: u32 = 1;

/// A text of at most `MAX` bytes without control characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Text<const MAX: usize>(String);

impl<const MAX: usize> Text<MAX> {
    /// As much of `text` as is allowed: control characters become spaces, the end is cut.
    pub fn lossy(text: &str) -> Self {
        let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let cut = (0..=MAX.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
        Self(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<String> for Text<MAX> {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > MAX {
            return Err(format!("a text has {} bytes, {MAX} are allowed", text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err("a text has a control character".to_owned());
        }
        Ok(Self(text))
    }
}

impl<const MAX: usize> From<Text<MAX>> for String {
    fn from(text: Text<MAX>) -> Self {
        text.0
    }
}

impl<const MAX: usize> fmt::Display for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Programs see it.
    Applied,
    /// It was refused; what was there before stays.
    Refused,
}

/// What a hook came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Its name.
    pub name: Text<48>,
    /// `ok`, `exit N`, `signal N`, `timeout`, or why it did not start.
    pub result: Text<32>,
    /// How long it ran, in milliseconds.
    pub ms: u64,
}

/// The state of one class in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    /// The version of this format.
    #[serde(rename = "ack")]
    format: u32,
    /// The class; none when the image was so damaged that it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassName>,
    /// The generation that the image claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// What became of it.
    pub result: Verdict,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Text<400>>,
    /// The hooks that ran for it, failed ones first; none while they still run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Vec<Hook>>,
    /// How many more hooks ran than are named.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_hooks: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks for a reference.
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why a line is not an acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// Over [`MAX_ACK`].
    #[error("the acknowledgement has over {MAX_ACK} bytes")]
    TooLong,
    /// Not what it should be.
    #[error("not an acknowledgement: {0}")]
    Syntax(String),
}

impl Ack {
    /// The image of this class and generation is shown; its hooks still run.
    pub fn applied(class: ClassName, generation: u64) -> Self {
        Self {
            format: FORMAT,
            class: Some(class),
            generation: Some(generation),
            result: Verdict::Applied,
            why: None,
            hooks: None,
            more_hooks: 0,
        }
    }

    /// An image was refused.
    pub fn refused(class: Option<ClassName>, generation: Option<u64>, why: &str) -> Self {
        let why = Some(Text::lossy(why));
        Self { format: FORMAT, class, generation, result: Verdict::Refused, why, hooks: None, more_hooks: 0 }
    }

    /// The same with what the hooks came to.
    #[must_use]
    pub fn with_hooks(mut self, mut hooks: Vec<Hook>) -> Self {
        // A failed one must not be what is cut off.
        hooks.sort_by_key(|hook| hook.result.as_str() == "ok");
        self.more_hooks = u32::try_from(hooks.len().saturating_sub(MAX_HOOKS)).unwrap_or(u32::MAX);
        hooks.truncate(MAX_HOOKS);
        self.hooks = Some(hooks);
        self
    }

    /// Reads a line, with or without its newline.
    ///
    /// # Errors
    /// [`AckError`] on anything that is not exactly an acknowledgement of this format.
    pub fn parse(line: &[u8]) -> Result<Self, AckError> {
        if line.len() > MAX_ACK {
            return Err(AckError::TooLong);
        }
        // What the parser says may quote the line: it is made harmless like any text from a guest.
        let syntax = |error: serde_json::Error| {
            AckError::Syntax(Text::<200>::lossy(&error.to_string()).as_str().to_owned())
        };
        let ack: Self = serde_json::from_slice(line).map_err(syntax)?;
        if ack.format != FORMAT {
            return Err(AckError::Syntax(format!("format {}, this program knows {FORMAT}", ack.format)));
        }
        if ack.hooks.as_ref().is_some_and(|hooks| hooks.len() > MAX_HOOKS) {
            return Err(AckError::Syntax(format!("more than {MAX_HOOKS} hooks")));
        }
        Ok(ack)
    }

    /// The line, with its newline; at most [`MAX_ACK`] bytes.
    pub fn to_line(&self) -> Vec<u8> {
        // Strings and numbers: nothing in it can fail to serialize.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// The name of its node in xenstore.
    pub fn node(&self) -> &str {
        self.class.as_ref().map_or(NO_CLASS, ClassName::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hook(name: &str, result: &str) -> Hook {
        Hook { name: Text::lossy(name), result: Text::lossy(result), ms: u64::MAX }
    }

    #[test]
    fn the_lines_are_settled() {
        let class: ClassName = "infrastructure".parse().unwrap();
        let text = |ack: &Ack| String::from_utf8(ack.to_line()).unwrap();
        let applied = Ack::applied(class.clone(), 7);
        assert_eq!(
            text(&applied),
            "{\"ack\":1,\"class\":\"infrastructure\",\"generation\":7,\"result\":\"applied\"}\n"
        );
        let done = applied.with_hooks(vec![Hook { ms: 12, ..hook("mount", "ok") }]);
        assert_eq!(
            text(&done),
            "{\"ack\":1,\"class\":\"infrastructure\",\"generation\":7,\"result\":\"applied\",\
             \"hooks\":[{\"name\":\"mount\",\"result\":\"ok\",\"ms\":12}]}\n"
        );
        let refused = Ack::refused(None, None, "not an\nISO image");
        assert_eq!(text(&refused), "{\"ack\":1,\"result\":\"refused\",\"why\":\"not an ISO image\"}\n");
        for ack in [done, refused, Ack::refused(Some(class), Some(6), "older")] {
            assert_eq!(Ack::parse(&ack.to_line()).unwrap(), ack);
        }
    }

    #[test]
    fn what_is_not_exactly_an_acknowledgement_is_refused() {
        let good = "{\"ack\":1,\"class\":\"a\",\"generation\":7,\"result\":\"applied\"}";
        Ack::parse(good.as_bytes()).unwrap();
        for (from, to) in [
            ("\"ack\":1", "\"ack\":2"),
            ("\"ack\":1,", ""),
            ("\"a\"", "\"../a\""),
            ("7", "-7"),
            ("applied", "done"),
            ("}", ",\"extra\":1}"),
            ("}", ",\"why\":\"\\u001b[2J\"}"),
            ("}", ",\"generation\":8}"),
            ("}", "} {}"),
        ] {
            let bad = good.replace(from, to);
            assert!(matches!(Ack::parse(bad.as_bytes()), Err(AckError::Syntax(_))), "{bad}");
        }
        let hooks =
            format!(",\"hooks\":[{}]}}", vec!["{\"name\":\"\",\"result\":\"\",\"ms\":0}"; 13].join(","));
        assert!(Ack::parse(good.replace('}', &hooks).as_bytes()).is_err());
        let long = good.replace('}', &format!(",\"why\":\"{}\"}}", "x".repeat(401)));
        assert!(Ack::parse(long.as_bytes()).is_err());
        assert_eq!(Ack::parse(&vec![b' '; MAX_ACK + 1]), Err(AckError::TooLong));
    }

    #[test]
    fn failed_hooks_are_named_first() {
        let mut hooks: Vec<Hook> = (0..20).map(|i| hook(&i.to_string(), "ok")).collect();
        hooks.push(hook("last", "exit 3"));
        let ack = Ack::applied("a".parse().unwrap(), 1).with_hooks(hooks);
        assert_eq!(ack.more_hooks, 9);
        assert_eq!(ack.hooks.unwrap()[0].name.as_str(), "last");
    }

    proptest! {
        #[test]
        fn a_line_always_fits_and_reads_back(
            class in "[a-z]{32}", generation in any::<u64>(), why in "[\"\\\\\\PC]{0,600}",
            hooks in proptest::collection::vec(("[\"\\\\\\PC]{0,80}", "[\"\\\\\\PC]{0,40}"), 0..20),
        ) {
            let class: ClassName = class.parse().unwrap();
            let applied = Ack::applied(class.clone(), generation)
                .with_hooks(hooks.iter().map(|(name, result)| hook(name, result)).collect());
            for ack in [applied, Ack::refused(Some(class), Some(generation), &why)] {
                let line = ack.to_line();
                prop_assert!(line.len() <= MAX_ACK, "{}", line.len());
                prop_assert_eq!(Ack::parse(&line).unwrap(), ack);
            }
        }

        #[test]
        fn reading_never_panics(line in proptest::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,200}") {
            let _ = Ack::parse(&line);
            let _ = Ack::parse(text.as_bytes());
        }
    }
}
