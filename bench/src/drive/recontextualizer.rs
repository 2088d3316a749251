//! The recontextualizers of both hosts, as the bench controls and observes them.

use std::time::{Duration, Instant};

use ctx::recontext::domain::{NAMESPACE, PREFIX};
use ctx::recontext::{Outcome, Record};
use tokio::sync::mpsc::UnboundedReceiver;

use super::guest::{GuestControl, GuestError};
use super::setup::SERVICE_IMAGE;
use crate::exec::{Exec, ExecError};
use crate::observe::arrivals::{Arrival, Arrivals};
use crate::scenario::Strategy;
use crate::testbed::hypervisor::Slots;
use crate::testbed::site::Site;
use crate::testbed::ssh::{Ssh, SshError};
use crate::testbed::up::Testbed;

/// Where a host's recontextualizer writes one JSON line a run.
const EVENT_LOG: &str = "/var/lib/ctx/events.jsonl";

/// How long a daemon may take to start, stop or run once, emulated.
const DAEMON: Duration = Duration::from_secs(90);

/// How long to wait for an event before a domain's XML is read again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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
    context: Context,
}

/// What the guest has of context, and what the daemons do about it.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Which events make a daemon act, in the words of the domain's metadata: `migrated`, or nothing for runs by
    /// request alone.
    pub on: &'static str,
    /// Whether the guest has a device with the service class.
    pub service: bool,
    /// The devices.
    pub slots: Slots,
    /// How the infrastructure's is replaced.
    pub strategy: Strategy,
}

impl Recontextualizer {
    /// Follows the event logs of both hosts; no daemon is started.
    ///
    /// # Errors
    /// When a host does not answer.
    pub async fn connect(testbed: &Testbed, context: Context) -> Result<Recontextualizer, RecontextError> {
        let hosts = Site::ALL.map(|site| testbed.host(site).ssh.clone());
        let mut logs = Vec::new();
        for host in &hosts {
            host.demand("make the event log", &format!("mkdir -p /var/lib/ctx && touch {EVENT_LOG}"), DAEMON)
                .await?;
            logs.push(host.follow("tail", &["-n", "0", "-F", EVENT_LOG]).await?);
        }
        let [remote, local] =
            <[_; 2]>::try_from(logs).unwrap_or_else(|_| unreachable!("two hosts, two logs"));
        Ok(Recontextualizer { hosts, logs: [remote, local], context })
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

    /// Ends a host's daemon whatever it is doing: a call of libvirt that hangs, say.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(&self, site: Site) -> Result<(), RecontextError> {
        let script = "systemctl kill --signal=KILL ctx 2>/dev/null; systemctl stop ctx";
        Ok(self.host(site).demand("kill the recontextualizer", script, DAEMON).await.map(drop)?)
    }

    /// Asks a host's daemon to recontextualize a domain now, and waits until it has.
    ///
    /// # Errors
    /// When it refuses or fails.
    pub async fn trigger(&self, site: Site, domain: &str) -> Result<(), RecontextError> {
        let script = format!("ctx trigger {domain} --reason bench");
        Ok(self.host(site).demand("recontextualize", &script, DAEMON).await.map(drop)?)
    }

