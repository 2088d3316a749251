//! Output that nobody reads, a full device, what never ends, a torn log, and a daemon without descriptors.

// Helpers outside of `#[test]` functions fail their test by panicking too; of what crates share, not all is used here.
#![allow(clippy::unwrap_used, clippy::pedantic, clippy::print_stderr, unreachable_pub)]

#[path = "../io/tests/support/nosync.rs"]
mod nosync;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn ctx() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("ctx"))
}

/// A pipe whose reader has gone.
fn gone() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

/// A device on which there is no space.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn quiet_or_said(words: &[&str]) {
    let output = ctx().args(words).stdout(gone()).output().unwrap();
    assert_eq!((output.status.code(), says(&output)), (Some(0), String::new()), "{words:?}");
    let output = ctx().args(words).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    let said = says(&output);
    assert!(said.starts_with("ctx: cannot write to standard output: No space left on device"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// A daemon of libvirt's test driver, which does not outlive its test.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start(stderr: Stdio, level: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = "uri = \"test:///default\"\nstate = \"state\"\nsocket = \"ctx.sock\"\n\
                    [[class]]\nname = \"a\"\npriority = 1\ndirectory = \"state\"\n";
        std::fs::write(dir.path().join("ctx.toml"), text).unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let child = ctx()
            .args(["daemon", "--config"])
            .arg(dir.path().join("ctx.toml"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("CTX_LOG", level)
            .stderr(stderr)
            .spawn()
            .unwrap();
        let daemon = Self { child, dir };
        let mut message = [0; 256];
        let length = socket.recv(&mut message).unwrap();
        assert!(message[..length].starts_with(b"READY=1"));
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("ctx.sock")
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn output_into_a_closed_pipe_is_quiet_and_into_a_full_device_fails() {
    for words in [&["--help"][..], &["--version"], &["build", "--help"]] {
        quiet_or_said(words);
    }
    for stderr in [gone, full] {
        assert_eq!(ctx().stderr(stderr()).status().unwrap().code(), Some(64));
        let status = ctx().args(["status", "--socket", "/nonexistent"]).stderr(stderr()).status().unwrap();
        assert_eq!(status.code(), Some(1));
    }
    let daemon = Daemon::start(Stdio::null(), "info");
    let socket = daemon.socket();
    let socket = socket.to_str().unwrap();
    for words in [&["status", "--socket", socket][..], &["status", "--json", "--socket", socket]] {
        quiet_or_said(words);
    }
    // The status is that of what was asked, as if it had been read.
    let status = ctx().args(["trigger", "test", "--socket", socket]).stdout(gone()).status().unwrap();
    assert_eq!(status.code(), Some(2));
    daemon.stop();
}

#[test]
fn the_daemon_outlives_its_terminal() {
    for stderr in [gone, full] {
        let daemon = Daemon::start(stderr(), "trace");
        assert!(ctx().args(["status", "--socket"]).arg(daemon.socket()).output().unwrap().status.success());
        daemon.stop();
    }
}

#[test]
fn what_never_ends_is_refused_by_name_and_limit() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let key = ["build", "--class", "a", "--priority", "1", "--generation", "1", "--instance", "i", "--key"];
    // Mode 0600, as a secret key must have.
    let sparse = at("key");
    File::create(&sparse).unwrap().set_len(8 << 20).unwrap();
    std::fs::set_permissions(&sparse, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (data, out) = (at("data"), at("out.iso"));
    for (words, name, limit) in [
        (vec!["check", "/dev/zero"], "/dev/zero", "4 MiB"),
        (vec!["daemon", "--config", "/dev/zero"], "/dev/zero", "4 MiB"),
        ([&key[..], &[&sparse, &data, &out]].concat(), &*sparse, "1 MiB"),
    ] {
        let output = ctx().args(&words).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = says(&output);
        assert!(said.contains(name) && said.contains(limit), "{words:?}: {said}");
    }
    let config = at("ctx.toml");
    std::fs::write(
        &config,
        "state = \"state\"\n[[class]]\nname = \"a\"\npriority = 1\ndirectory = \"data\"\n",
    )
    .unwrap();
    let hook = ["hook", "--config", &config, "libxl", "g", "migrate", "begin", "-"];
    let output = ctx().args(hook).stdin(File::open("/dev/zero").unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(says(&output).contains("XML on standard input: it has more than 16 MiB"), "{}", says(&output));
}

#[test]
fn a_long_question_is_refused_by_both_sides() {
    let daemon = Daemon::start(Stdio::null(), "info");
    let long = "x".repeat(100 << 10);
    let output =
        ctx().args(["trigger", "test", "--reason", &long, "--socket"]).arg(daemon.socket()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(says(&output).contains("more than 64 KiB"), "{}", says(&output));
    // As another client would; the rest of it is no other question.
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    let _ = writeln!(stream, "{{\"op\":\"trigger\",\"domain\":\"{long}\"}}");
    let answers: Vec<String> = BufReader::new(stream).lines().map_while(Result::ok).collect();
    assert!(answers.len() == 1 && answers[0].contains("more than 64 KiB"), "{answers:?}");
    daemon.stop();
}

#[test]
fn an_image_is_built_where_a_directory_cannot_be_synced() {
    let Some(mounted) = nosync::Mounted::new("an_image_is_built_where_a_directory_cannot_be_synced") else {
        return;
    };
    let build = |out: &Path| {
        let output = ctx()
            .args(["build", "--class", "a", "--priority", "1", "--generation", "1", "--instance", "i"])
            .arg(mounted.path())
            .arg(out)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", says(&output));
    };
    // A name as long as a name can be, too.
    let out = mounted.path().join("n".repeat(255));
    build(&out);
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 1);
    assert!(ctx().arg("check").arg(&out).status().unwrap().success());
    let keys = mounted.path().join("keys");
    assert!(ctx().arg("keygen").arg(&keys).stdout(Stdio::null()).status().unwrap().success());
}

/// How often the program's first thread has waited for something.
fn waits(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

fn descriptors(pid: u32, soft: &str) {
    let limit = format!("--nofile={soft}:");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
    assert!(status.success());
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn without_free_descriptors_the_socket_waits_and_says_so_once() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let daemon = Daemon::start(log.reopen().unwrap().into(), "debug");
    let pid = daemon.child.id();
    let said = || {
        let text = std::fs::read_to_string(log.path()).unwrap();
        text.lines().filter(|line| line.contains("control socket")).map(str::to_owned).collect::<Vec<_>>()
    };
    // It has all of them: none is free any more.
    descriptors(pid, "4");
    let mut client = UnixStream::connect(daemon.socket()).unwrap();
    client.write_all(b"{\"op\":\"status\"}\n").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("a line that says so", || !said().is_empty());
    let before = waits(pid);
    eventually("more tries", || waits(pid) >= before + 3);
    let lines = said();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("Too many open files"), "{lines:?}");
    // Who waited is served when there are some again.
    descriptors(pid, "1024");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("{\"ok\":true"), "{answer}");
    daemon.stop();
}
