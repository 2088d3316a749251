//! The acknowledgement end to end: the guest's real writer at one end, the host's real reader at the
//! other. Between them is a pseudo-terminal for the port and a Unix socket for the hypervisor's side of
//! it, with a thread that copies, as QEMU does.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ctx::recontext::ack::{Answer, Channel, listen};
use ffs::ack::AckMode;
use ffs::events::{Log, Step};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// A port and the socket that leads to it; one host program at a time, as with QEMU.
struct Port {
    path: PathBuf,
    socket: PathBuf,
    _dir: tempfile::TempDir,
    _slave: std::os::fd::OwnedFd,
}

fn port() -> Port {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut raw = tcgetattr(&pty.slave).unwrap();
    cfmakeraw(&mut raw);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).unwrap();
    let path = std::fs::read_link(format!("/proc/self/fd/{}", pty.slave.as_raw_fd())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("ack.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut master = File::from(pty.master);
    std::thread::spawn(move || {
        // The guest's side lives as long as the test's process.
        let (from_guest, lines) = std::sync::mpsc::channel::<Vec<u8>>();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read) = reader.read(&mut buffer) {
                let _ = from_guest.send(buffer[..read].to_vec());
            }
        });
        for mut host in listener.incoming().flatten() {
            let mut out = host.try_clone().unwrap();
            let questions = std::thread::spawn({
                let mut master = master.try_clone().unwrap();
                move || {
                    let mut buffer = [0; 256];
                    while let Ok(read @ 1..) = host.read(&mut buffer) {
                        master.write_all(&buffer[..read]).unwrap();
                    }
                }
            });
            while !questions.is_finished() {
                if let Ok(bytes) = lines.recv_timeout(Duration::from_millis(5)) {
                    let _ = out.write_all(&bytes);
                }
            }
        }
        let _ = master.flush();
    });
    Port { path, socket, _dir: dir, _slave: pty.slave }
}

fn claimed(generation: u64) -> Step {
    Step::Claimed { device: "sr0".into(), class: "infrastructure".parse().unwrap(), generation }
}

fn visible(number: u64, generation: u64) -> Step {
    Step::Visible {
        generation: number,
        layer: "infrastructure".into(),
        layer_generation: Some(generation),
        changes: 1,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_hears_what_became_of_its_data() {
    let port = port();
    let log = Arc::new(Log::default());
    ffs::ack::start(&AckMode::VirtioSerial(Some(port.path.clone())), &log).unwrap();
    let channel = Channel::VirtioSerial(port.socket.clone());
    let class = "infrastructure".parse().unwrap();
    let patience = Duration::from_secs(30);

    // The host waits before the guest has anything to say.
    let guest = {
        let log = log.clone();
        std::thread::spawn(move || {
            log.write(visible(1, 7));
            log.write(Step::Hook { hook: "mount".into(), generation: 1, millis: 5, result: "ok".into() });
            log.write(Step::HooksDone { generation: 1 });
        })
    };
    let answer = listen(&channel, &class, 7, patience).await;
    assert_eq!((answer.answer, answer.hooks.len()), (Answer::Applied, 1), "{answer:?}");
    assert_eq!((answer.hooks[0].name.as_str(), answer.hooks[0].ms), ("mount", 5));
    guest.join().unwrap();

    // A host program that comes later asks, and hears the same.
    assert_eq!(listen(&channel, &class, 7, patience).await, answer);

    log.write(claimed(8));
    log.write(Step::Refused { origin: "device:/dev/sr0".into(), reason: "the image is not signed".into() });
    let answer = listen(&channel, &class, 8, patience).await;
    assert_eq!(answer.answer, Answer::Refused);
    assert_eq!(answer.why.as_deref(), Some("the image is not signed"));

    // Applied, but its hooks take longer than the host waits. How long the guest takes to say the first, nobody knows: who
    // has heard nothing waits for twice as long.
    log.write(visible(2, 9));
    let mut patience = Duration::from_secs(1);
    loop {
        let answer = listen(&channel, &class, 9, patience).await;
        assert_eq!(answer.answer, Answer::None);
        let why = answer.why.unwrap();
        if why.contains("its hooks still run") {
            break;
        }
        assert!(why.contains("said nothing") && patience < Duration::from_secs(60), "{why}");
        patience *= 2;
    }
}
