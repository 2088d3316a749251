//! A testbed whose machines never come up: who stops them, and what is said meanwhile. QEMU is a script where a machine of a
//! testbed is booted, and itself where the machine is probed.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where it cannot go on")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bench::doctor::{Requirement, Subject, probe_with, require, which};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

/// A kernel may hang for half a minute while the machine is probed; this is for a very busy one.
const LIMIT: Duration = Duration::from_secs(120);

/// A home with planted images, and with a QEMU that keeps the pipe `alive` open for as long as its machine lives.
struct Home {
    folder: tempfile::TempDir,
    /// The lines that a machine says, and then that none lives any more.
    machines: Receiver<String>,
}

impl Home {
    /// `meanwhile` is a shell command that a machine runs before it hangs, and that says a line. None where no testbed can be begun, which it says.
    fn new(test: &str, meanwhile: &str) -> Option<Self> {
        // The private folder's path is not to be too long.
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let cache = folder.path().join("cache");
        common::plant(&cache);
        let report = probe_with(&bench::doctor::Options { afresh: false, cache: Some(cache) });
        let mut needed = [Subject::Qemu, Subject::Namespaces, Subject::Networks, Subject::Ssh]
            .map(Requirement::Works)
            .to_vec();
        needed.push(Requirement::program("mke2fs", "e2fsprogs"));
        if let Err(unmet) = require(&report, &needed) {
            eprintln!("SKIPPED testbed::{test}: {}", unmet.to_string().replace('\n', " "));
            return None;
        }
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let qemu = which("qemu-system-x86_64").unwrap();
        let script = format!(
            "#!/bin/sh\ncase \"$*\" in *-qmp*) ;; *) exec {} \"$@\" ;; esac\n\
             exec 9>\"$HERE/alive\"\n{{ {meanwhile}\n}} >&9 2>&1\nexec sleep 600\n",
            qemu.display()
        );
        fs::write(bin.join("qemu-system-x86_64"), script).unwrap();
        fs::set_permissions(bin.join("qemu-system-x86_64"), fs::Permissions::from_mode(0o755)).unwrap();
        let alive = folder.path().join("alive");
        mkfifo(&alive, Mode::S_IRWXU).unwrap();
        let (sender, machines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(fs::File::open(alive).unwrap()).lines() {
                let _ = sender.send(line.unwrap());
            }
            let _ = sender.send("gone".into());
        });
        Some(Self { folder, machines })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bench"));
        let path = std::env::var("PATH").unwrap();
        command
            .args(words)
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("HERE", self.folder.path())
            .env("BENCH_CACHE", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Begins to boot one machine, and waits until it runs.
    fn up(&self) -> Up {
        let up = Up(Some(self.command(&["testbed", "up", "--hosts", "1"]).spawn().unwrap()));
        assert_eq!(self.machines.recv_timeout(LIMIT).as_deref(), Ok("boots"));
        up
    }

    fn testbed(&self, words: &[&str]) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = self.command(&["testbed"]).args(words).output().unwrap();
        (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }

    /// Waits until no machine lives.
    fn gone(&self) {
        assert_eq!(self.machines.recv_timeout(LIMIT).as_deref(), Ok("gone"), "the machine lives");
    }
}

/// `bench testbed up`, which a failed test does not leave behind.
struct Up(Option<Child>);

impl Up {
    fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn what_ends_up_while_it_boots_ends_its_machines() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let Some(home) = Home::new("what_ends_up_while_it_boots_ends_its_machines", "echo boots") else {
            return;
        };
        let up = home.up();
        up.signal(signal);
        assert!(!up.end().status.success());
        home.gone();
        // The holder ends just after its machines.
        let ended = (Some(0), "No testbed is up.\n".to_owned());
        let deadline = Instant::now() + LIMIT;
        while home.testbed(&["down"]) != ended {
            assert!(Instant::now() < deadline, "{signal}");
        }
    }
}

#[test]
fn a_testbed_that_comes_up_is_there_and_can_be_stopped() {
    let Some(home) = Home::new("a_testbed_that_comes_up_is_there_and_can_be_stopped", "echo boots") else {
        return;
    };
    let up = home.up();
    for words in [&["up"][..], &["ssh", "a"]] {
        let (status, said) = home.testbed(words);
        assert_eq!(status, Some(1), "{words:?}: {said}");
        assert!(said.contains("is coming up"), "{words:?}: {said}");
    }
    assert_eq!(home.testbed(&["down"]), (Some(0), "The testbed is down.\n".into()));
    home.gone();
    let output = up.end();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the testbed did not come up"), "{said}");
    assert_eq!(home.testbed(&["down"]), (Some(0), "No testbed is up.\n".into()));
}

#[test]
fn nobody_outside_can_remove_a_run_s_folder() {
    let test = "nobody_outside_can_remove_a_run_s_folder";
    let empty = |folder: &&str| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if !["/mnt", "/media", "/srv", "/var/opt", "/var/local"].iter().any(empty) {
        eprintln!("SKIPPED testbed::{test}: all of the system's folders are in use");
        return;
    }
    // What removes the folder runs outside, as the end of a session would.
    let meanwhile = "echo boots; read -r word <\"$HERE/removed\"; for word in \"$@\"; do case $word in \
        unix:*) folder=${word#unix:}; folder=${folder%/*}; ls \"$folder/ssh_config\" >\"$HERE/found\" 2>&1 ;; esac; done; echo looked";
    let Some(home) = Home::new(test, meanwhile) else { return };
    let runtime = home.path("run");
    fs::create_dir(&runtime).unwrap();
    mkfifo(&home.path("removed"), Mode::S_IRWXU).unwrap();
    let mut command = home.command(&["testbed", "up", "--hosts", "1"]);
    let up = Up(Some(command.env("XDG_RUNTIME_DIR", &runtime).spawn().unwrap()));
    assert_eq!(home.machines.recv_timeout(LIMIT).unwrap(), "boots");
    fs::remove_dir_all(&runtime).unwrap();
    fs::write(home.path("removed"), "now\n").unwrap();
    assert_eq!(home.machines.recv_timeout(LIMIT).unwrap(), "looked");
    up.signal(Signal::SIGTERM);
    home.gone();
    let found = fs::read_to_string(home.path("found")).unwrap();
    assert!(found.ends_with("/ssh_config\n") && !found.contains("No such"), "{found}");
}

#[test]
fn a_full_disk_leaves_no_testbed() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let Some(home) = Home::new("a_full_disk_leaves_no_testbed", "echo boots") else { return };
    let cache = home.path("cache");
    let known = fs::read(cache.join("virtualization.json")).unwrap();
    if let Err(error) = mount(Some("tmpfs"), &cache, Some("tmpfs"), MsFlags::empty(), Some("size=256k")) {
        eprintln!("SKIPPED testbed::a_full_disk_leaves_no_testbed: cannot mount a tmpfs: {error}");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        common::plant(&cache);
        fs::write(cache.join("virtualization.json"), known).unwrap();
        fill(&cache.join("filler"));
        let (status, said) = home.testbed(&["up", "--hosts", "1"]);
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains("testbed.json: No space left on device"), "{said}");
        assert_eq!(home.testbed(&["down"]), (Some(0), "No testbed is up.\n".into()));
    });
    umount2(&cache, MntFlags::MNT_DETACH).unwrap();
    outcome.unwrap();
}

/// Writes until there is no space.
fn fill(file: &Path) {
    use std::io::Write as _;
    let mut file = fs::File::create(file).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}
