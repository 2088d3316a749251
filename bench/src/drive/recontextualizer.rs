//! The recontextualizers of both hosts, as the bench controls and observes them.

use std::time::{Duration, Instant};

use ctx::recontext::domain::{NAMESPACE, PREFIX};
use ctx::recontext::{Outcome, Record};

use super::arrivals::{Arrival, Arrivals};
use super::guest::{GuestControl, GuestError};
use super::setup::SERVICE_IMAGE;
use crate::exec::{Exec, ExecError};
use crate::testbed::hypervisor::Slots;
use crate::testbed::site::Site;
use crate::testbed::ssh::{Ssh, SshError};
use crate::testbed::up::Testbed;

/// Where a host's recontextualizer writes one JSON line a run.
const EVENT_LOG: &str = "/var/lib/ctx/events.jsonl";

/// How long a daemon may take to start, stop or run once, emulated.
const DAEMON: Duration = Duration::from_secs(90);

/// Why the recontextualizer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RecontextError {
    /// A command on the host.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// Libvirt.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// No record.
    #[error("host {host}: no recontextualization was recorded within {seconds} s")]
    Late {
        /// The host.
        host: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// A run of it failed.
    #[error("host {host}: recontextualization failed: {reason}")]
    Failed {
        /// The host.
        host: &'static str,
        /// Its own sentence.
        reason: String,
    },
}

/// Both daemons, and the lines of their event logs as they are written.
pub struct Recontextualizer {
    hosts: [Ssh; 2],
    logs: [Arrivals<String>; 2],
    /// Which events make a daemon act, in the words of the domain's metadata.
    on: &'static str,
    /// Whether the guest has a device with the service class.
    service: bool,
    slots: Slots,
}

impl Recontextualizer {
    /// Follows the event logs of both hosts; no daemon is started. `on` names the events that make
    /// them act: `migrated`, or nothing for runs by request alone; `service` whether the guest has the
    /// service class on a device of its own.
    ///
    /// # Errors
    /// When a host does not answer.
    pub async fn connect(
        testbed: &Testbed,
        on: &'static str,
        service: bool,
        slots: Slots,
    ) -> Result<Recontextualizer, RecontextError> {
        let hosts = Site::ALL.map(|site| testbed.host(site).ssh.clone());
        let mut logs = Vec::new();
        for host in &hosts {
            host.demand("make the event log", &format!("mkdir -p /var/lib/ctx && touch {EVENT_LOG}"), DAEMON)
                .await?;
            logs.push(host.follow("tail", &["-n", "0", "-F", EVENT_LOG]).await?);
        }
        let [remote, local] =
            <[_; 2]>::try_from(logs).unwrap_or_else(|_| unreachable!("two hosts, two logs"));
        Ok(Recontextualizer { hosts, logs: [remote, local], on, service, slots })
    }

    fn host(&self, site: Site) -> &Ssh {
        &self.hosts[site as usize]
    }