    /// The first run that a host's daemon recorded from `from` on as done or failed.
    ///
    /// # Errors
    /// When none comes within the deadline.
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
        Ok(Arrival { at: arrival.at, value: record })
    }

    /// The same, for a run that has to succeed.
    ///
    /// # Errors
    /// When the record says that it failed.
    pub fn demand(site: Site, record: &Record) -> Result<(), RecontextError> {
        if record.outcome == Outcome::Done {
            return Ok(());
        }
        let reason = record.error.clone().unwrap_or_else(|| "it gave no reason".to_owned());
        Err(RecontextError::Failed { host: site.host_name(), reason })
    }

    /// Gives the guest its service device and says in its metadata what the daemons shall replace.
    ///
    /// # Errors
    /// What libvirt refused.
    pub async fn provide(&self, guest: &GuestControl, site: Site) -> Result<(), RecontextError> {
        // Libvirt itself puts the namespace on it.
        let Context { on, service, slots, strategy } = self.context;
        let metadata = format!(
            "<context><device class=\"infrastructure\" target=\"{}\" bus=\"{}\" strategy=\"{strategy}\" \
             on=\"{on}\"/></context>",
            slots.infrastructure.target, slots.infrastructure.bus
        );
        let name = guest.name().to_owned();
        let service = service.then_some(slots.service);
        guest
            .call(site, "give the guest its context devices", move |connection| {
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
        let name = guest.name().to_owned();
        let mut events = guest.call(site, "subscribe to events", ctx::libvirt::Connection::subscribe).await?;
        let Context { slots, strategy, .. } = self.context;
        for slot in [slots.infrastructure, slots.service] {
            let (domain, target) = (name.clone(), slot.target);
            let stays = slots.drive(strategy) == Some(slot);
            let asked = guest
                .call(site, "take a context device away", move |connection| {
                    let domain = connection.domain(&domain)?;
                    let xml = domain.xml()?;
                    let there = if stays { has_medium(&xml, target) } else { has_disk(&xml, target) };
                    match (there, stays) {
                        (true, true) => {
                            domain.update_device(&slot.xml(None), ctx::libvirt::Scope::Live, false)?;
                        }
                        // It goes by the target alone; but a disk without a source is no valid one.
                        (true, false) => {
                            domain
                                .detach_device(&slot.xml(Some(SERVICE_IMAGE)), ctx::libvirt::Scope::Live)?;
                        }
                        (false, _) => {}
                    }
                    Ok(there)
                })
                .await?;
            let end = tokio::time::Instant::now() + DAEMON;
            while asked && self.still_there(guest, site, &name, target, stays).await? {
                if tokio::time::Instant::now() >= end {
                    return Err(RecontextError::Failed {
                        host: site.host_name(),
                        reason: format!("the guest kept its device {target} for {} s", DAEMON.as_secs()),
                    });
                }
                next(&mut events, end).await;
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
        medium: bool,
    ) -> Result<bool, GuestError> {
        let name = name.to_owned();
        guest
            .call(site, "look for a context device", move |connection| {
                let xml = connection.domain(&name)?.xml()?;
                Ok(if medium { has_medium(&xml, target) } else { has_disk(&xml, target) })
            })
            .await
    }
}

/// Waits until it is time to look at the domain's XML again: any event may be the removal, and the XML decides. Xen's driver
/// gives none, and after a lost connection none comes, so it is read again without one, too.
async fn next<T>(events: &mut UnboundedReceiver<T>, end: tokio::time::Instant) {
    let again = end.min(tokio::time::Instant::now() + LOOK_AGAIN);
    if let Ok(None) = tokio::time::timeout_at(again, events.recv()).await {
        tokio::time::sleep_until(again).await;
    }
}

/// Whether a domain has a disk at a target.
fn has_disk(xml: &str, target: &str) -> bool {
    roxmltree::Document::parse(xml).is_ok_and(|document| disk(&document, target).is_some())
}

/// Whether a domain has a disk at a target with something in it.
fn has_medium(xml: &str, target: &str) -> bool {
    roxmltree::Document::parse(xml).is_ok_and(|document| {
        disk(&document, target).is_some_and(|disk| disk.children().any(|child| child.has_tag_name("source")))
    })
}

fn disk<'a>(document: &'a roxmltree::Document<'_>, target: &str) -> Option<roxmltree::Node<'a, 'a>> {
    document.descendants().filter(|node| node.has_tag_name("disk")).find(|disk| {
        disk.children().any(|child| child.has_tag_name("target") && child.attribute("dev") == Some(target))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_that_have_ended_are_not_asked_for_without_a_pause() {
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        let far = tokio::time::Instant::now() + DAEMON;
        sender.send(1).unwrap();
        // The event ends the wait; that no more come does not.
        next(&mut events, far).await;
        drop(sender);
        let near = tokio::time::Instant::now() + Duration::from_millis(50);
        next(&mut events, near).await;
        assert!(tokio::time::Instant::now() >= near);
    }

    #[test]
    fn a_disk_is_found_by_its_target_alone() {
        let xml = "<domain><devices><disk><target dev='sda' bus='scsi'/></disk></devices></domain>";
        assert!(has_disk(xml, "sda"));
        assert!(!has_disk(xml, "sdb"));
        assert!(!has_disk("<domain", "sda"));
        assert!(!has_medium(xml, "sda"));
        assert!(has_medium(&xml.replace("</disk>", "<source file='/x'/></disk>"), "sda"));
    }
}
