//! A disk of a Xen domain as Xen itself has it, where libvirt does not tell.
//!
//! **Arrival.** A domain that has migrated here runs before its block drivers have connected again. libxl
//! takes a disk away by setting the backend's state to *closing*; a driver that is just reconnecting
//! makes the backend set it to *connected* after that, nobody closes anything, and libxl waits 10 s
//! (`LIBXL_DESTROY_TIMEOUT`) before it takes the disk by force. So the driver is waited for first.
//!
//! **Orphans.** When libvirtd dies while libxl attaches a disk, xenstore has the disk and no XML has it: the
//! target stays taken, libvirt detaches nothing there and attaches nothing ("failed to attach disk"), and
//! a restart of libvirtd changes none of that. `xl`, which is on every Xen host, removes it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use ctx_format::xenstore::{Client, Request, SOCKET};
use tokio::process::Command;
use tokio::time::timeout;

use super::run::{RunError, blocking};

/// xenstored answers at once or is ill.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a guest that has arrived may take to connect its disk again; after that libxl decides.
const RECONNECT: Duration = Duration::from_secs(30);

/// Waits until the guest's driver has connected to its disk, or has given it up.
pub(super) async fn connected(domain: u32, target: &str) {
    let Some(number) = number(target) else { return };
    let waited = blocking(move || Ok(await_driver(Path::new(SOCKET), domain, number, RECONNECT))).await;
    if let Ok(Err(error)) = waited {
        // Without it a detach takes longer, and nothing else.
        tracing::debug!(%error, target, "xenstore does not tell whether the guest has connected its disk");
    }
}