    /// Starts a host's daemon; returns when it has subscribed to events.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(&self, site: Site) -> Result<(), RecontextError> {
        Ok(self
            .host(site)
            .demand("start the recontextualizer", "systemctl start ctx", DAEMON)
            .await
            .map(drop)?)
    }

    /// Stops a host's daemon.
    ///
    /// # Errors
    /// When it does not stop.
    pub async fn stop(&self, site: Site) -> Result<(), RecontextError> {
        Ok(self
            .host(site)
            .demand("stop the recontextualizer", "systemctl stop ctx", DAEMON)
            .await
            .map(drop)?)
    }

    /// Asks a host's daemon to recontextualize a domain now, and waits until it has.
    ///
    /// # Errors
    /// When it refuses or fails.
    pub async fn trigger(&self, site: Site, domain: &str) -> Result<(), RecontextError> {
        let script = format!("ctx trigger {domain} --reason bench");
        Ok(self.host(site).demand("recontextualize", &script, DAEMON).await.map(drop)?)
    }

    /// The first finished run that a host's daemon recorded from `from` on.
    ///
    /// # Errors
    /// When none comes within the deadline, or it failed.
    pub async fn record(
        &self,
        site: Site,
        from: Instant,
        deadline: Duration,
    ) -> Result<Arrival<Record>, RecontextError> {
        let host = site.host_name();
        let parse = |line: &String| serde_json::from_str::<Record>(line).ok();
        let finished = |line: &String| parse(line).is_some_and(|r| r.outcome != Outcome::Skipped);
        let late = || RecontextError::Late { host, seconds: deadline.as_secs() };
        let arrival = self.logs[site as usize].first(from, deadline, finished).await.ok_or_else(late)?;
        let record = parse(&arrival.value).ok_or_else(late)?;
        match (&record.outcome, &record.error) {
            (Outcome::Done, _) => Ok(Arrival { at: arrival.at, value: record }),
            (_, error) => Err(RecontextError::Failed {
                host,
                reason: error.clone().unwrap_or_else(|| "it gave no reason".to_owned()),
            }),
        }
    }

    /// Gives the guest its service device and says in its metadata what the daemons shall replace.
    ///
    /// # Errors
    /// What libvirt refused.
    pub async fn provide(&self, guest: &GuestControl, site: Site) -> Result<(), RecontextError> {
        let domain = guest.domain(site).await?;
        // Libvirt itself puts the namespace on it.
        let metadata = format!(
            "<context><device class=\"infrastructure\" target=\"{}\" bus=\"{}\" \
             strategy=\"replace\" on=\"{}\"/></context>",
            self.slots.infrastructure.target, self.slots.infrastructure.bus, self.on
        );
        let name = domain.name().to_owned();
        let service = self.service.then_some(self.slots.service);
        guest
            .call(site, move |connection| {
                let domain = connection.domain(&name)?;
                // The daemons keep a generation in it; writing it again would set that back.
                if domain.metadata(NAMESPACE).is_err() {
                    domain.set_metadata(&metadata, PREFIX, NAMESPACE, ctx::libvirt::Scope::Live)?;
                }
                if let Some(slot) = service
                    && !has_disk(&domain.xml()?, slot.target)
                {
                    domain.attach_device(&slot.xml(Some(SERVICE_IMAGE)), ctx::libvirt::Scope::Live)?;
                }
                Ok(())
            })
            .await?;
        Ok(())
    }

    /// Takes all context devices away from the guest.
    ///
    /// # Errors
    /// What libvirt refused, or that a device is still there after the deadline.
    pub async fn remove(&self, guest: &GuestControl, site: Site) -> Result<(), RecontextError> {
        let name = guest.domain(site).await?.name().to_owned();
        let mut events = guest.call(site, ctx::libvirt::Connection::subscribe).await?;
        for slot in [self.slots.infrastructure, self.slots.service] {
            let (domain, target) = (name.clone(), slot.target);
            let asked = guest
                .call(site, move |connection| {
                    let domain = connection.domain(&domain)?;
                    let there = has_disk(&domain.xml()?, target);
                    if there {
                        domain.detach_device(&slot.xml(None), ctx::libvirt::Scope::Live)?;
                    }
                    Ok(there)
                })
                .await?;
            let end = tokio::time::Instant::now() + DAEMON;
            while asked && self.still_there(guest, site, &name, target).await? {
                // Any event may be the removal; the domain's XML decides.
                if tokio::time::timeout_at(end, events.recv()).await.is_err() {
                    return Err(RecontextError::Failed {
                        host: site.host_name(),
                        reason: format!("the guest kept its device {target} for {} s", DAEMON.as_secs()),
                    });
                }
            }
        }
        Ok(())
    }

    async fn still_there(
        &self,
        guest: &GuestControl,
        site: Site,
        name: &str,
        target: &'static str,
    ) -> Result<bool, GuestError> {
        let name = name.to_owned();
        guest.call(site, move |connection| Ok(has_disk(&connection.domain(&name)?.xml()?, target))).await
    }
}

/// Whether a domain has a disk at a target.
fn has_disk(xml: &str, target: &str) -> bool {
    roxmltree::Document::parse(xml).is_ok_and(|document| {
        document
            .descendants()
            .filter(|node| node.has_tag_name("disk"))
            .flat_map(|disk| disk.children())
            .any(|child| child.has_tag_name("target") && child.attribute("dev") == Some(target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_target_alone() {
        let xml = "<domain><devices><disk><target dev='sda' bus='scsi'/></disk></devices></domain>";
        assert!(has_disk(xml, "sda"));
        assert!(!has_disk(xml, "sdb"));
        assert!(!has_disk("<domain", "sda"));
    }
}
