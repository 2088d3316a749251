//! Changing the device of a running domain: detach, attach, and the medium of a drive.
//!
//! Each change ends when the domain's XML shows it, never after a time. Where the driver tells of
//! devices by events, these say when to look; libxl tells nothing, so there the XML is read again, soon
//! at first and then less often.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, timeout_at};

use super::device::{Form, Machine, detach_xml, medium_xml};
use super::domain::{Disk, View, Wanted};
use super::run::{RunError, blocking};
use super::xen_disk;
use crate::libvirt::{Domain, Error as LibvirtError, ErrorKind, Event, EventKind, Lifecycle, Scope, Tray};

/// A device of a running domain that is to be changed, and the time there is for it.
pub(super) struct Change<'a> {
    pub(super) domain: &'a Domain,
    pub(super) machine: Machine,
    /// The domain's number, where libvirt does not tell all that Xen knows of its disks.
    pub(super) xen_number: Option<u32>,
    pub(super) wanted: &'a Wanted,
    /// How long the guest may take to let go.
    pub(super) patience: Duration,
}

impl Change<'_> {
    /// Detaches the device and waits until the guest has let go.
    pub(super) async fn detach(
        &self,
        disk: &Disk,
        events: &mut UnboundedReceiver<Event>,
    ) -> Result<(), RunError> {
        if let Some(number) = self.xen_number {
            xen_disk::connected(number, &disk.target).await;
        }
        let deadline = Instant::now() + self.patience;
        let (handle, xml) = (self.domain.clone(), detach_xml(disk));
        let asked = blocking(move || Ok(handle.detach_device(&xml, Scope::Live))).await?;
        let mut pauses = Pauses::of(self.machine);
        loop {
            if self.disk().await?.is_none() {
                return Ok(());
            }
            // Only now: a device that is gone meanwhile is an error to libvirt and none to us.
            asked.clone()?;
            if Instant::now() >= deadline {
                let seconds = self.patience.as_secs();
                return Err(RunError::Deadline { target: disk.target.clone(), seconds });
            }
            self.told(Some(disk), events, deadline.min(Instant::now() + pauses.next())).await?;
        }
    }

    /// Attaches a device with the image. The call returns when the hypervisor has the device;
    /// `DEVICE_ADDED` comes at the same time and says no more.
    pub(super) async fn attach(&self, form: Form, image: &Path) -> Result<(), RunError> {
        if let Some(number) = self.xen_number {
            xen_disk::remove_orphan(number, &self.wanted.target, self.patience).await?;
        }
        let (domain, image) = (self.domain.clone(), image.to_string_lossy().into_owned());
        let xml = form.xml(self.wanted, &image);
        blocking(move || Ok(domain.attach_device(&xml, Scope::Live)?)).await?;
        match self.disk().await? {
            Some(disk) if disk.source.as_deref() == Some(&image) => Ok(()),
            _ => Err(RunError::NotThere(self.wanted.target.clone())),
        }
    }

    /// Puts the image into the drive, or takes out what is in it; nothing is done when it is so already.
    ///
    /// The guest may hold the disc: QEMU then asks it to open the tray, and libvirt waits a few seconds
    /// for that; libxl refuses at once. Both are asked again until the deadline.
    pub(super) async fn medium(
        &self,
        image: Option<&Path>,
        events: &mut UnboundedReceiver<Event>,
    ) -> Result<(), RunError> {
        let deadline = Instant::now() + self.patience;
        let mut refusals = Refusals::default();
        let mut pauses = Pauses::of(self.machine);
        loop {
            let (domain, target) = (self.domain.clone(), self.wanted.target.clone());
            let image = image.map(|image| image.to_string_lossy().into_owned());
            let refusal = blocking(move || change_medium(&domain, &target, image.as_deref())).await?;
            let Some(refusal) = refusal else { return Ok(()) };
            refusals.push(refusal);
            if Instant::now() >= deadline {
                return Err(RunError::Locked {
                    target: self.wanted.target.clone(),
                    seconds: self.patience.as_secs(),
                    refusals: refusals.to_string(),
                });
            }
            self.told(None, events, deadline.min(Instant::now() + pauses.next())).await?;
        }
    }

    /// The device as the domain's XML has it now.
    async fn disk(&self) -> Result<Option<Disk>, RunError> {
        let (handle, target) = (self.domain.clone(), self.wanted.target.clone());
        blocking(move || Ok(View::parse(&handle.xml()?)?.disks.remove(&target))).await
    }

    /// Waits until something was said about the removal of `disk` or about a tray, or until `look_again`.
    async fn told(
        &self,
        disk: Option<&Disk>,
        events: &mut UnboundedReceiver<Event>,
        look_again: Instant,
    ) -> Result<(), RunError> {
        let ours = |alias: &String| disk.is_some_and(|disk| Some(alias) == disk.alias.as_ref());
        while let Ok(event) = timeout_at(look_again, events.recv()).await {
            match event {
                Some(Event::Domain(event)) if event.domain.uuid == self.domain.uuid() => match event.kind {
                    EventKind::DeviceRemoved { alias } if ours(&alias) => return Ok(()),
                    EventKind::DeviceRemovalFailed { alias } if ours(&alias) => {
                        return Err(RunError::Refused(self.wanted.target.clone()));
                    }
                    // Of any drive: another attempt costs little.
                    EventKind::TrayChange { tray: Tray::Opened, .. } if disk.is_none() => return Ok(()),
                    EventKind::Lifecycle(Lifecycle::Stopped(_)) => {
                        return Err(RunError::Skip("the domain stopped meanwhile".into()));
                    }
                    _ => {}
                },
                Some(Event::Domain(_)) => {}
                // The next call to libvirt tells what is wrong with the connection.
                Some(Event::Closed { .. }) | None => {
                    tokio::time::sleep_until(look_again).await;
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// One attempt at a change of media; gives what was answered when it is to be tried again.
fn change_medium(domain: &Domain, target: &str, image: Option<&str>) -> Result<Option<String>, RunError> {
    let drive = |xml: &str| -> Result<Disk, RunError> {
        View::parse(xml)?.disks.remove(target).ok_or_else(|| RunError::NotThere(target.to_owned()))
    };
    let xml = domain.xml()?;
    let before = drive(&xml)?;
    if before.source.as_deref() == image {
        return Ok(None);
    }
    let Some(changed) = medium_xml(&xml, target, image)? else {
        return Err(RunError::NotThere(target.to_owned()));
    };
    let answer = match domain.update_device(&changed, Scope::Live, false) {
        Ok(()) => "libvirt agreed, but the domain's XML is as before".to_owned(),
        Err(error) if passes(&error) => error.message().to_owned(),
        Err(error) => return Err(error.into()),
    };
    let after = drive(&domain.xml()?)?;
    if after.source.as_deref() == image {
        return Ok(None);
    }
    if answer.contains(TRAY_CLOSED)
        && let Some(alias) = &after.alias
    {
        open_tray(domain, alias);
    }
    Ok(Some(answer))
}

/// What QEMU answers when libvirt takes the tray to be open and it is not.
const TRAY_CLOSED: &str = "is not open";

/// Makes libvirt's idea of a tray true again.
///
/// When firmware or a guest's driver resets the bus, QEMU closes an open tray and tells nobody. libvirt,
/// which had it opened for the change of media, then never opens it again, and every further change fails.
fn open_tray(domain: &Domain, alias: &str) {
    let command = serde_json::json!({"execute": "blockdev-open-tray", "arguments": {"id": alias}});
    if let Err(error) = domain.qemu_monitor_command(&command.to_string()) {
        tracing::debug!(%error, alias, "the tray cannot be opened");
    }
}

/// Whether a refusal may be due to the guest, which drivers do not tell by a number of its own.
fn passes(error: &LibvirtError) -> bool {
    matches!(error.kind(), ErrorKind::Other | ErrorKind::Timeout)
}

/// How long to wait for an event before the XML is read again.
struct Pauses {
    next: Duration,
}

impl Pauses {
    const LONGEST: Duration = Duration::from_millis(500);

    fn of(machine: Machine) -> Self {
        let first = if machine.tells_of_devices() { Self::LONGEST } else { Duration::from_millis(50) };
        Self { next: first }
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(Self::LONGEST);
        pause
    }
}

/// What was answered, in order, with how often.
#[derive(Debug, Default)]
struct Refusals(Vec<(String, u32)>);

impl Refusals {
    fn push(&mut self, refusal: String) {
        match self.0.last_mut() {
            Some((last, times)) if *last == refusal => *times += 1,
            _ => self.0.push((refusal, 1)),
        }
    }
}

impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (refusal, times)) in self.0.iter().enumerate() {
            let separator = if index > 0 { ", then " } else { "" };
            write!(f, "{separator}{refusal}")?;
            if *times > 1 {
                write!(f, " ({times} times)")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_events_the_xml_is_read_soon_and_then_less_often() {
        let millis = |machine| {
            let mut pauses = Pauses::of(machine);
            [0; 6].map(|_| pauses.next().as_millis())
        };
        assert_eq!(millis(Machine::XenPvh), [50, 100, 200, 400, 500, 500]);
        assert_eq!(millis(Machine::Qemu), [500; 6]);
    }

    #[test]
    fn every_answer_is_kept() {
        let mut refusals = Refusals::default();
        for refusal in ["locked", "locked", "busy", "locked"] {
            refusals.push(refusal.into());
        }
        assert_eq!(refusals.to_string(), "locked (2 times), then busy, then locked");
    }
}
