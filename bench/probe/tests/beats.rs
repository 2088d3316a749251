//! The program as the bench uses it: real datagrams over loopback.

use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use bench_probe::{Beat, Seen};

#[test]
fn beats_tell_of_content_change_and_absence() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let to = socket.local_addr().unwrap().to_string();
    let path = std::env::temp_dir().join(format!("bench-probe-test-{}", std::process::id()));
    let mut probe = Command::new(env!("CARGO_BIN_EXE_bench-probe"))
        .args(["--interval", "5", "--to", &to, "--file"])
        .arg(&path)
        .spawn()
        .unwrap();
    let until = |wanted: &Seen| {
        let mut buffer = [0; 2048];
        let mut last = None;
        loop {
            let len = socket.recv(&mut buffer).unwrap();
            let beat = Beat::decode(&buffer[..len]).unwrap();
            assert!(last.is_none_or(|last| beat.seq > last));
            last = Some(beat.seq);
            if beat.seen == *wanted {
                return beat;
            }
        }
    };
    let absent = until(&Seen::Error("ENOENT".to_owned()));
    std::fs::write(&path, "198.18.2.10").unwrap();
    let there = until(&Seen::content(b"198.18.2.10"));
    assert!(there.mono_ns > absent.mono_ns && there.real_ns > absent.real_ns);
    probe.kill().unwrap();
    probe.wait().unwrap();
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn an_unreachable_receiver_does_not_stop_it() {
    // Nobody listens on the discard port: each send but the first meets ECONNREFUSED.
    let run = Command::new(env!("CARGO_BIN_EXE_bench-probe"))
        .args(["--interval", "1", "--count", "20", "--to", "127.0.0.1:9", "--file", "/proc/version"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let usage = Command::new(env!("CARGO_BIN_EXE_bench-probe")).arg("--to").arg("host:1").output().unwrap();
    assert_eq!(usage.status.code(), Some(64));
}
