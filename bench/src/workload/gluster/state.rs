//! What is read back from client and servers.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// How the client's last attach went, from `/run/gluster-client/state`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientState {
    /// Whether the volume is mounted and answered.
    pub attached: bool,
    /// The server; none when the context named none.
    pub address: Option<IpAddr>,
    /// When the script began, in s since the guest's boot.
    pub began: f64,
    /// When it ended, in s since the guest's boot.
    pub ended: f64,
    /// Whether open files made it leave the old mount to them.
    pub lazy: bool,
    /// `new`, `unchanged`, or why it failed.
    pub reason: String,
}

/// A state that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read the state of the GlusterFS client: no usable \"{0}\"")]
pub struct StateError(pub &'static str);

impl ClientState {
    /// Reads the `key=value` lines.
    ///
    /// # Errors
    /// The key that is missing or has no usable value.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let value = |key: &'static str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.ok_or(StateError(key))
        };
        let seconds = |key| value(key)?.parse::<f64>().map_err(|_| StateError(key));
        Ok(Self {
            attached: match value("state")? {
                "attached" => true,
                "failed" => false,
                _ => return Err(StateError("state")),
            },
            address: value("address")?.parse().ok(),
            began: seconds("began")?,
            ended: seconds("ended")?,
            lazy: value("lazy")? == "1",
            reason: value("reason")?.to_owned(),
        })
    }
}

/// What waits for healing in one brick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heal {
    /// Files whose other copy missed a write.
    pub pending: u32,
    /// Files that were being written.
    pub dirty: u32,
    /// Changelog attributes that are not zero.
    pub changelog: u32,
}

impl Heal {
    /// Reads what the script of the servers prints.
    ///
    /// # Errors
    /// The count that is missing.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        let count = |key: &'static str| {
            let found = text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
            found.ok_or(StateError(key))
        };
        Ok(Self { pending: count("pending")?, dirty: count("dirty")?, changelog: count("changelog")? })
    }

    /// Whether both copies are the same as far as this brick knows.
    pub fn clean(self) -> bool {
        self == Self::default()
    }
}

/// Where two bricks differ: lines of the listing that only one of them has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Only in the first.
    pub first: Vec<String>,
    /// Only in the second.
    pub second: Vec<String>,
    /// How many entries both have.
    pub same: usize,
}

impl Difference {
    /// Compares two listings.
    pub fn between(first: &str, second: &str) -> Self {
        let [a, b]: [BTreeSet<&str>; 2] = [first, second].map(|text| text.lines().collect());
        let only = |a: &BTreeSet<&str>, b: &BTreeSet<&str>| a.difference(b).map(|&l| l.to_owned()).collect();
        Self { first: only(&a, &b), second: only(&b, &a), same: a.intersection(&b).count() }
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.first.is_empty() && self.second.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state() {
        let text = "state=attached\naddress=198.18.1.2\nbegan=81.20\nended=83.75\nlazy=0\nreason=new\n";
        let state = ClientState::parse(text).unwrap();
        assert!(state.attached && !state.lazy);
        assert_eq!(state.address, Some("198.18.1.2".parse().unwrap()));
        assert!((state.ended - state.began - 2.55).abs() < 1e-9);
        assert_eq!(ClientState::parse("state=attached\n").unwrap_err(), StateError("address"));
        assert_eq!(ClientState::parse("state=maybe\n").unwrap_err(), StateError("state"));
    }

    #[test]
    fn what_waits_for_healing() {
        let heal = Heal::parse("pending 0\ndirty 1\nchangelog 0\n").unwrap();
        assert!(!heal.clean());
        assert!(Heal::parse("pending 0\ndirty 0\nchangelog 0\n").unwrap().clean());
        assert_eq!(Heal::parse("pending x\n").unwrap_err(), StateError("pending"));
    }

    #[test]
    fn bricks_that_differ() {
        let difference = Difference::between("aa  ./x\nbb  ./y\n", "aa  ./x\ncc  ./y\n");
        assert_eq!((difference.same, difference.is_none()), (1, false));
        assert_eq!((difference.first, difference.second), (vec!["bb  ./y".into()], vec!["cc  ./y".into()]));
    }
}
