//! Output that nobody reads, a full device, what never ends, long scripts, and a daemon without descriptors.

#![allow(clippy::unwrap_used)] // In what the tests share, too.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Mounted, eventually, succeeded, tree};
use ffs::control::{Request, Response};
use ffs::events::{Event, Step};

const FFS: &str = env!("CARGO_BIN_EXE_ffs");

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
fn quiet_or_said(command: impl Fn() -> Command) {
    let output = command().stdout(gone()).output().unwrap();
    assert_eq!((output.status.code(), says(&output)), (Some(0), String::new()));
    let output = command().stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = says(&output);
    assert!(said.starts_with("ffs: cannot write to standard output: No space left on device"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn help_into_a_closed_pipe_is_quiet_and_into_a_full_device_fails() {
    for words in [&["--help"][..], &["--version"], &["layer", "apply", "--help"]] {
        quiet_or_said(|| {
            let mut command = Command::new(FFS);
            command.args(words);
            command
        });
    }
    // Nothing is left to say it on.
    for stderr in [gone, full] {
        assert_eq!(Command::new(FFS).stderr(stderr()).status().unwrap().code(), Some(64));
        let status = Command::new(FFS).args(["status", "/nonexistent"]).stderr(stderr()).status().unwrap();
        assert_eq!(status.code(), Some(1));
    }
}

#[test]
fn status_into_a_closed_pipe_is_quiet_and_into_a_full_device_fails() {
    needs_mount!("status_into_a_closed_pipe_is_quiet_and_into_a_full_device_fails");
    let mounted = Mounted::new(&[]);
    for words in [&["status"][..], &["status", "--json"]] {
        quiet_or_said(|| {
            let mut command = Command::new(FFS);
            command.args(words).arg(mounted.at("")).arg("--socket").arg(mounted.dir.path().join("socket"));
            command
        });
    }
}

#[test]
fn the_daemon_outlives_its_terminal() {
    needs_mount!("the_daemon_outlives_its_terminal");
    for stderr in [gone, full] {
        let mut mounted = Mounted::prepared(Path::new(FFS), &[], "", |command, _| {
            command.env("FFS_LOG", "trace").stderr(stderr());
        });
        mounted.layer("add", &format!("a=dir:{}", mounted.dir.path().display()));
        assert_eq!(mounted.status().layers.len(), 1);
        assert_eq!(mounted.terminate(), Some(0));
    }
}

#[test]
fn a_torn_event_log_goes_on() {
    needs_mount!("a_torn_event_log_goes_on");
    let whole = "{\"mono_ns\":1,\"real_ns\":2,\"step\":\"unmounted\"}\n";
    let mut mounted = Mounted::prepared(Path::new(FFS), &[], "", |_, dir| {
        std::fs::write(dir.join("events"), format!("{whole}{{\"mono_ns\":3,\"real")).unwrap();
    });
    assert_eq!(mounted.terminate(), Some(0));
    let log = ctx_io::jsonl::read::<Event>(&mounted.dir.path().join("events")).unwrap();
    let steps: Vec<Step> = log.records.into_iter().map(|event| event.step).collect();
    assert_eq!(steps[0], Step::Unmounted);
    assert!(matches!(steps[1], Step::Mounted { .. }), "{steps:?}");
    assert_eq!(steps.last(), Some(&Step::Unmounted));
    assert_eq!(log.damaged.iter().map(|damaged| damaged.line).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_full_event_log_is_in_the_status_until_there_is_room() {
    needs_mount!("a_full_event_log_is_in_the_status_until_there_is_room");
    let dir = tempfile::tempdir().unwrap();
    let a = common::tree(&dir.path().join("a"), &[("x", "")]);
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let (none, two_pages) = (nix::mount::MsFlags::empty(), Some("size=8k"));
    nix::mount::mount(Some("x"), &small, Some("tmpfs"), none, two_pages).unwrap();
    let _unmounted = common::OnDrop(|| {
        let _ = nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH);
    });
    let layer = format!("a=dir:{},watch=off", a.display());
    let to = small.join("log");
    let mounted = Mounted::prepared(Path::new(FFS), &["--layer", &layer], "", |_, dir| {
        std::os::unix::fs::symlink(&to, dir.join("events")).unwrap();
    });
    assert_eq!(mounted.status().reduced, [] as [String; 0]);
    // The page that the log does not have.
    std::fs::write(small.join("filler"), [0; 4096]).unwrap();
    let mut turn = 0;
    let mut switch = || {
        turn += 1;
        std::fs::write(a.join("x"), turn.to_string()).unwrap();
        let answer = mounted.ask(&Request::Reload);
        assert!(matches!(answer, Response::Status(_)), "{answer:?}");
    };
    common::eventually("the log is full", || {
        switch();
        let reduced = mounted.status().reduced;
        let said = |line: &String| line.contains("event log") && line.contains("No space left");
        reduced.iter().any(said).then_some(())
    });
    std::fs::remove_file(small.join("filler")).unwrap();
    switch();
    assert_eq!(mounted.status().reduced, [] as [String; 0]);
}

#[test]
fn an_event_log_that_is_a_pipe_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = Command::new(FFS);
    command.args(["mount", "--foreground", "--event-log"]).arg(&pipe).arg(dir.path());
    let output = common::in_time("a pipe that nobody reads", move || command.output().unwrap());
    let said = says(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("pipe") && said.contains("name a regular file"), "{said}");
}

#[test]
fn what_never_ends_is_refused_by_name_and_limit() {
    let dir = tempfile::tempdir().unwrap();
    let trusting = dir.path().join("trusting.toml");
    std::fs::write(&trusting, "trust = [\"/dev/zero\"]\n").unwrap();
    let trusting = trusting.to_str().unwrap();
    let socket = dir.path().join("socket");
    let mount = dir.path().join("mnt");
    std::fs::create_dir(&mount).unwrap();
    for (words, limit) in [
        (&["mount", "--foreground", "--config", "/dev/zero"][..], "4 MiB"),
        (&["mount", "--foreground", "--config", trusting], "1 MiB"),
        (&["layer", "apply"], "16 MiB"),
    ] {
        let mut command = Command::new(FFS);
        command.args(words).arg("--socket").arg(&socket).arg(&mount);
        if words[0] == "layer" {
            command.arg("/dev/zero");
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let said = says(&output);
        assert!(said.contains("`/dev/zero`") && said.contains(limit), "{words:?}: {said}");
    }
}

#[test]
fn a_script_of_a_thousand_lines_is_one_switch_and_of_5000_is_refused() {
    needs_mount!("a_script_of_a_thousand_lines_is_one_switch_and_of_5000_is_refused");
    let mounted = Mounted::new(&[]);
    let layer = tree(&mounted.dir.path().join("l".repeat(100)), &[("f", "x")]);
    let apply = |lines: usize| {
        let script = mounted.dir.path().join("script");
        let lines = (0..lines).map(|n| format!("add layer{n}=dir:{},watch=off\n", layer.display()));
        std::fs::write(&script, lines.collect::<String>()).unwrap();
        mounted.ffs(&["layer", "apply", mounted.at("").to_str().unwrap(), script.to_str().unwrap()])
    };
    let generation = mounted.status().generation;
    let output = apply(5000);
    assert_eq!(output.status.code(), Some(1));
    assert!(says(&output).contains("5000 operations are more than 4096"), "{}", says(&output));
    assert_eq!(mounted.status().generation, generation);
    succeeded(&apply(1000));
    let status = mounted.status();
    assert_eq!((status.layers.len(), status.generation), (1000, generation + 1));
    assert_eq!(mounted.read("f"), "x");
}

#[test]
fn a_request_beyond_the_limit_is_refused_by_both_sides() {
    needs_mount!("a_request_beyond_the_limit_is_refused_by_both_sides");
    let mounted = Mounted::new(&[]);
    let socket = mounted.dir.path().join("socket");
    let ops = vec![ffs::edit::Op::Remove("x".repeat(17 << 20))];
    let request = Request::Apply { ops, if_generation: None };
    let error = ffs::control::ask(&socket, &request).unwrap_err().to_string();
    assert!(error.contains("16 MiB"), "{error}");
    // As another client would.
    let line = serde_json::to_vec(&request).unwrap();
    let mut stream = UnixStream::connect(&socket).unwrap();
    // It need not be read to its end.
    let _ = stream.write_all(&line);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    let Response::Error(reason) = serde_json::from_str(&answer).unwrap() else { panic!("{answer}") };
    assert!(reason.contains("16 MiB"), "{reason}");
    // And it still serves.
    assert_eq!(mounted.status().layers.len(), 0);
}

/// How often the threads of this name have waited for something.
fn waits(pid: u32, name: &str) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten().map(|task| task.path());
    let named =
        tasks.filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name));
    let counts = named.map(|task| {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        line.trim().parse::<u64>().unwrap()
    });
    counts.sum()
}

fn descriptors(pid: u32, soft: &str) {
    let limit = format!("--nofile={soft}:");
    let status = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
    assert!(status.success());
}

#[test]
fn without_free_descriptors_the_socket_waits_and_says_so_once() {
    needs_mount!("without_free_descriptors_the_socket_waits_and_says_so_once");
    let log = tempfile::NamedTempFile::new().unwrap();
    let mounted = Mounted::prepared(Path::new(FFS), &[], "", |command, _| {
        command.env("FFS_LOG", "debug").stderr(log.reopen().unwrap());
    });
    let said = || {
        let text = std::fs::read_to_string(log.path()).unwrap();
        text.lines().filter(|line| line.contains("control")).map(str::to_owned).collect::<Vec<_>>()
    };
    let pid = mounted.pid();
    // It has all of them: none is free any more. (poll(2) takes no more entries than the limit.)
    descriptors(pid, "4");
    let mut client = UnixStream::connect(mounted.dir.path().join("socket")).unwrap();
    client.write_all(b"\"status\"\n").unwrap();
    eventually("a line that says so", || (!said().is_empty()).then_some(()));
    let before = waits(pid, "control");
    // It tries again some times more, and each time it waits.
    eventually("more tries", || (waits(pid, "control") >= before + 3).then_some(()));
    let lines = said();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].contains("cannot accept connections") && lines[0].contains("Too many open files"),
        "{lines:?}"
    );
    // Who waited is served when there are some again.
    descriptors(pid, "1024");
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(matches!(serde_json::from_str(&answer).unwrap(), Response::Status(_)), "{answer}");
}
