//! Where the guest is, as the libvirts of both hosts say: what counts after a migration that did not end well.
//!
//! A migration that is stopped may have ended all the same, and one that failed may leave the guest paused, at both hosts or at
//! none. So nobody infers where it is from how the call ended.

use std::fmt;

use ctx::libvirt::{Connection, ErrorKind, State};

use super::guest::GuestError;
use super::libvirt::{ANSWER, Libvirt};
use crate::testbed::site::Site;

/// How the guest stands at one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It is not there.
    Absent,
    /// Its CPUs run there.
    Runs,
    /// It is there and does not run, in libvirt's words.
    Halted(String),
    /// The host's libvirt did not say; why.
    Unknown(String),
}

/// How the guest stands at both hosts, in the order of [`Site::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts(pub [Stand; 2]);

/// Where a trial finds the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It runs at this site, and is nowhere else.
    At(Site),
    /// It is at neither.
    Nowhere,
    /// It is halted, at both, or a host does not say.
    Unclear,
}

impl Whereabouts {
    /// Asks both hosts. A host that does not say is part of the answer.
    pub async fn of(name: &str, hosts: &[Libvirt; 2]) -> Whereabouts {
        let [remote, local] = hosts;
        let (remote, local) = tokio::join!(stand(name, remote), stand(name, local));
        Whereabouts([remote, local])
    }

    /// Where it is for the next trial.
    pub fn found(&self) -> Found {
        match &self.0 {
            [Stand::Runs, Stand::Absent] => Found::At(Site::Remote),
            [Stand::Absent, Stand::Runs] => Found::At(Site::Local),
            [Stand::Absent, Stand::Absent] => Found::Nowhere,
            _ => Found::Unclear,
        }
    }
}

async fn stand(name: &str, host: &Libvirt) -> Stand {
    let name = name.to_owned();
    let asked = host.call("ask where the guest runs", ANSWER, move |connection| at(connection, &name)).await;
    asked.unwrap_or_else(|error: GuestError| Stand::Unknown(error.to_string()))
}

/// How a domain stands on a connection.
fn at(connection: &Connection, name: &str) -> Result<Stand, ctx::libvirt::Error> {
    let state = connection.domain(name).and_then(|domain| domain.state());
    Ok(match state {
        Err(error) if error.kind() == ErrorKind::NoDomain => Stand::Absent,
        Err(error) => return Err(error),
        // Defined, and no more.
        Ok(State::ShutOff) => Stand::Absent,
        // Of the others Xen has one for a guest whose CPUs are idle at the moment.
        Ok(State::Running(_) | State::Other(_)) => Stand::Runs,
        Ok(State::Migrating) => Stand::Halted("stands still for a migration".into()),
        Ok(State::Paused(_)) => Stand::Halted("is paused".into()),
        Ok(State::Crashed) => Stand::Halted("has crashed".into()),
        Ok(_) => Stand::Halted("is shutting down or suspended".into()),
    })
}

impl fmt::Display for Whereabouts {
    /// As the rest of a sentence that begins with `now`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        for (site, stand) in Site::ALL.iter().zip(&self.0) {
            let host = site.host_name();
            match stand {
                Stand::Absent => {}
                Stand::Runs => said.push(format!("the guest runs on host {host}")),
                Stand::Halted(how) => said.push(format!("the guest {how} on host {host}")),
                Stand::Unknown(why) => {
                    said.push(format!("host {host} does not say whether it has the guest ({why})"));
                }
            }
        }
        if said.is_empty() {
            return f.write_str("no host has the guest");
        }
        f.write_str(&said.join(", and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two libvirts; `test:///default` has a domain `test` that runs.
    async fn found(hosts: [&str; 2]) -> (Whereabouts, String) {
        let hosts = [Libvirt::new("a", hosts[0].into()), Libvirt::new("b", hosts[1].into())];
        let whereabouts = Whereabouts::of("test", &hosts).await;
        let said = whereabouts.to_string();
        (whereabouts, said)
    }

    #[tokio::test]
    async fn the_guest_is_where_libvirt_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.xml");
        std::fs::write(&file, "<node/>").unwrap();
        let (with, without) = ("test:///default", format!("test://{}", file.display()));
        let (remote, said) = found([with, &without]).await;
        assert_eq!((remote.found(), said.as_str()), (Found::At(Site::Remote), "the guest runs on host a"));
        let (local, said) = found([&without, with]).await;
        assert_eq!((local.found(), said.as_str()), (Found::At(Site::Local), "the guest runs on host b"));
        let (none, said) = found([&without, &without]).await;
        assert_eq!((none.found(), said.as_str()), (Found::Nowhere, "no host has the guest"));
        let (both, said) = found([with, with]).await;
        assert_eq!(both.found(), Found::Unclear);
        assert_eq!(said, "the guest runs on host a, and the guest runs on host b");
        let (unknown, said) = found(["nonsense:///system", with]).await;
        assert_eq!(unknown.found(), Found::Unclear);
        assert!(said.starts_with("host a does not say whether it has the guest ("), "{said}");
        assert!(said.ends_with("), and the guest runs on host b"), "{said}");
    }

    #[test]
    fn a_guest_that_stands_still_is_no_guest_to_measure() {
        let paused = Whereabouts([Stand::Halted("is paused".into()), Stand::Absent]);
        assert_eq!(paused.found(), Found::Unclear);
        assert_eq!(paused.to_string(), "the guest is paused on host a");
    }
}
