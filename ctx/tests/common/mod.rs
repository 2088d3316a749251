//! A real libvirt with the real QEMU driver, inside the test process: `qemu:///embed`.
//!
//! It needs no daemon and no user of its own, only the driver's library and QEMU. One process can
//! have one such driver, so the tests of a binary share it and keep apart by domain name.

// Helpers fail their test by panicking, and not every test binary uses all of them.
#![allow(clippy::unwrap_used, clippy::print_stderr, dead_code, unreachable_pub)]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ctx::libvirt::{Connection, Domain, Event, EventKind};
use tokio::sync::mpsc::UnboundedReceiver;

/// How long a test waits for something that takes milliseconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

struct Embed {
    uri: String,
    /// Kept open: the driver stops its domains with the last connection.
    connection: Connection,
    /// Holds the path.
    _root: tempfile::TempDir,
}

/// A connection to the embedded driver, or `None` with the line that says why the test is skipped.
pub fn embed(test: &str) -> Option<Connection> {
    static EMBED: OnceLock<Result<Embed, String>> = OnceLock::new();
    match EMBED.get_or_init(start) {
        Ok(embed) => Some(embed.connection.clone()),
        Err(reason) => {
            eprintln!("SKIPPED {test}: {reason}");
            None
        }
    }
}

/// The URI of the embedded driver of this process.
pub fn embed_uri(test: &str) -> Option<String> {
    let connection = embed(test)?;
    Some(connection.uri().to_owned())
}

fn start() -> Result<Embed, String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("needs root for libvirt's QEMU driver".into());
    }
    if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        return Err("qemu-system-x86_64 is not installed".into());
    }
    remove_roots_of_the_dead();
    // A short path: QEMU's monitor socket is below it, and a socket's path has 107 bytes.
    let prefix = format!("{ROOT}{}-", std::process::id());
    let root =
        tempfile::Builder::new().prefix(&prefix).tempdir_in("/tmp").map_err(|error| error.to_string())?;
    std::fs::create_dir(root.path().join("etc")).unwrap();
    // libvirt would lift the limit of core files, which root may not do in a container after sudo has lowered it.
    let conf = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
                cgroup_controllers = []\nuser = \"root\"\ngroup = \"root\"\nmax_core = 0\n";
    std::fs::write(root.path().join("etc/qemu.conf"), conf).unwrap();
    let uri = format!("qemu:///embed?root={}", root.path().display());
    let connection = Connection::open(&uri).map_err(|error| error.to_string())?;
    Ok(Embed { uri, connection, _root: root })
}

/// What the drivers' roots are called, before the process.
const ROOT: &str = "ctx-embed-";

/// Removes what processes have left that are gone: the driver is kept to the end of its process, which thus cannot remove its
/// own root.
fn remove_roots_of_the_dead() {
    for entry in std::fs::read_dir("/tmp").unwrap().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(ROOT)?.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            // Another test may be removing it, too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The XML of a small domain without a system in it, with a virtio-scsi controller.
pub fn domain_xml(name: &str, metadata: &str, devices: &str) -> String {
    format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>\
         <metadata>{metadata}</metadata>\
         <os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <controller type='scsi' model='virtio-scsi'/><controller type='usb' model='none'/>\
         <memballoon model='none'/>{devices}</devices></domain>"
    )
}

/// The XML of a CD-ROM.
pub fn cdrom_xml(target: &str, file: &Path) -> String {
    format!(
        "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='{target}' bus='scsi'/><readonly/></disk>",
        file.display()
    )
}

/// A domain that is destroyed when the test ends, also when it fails.
pub struct Guest(pub Domain);

impl Guest {
    pub fn create(connection: &Connection, xml: &str) -> Self {
        Self(connection.create(xml).unwrap())
    }

    /// One whose CPUs never run. Where they do, the firmware resets the SCSI bus at some time while it boots,
    /// and QEMU then closes an open tray without an event.
    pub fn paused(connection: &Connection, xml: &str) -> Self {
        Self(connection.create_paused(xml).unwrap())
    }

    /// What QEMU answers to a command without arguments or with them.
    pub fn qmp(&self, command: &str, arguments: &serde_json::Value) -> serde_json::Value {
        let command = serde_json::json!({"execute": command, "arguments": arguments});
        let answer = self.0.qemu_monitor_command(&command.to_string()).unwrap();
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.destroy();
    }
}

/// The next event of `domain` that `wanted` accepts.
pub fn wait_for<T>(
    events: &mut UnboundedReceiver<Event>,
    domain: &str,
    wanted: impl Fn(&EventKind) -> Option<T>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, events.recv()).await {
                Ok(Some(Event::Domain(event))) if event.domain.name == domain => {
                    if let Some(found) = wanted(&event.kind) {
                        return found;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => panic!("the event channel was closed"),
                Err(elapsed) => panic!("no such event of {domain} in {DEADLINE:?}: {elapsed}"),
            }
        }
    })
}