/// Follows the driver's state until it is none on the way to *connected*, at most `patience`.
fn await_driver(socket: &Path, domain: u32, number: u32, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let state = format!("/local/domain/{domain}/device/vbd/{number}/state");
    let mut client = Client::connect(socket, patience)?;
    client.call(Request::Watch(&state))?;
    loop {
        // The first event comes at once.
        client.event()?;
        match client.call(Request::Read(&state)) {
            Ok(state) if is_connecting(&state) => {}
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.stream().set_read_timeout(Some(left))?;
    }
}

/// Whether a driver with this state is about to connect: initialising, waiting for the other end,
/// initialised (`enum xenbus_state`, `xen/include/public/io/xenbus.h`).
fn is_connecting(state: &[u8]) -> bool {
    matches!(state, b"1" | b"2" | b"3")
}

/// Removes what libxl holds at a target, if it holds anything. Only for a target that the domain's XML
/// does not have. Where xenstore cannot be asked, nothing is done: libxl refuses what would not go.
///
/// # Errors
/// [`RunError::Orphan`] when the disk cannot be removed, twice within `patience`.
pub(super) async fn remove_orphan(domain: u32, target: &str, patience: Duration) -> Result<(), RunError> {
    let fail = |why: String| RunError::Orphan { domain, target: target.to_owned(), why };
    // A target that libxl has no number for is none of its disks.
    let Some(number) = number(target) else { return Ok(()) };
    match blocking(move || Ok(is_held(Path::new(SOCKET), domain, number))).await? {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(error) => {
            tracing::debug!(%error, target, "xenstore does not tell whether libxl holds a disk there");
            return Ok(());
        }
    }
    tracing::warn!(domain, target, "libxl holds a disk there that libvirt does not know of: it is removed");
    // A driver that has the disk is asked first; one that never came to it does not answer in libxl's 10 s.
    let mut refusal = String::new();
    for options in [&[][..], &["--force"]] {
        let mut xl = Command::new("xl");
        xl.arg("block-detach").args(options).arg(domain.to_string()).arg(number.to_string());
        match timeout(patience, xl.kill_on_drop(true).output()).await {
            Ok(Ok(output)) if output.status.success() => return Ok(()),
            Ok(Ok(output)) => {
                refusal = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(Err(error)) => return Err(fail(error.to_string())),
            Err(_) => refusal = format!("it took longer than {} s", patience.as_secs()),
        }
    }
    Err(fail(refusal))
}

/// Whether libxl has a virtual block device of that number for a domain (Xen's `docs/misc/xenstore-paths`,
/// `/libxl/$DOMID/device/$KIND/$DEVID`).
fn is_held(socket: &Path, domain: u32, number: u32) -> io::Result<bool> {
    let mut client = Client::connect(socket, PATIENCE)?;
    match client.call(Request::Read(&format!("/libxl/{domain}/device/vbd/{number}"))) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The number of a virtual block device by its name, `xvda`, …, `xvdz`, `xvdaa`, … (xen-vbd-interface(7)).
fn number(target: &str) -> Option<u32> {
    let letters = target.strip_prefix("xvd").filter(|letters| (1..=3).contains(&letters.len()))?;
    let disk = letters.bytes().try_fold(0_u32, |disk, letter| {
        letter.is_ascii_lowercase().then(|| disk * 26 + u32::from(letter - b'a') + 1)
    })? - 1;
    Some(if disk < 16 { (202 << 8) | (disk << 4) } else { (1 << 28) | (disk << 8) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn names_have_the_numbers_of_the_interface() {
        let numbers = ["xvda", "xvdd", "xvdp", "xvdq", "xvdz", "xvdaa"].map(number);
        let expected =
            [51712, 51760, 51952, (1 << 28) | (16 << 8), (1 << 28) | (25 << 8), (1 << 28) | (26 << 8)];
        assert_eq!(numbers, expected.map(Some));
        assert_eq!(["sda", "xvd", "xvd1", "xvdaaaa"].map(number), [None; 4]);
    }

    /// xenstored, as far as giving these answers to whatever is asked goes: type, id and payload.
    fn answers(answers: &'static [(u32, u32, &'static [u8])]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for (kind, id, payload) in answers {
                let words = [*kind, *id, 0, u32::try_from(payload.len()).unwrap()].map(u32::to_ne_bytes);
                stream.write_all(&[&words.concat(), *payload].concat()).unwrap();
            }
            // Until the client goes.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        (folder, socket)
    }

    const READ: u32 = 2;
    const WATCH: u32 = 4;
    const EVENT: u32 = 15;
    const ERROR: u32 = 16;

    #[test]
    fn xenstore_tells_whether_libxl_has_the_disk() {
        let (_folder, socket) = answers(&[(READ, 1, b"")]);
        assert!(is_held(&socket, 1, 51760).unwrap());
        let (_folder, socket) = answers(&[(ERROR, 1, b"ENOENT\0")]);
        assert!(!is_held(&socket, 1, 51760).unwrap());
        let (_folder, socket) = answers(&[(ERROR, 1, b"EACCES\0")]);
        assert_eq!(is_held(&socket, 1, 51760).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_driver_is_waited_for_until_it_has_connected() {
        let long = Duration::from_secs(60);
        let (_folder, socket) = answers(&[
            (WATCH, 1, b"OK\0"),
            (EVENT, 0, b"state\0ctx\0"),
            (READ, 2, b"1"),
            (EVENT, 0, b"state\0ctx\0"),
            (READ, 3, b"3"),
            (EVENT, 0, b"state\0ctx\0"),
            (READ, 4, b"4"),
        ]);
        await_driver(&socket, 1, 51760, long).unwrap();
        // A disk that the guest never had.
        let (_folder, socket) =
            answers(&[(WATCH, 1, b"OK\0"), (EVENT, 0, b"state\0ctx\0"), (ERROR, 2, b"ENOENT\0")]);
        await_driver(&socket, 1, 51760, long).unwrap();
        // One that never gets there.
        let (_folder, socket) = answers(&[(WATCH, 1, b"OK\0"), (EVENT, 0, b"state\0ctx\0"), (READ, 2, b"3")]);
        let error = await_driver(&socket, 1, 51760, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{error}");
    }
}
