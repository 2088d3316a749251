//! What the end-to-end tests share: a real mount, made by the real program, gone when dropped.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)] // Not every test uses all of it.

pub mod site;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use ctx_format::ack::Ack;
use ctx_format::sign::SecretKey;
use ctx_format::{ContextData, ImageOptions, Label};
use ffs::control::Status;
use ffs::events::{Event, Step};

/// A mounted `ffs`.
pub struct Mounted {
    pub dir: tempfile::TempDir,
    child: Child,
}

/// Why no mount can be made here, if so.
pub fn cannot_mount() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root");
    }
    (!Path::new("/dev/fuse").exists()).then_some("needs /dev/fuse")
}

/// Returns from a test that cannot run here, and says so.
#[macro_export]
macro_rules! needs_mount {
    ($name:literal) => {
        if let Some(reason) = common::cannot_mount() {
            eprintln!("SKIPPED {}: {reason}", $name);
            return;
        }
    };
}

/// This machine's kernel: `(6, 16)` is Linux 6.16.
pub fn linux() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Checks what is said of a mount by root: all works.
#[track_caller]
pub fn assert_all_works(abilities: &[String], reduced: &[String]) {
    let able = ["device_events", "follow_directories", "inotify", "readdirplus", "prefetch", "allow_other"];
    let wanted = std::collections::BTreeSet::from(able);
    assert_eq!(abilities.iter().map(String::as_str).collect::<std::collections::BTreeSet<_>>(), wanted);
    assert_eq!(reduced, [] as [String; 0]);
}

/// How long a test waits for what takes milliseconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `check` gives something; fails after [`DEADLINE`].
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Does something on a thread of its own, which may hang, and gives what comes of it.
#[track_caller]
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tx, rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || tx.send(work()));
    rx.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Runs something however a scope ends, so that a failure ends the threads that wait for it too.
pub struct OnDrop<F: FnMut()>(pub F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Writes files into a new directory.
pub fn tree(at: &Path, files: &[(&str, &str)]) -> PathBuf {
    for (path, content) in files {
        let path = at.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    at.to_owned()
}

/// A context image.
pub fn image(class: &str, priority: u16, generation: u64, files: &[(&str, &str)]) -> Vec<u8> {
    signed_image(class, priority, generation, files, None)
}

/// A context image with a key's signature.
pub fn signed_image(
    class: &str,
    priority: u16,
    generation: u64,
    files: &[(&str, &str)],
    key: Option<&SecretKey>,
) -> Vec<u8> {
    let data = ContextData {
        class: class.parse().unwrap(),
        priority: ctx_format::Priority(priority),
        generation,
        instance_id: "test".parse().unwrap(),
        files: files
            .iter()
            .map(|(path, content)| (path.parse().unwrap(), ctx_format::File::private(*content)))
            .collect(),
    };
    ctx_format::write_signed_iso(&data, &ImageOptions { label: Label::Rectx }, key).unwrap()
}

impl Mounted {
    /// Mounts in the foreground and waits until it is ready.
    pub fn new(args: &[&str]) -> Self {
        Self::with_config(args, "")
    }

    pub fn with_config(args: &[&str], config: &str) -> Self {
        Self::of(Path::new(env!("CARGO_BIN_EXE_ffs")), args, config)
    }

    /// With this program in place of the one that was built.
    pub fn of(program: &Path, args: &[&str], config: &str) -> Self {
        Self::prepared(program, args, config, |_, _| {})
    }

    /// Lets the test change the command, and put files into its directory, before it runs.
    pub fn prepared(
        program: &Path,
        args: &[&str],
        config: &str,
        prepare: impl FnOnce(&mut Command, &Path),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("mnt")).unwrap();
        // Not where the machine's own ffs has it, unless a test says so.
        let ack = if config.contains("ack = ") {
            String::new()
        } else {
            format!("ack = \"file:{}\"\n", dir.path().join("ack.json").display())
        };
        std::fs::write(dir.path().join("ffs.toml"), ack + config).unwrap();
        let mut command = Command::new(program);
        command
            .arg("mount")
            .arg("--foreground")
            .arg("--config")
            .arg(dir.path().join("ffs.toml"))
            .arg("--socket")
            .arg(dir.path().join("socket"))
            .arg("--event-log")
            .arg(dir.path().join("events"))
            .args(args)
            .arg(dir.path().join("mnt"))
            .stdin(Stdio::null());
        prepare(&mut command, dir.path());
        let child = command.spawn().unwrap();
        let mut mounted = Self { dir, child };
        eventually("ready", || {
            assert!(mounted.child.try_wait().unwrap().is_none(), "ffs ended early");
            mounted.events().iter().any(|event| event.step == Step::Ready).then_some(())
        });
        mounted
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path in the mount.
    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("mnt").join(path)
    }

    pub fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap()
    }

    /// Runs `ffs` with the mount's socket.
    pub fn ffs(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ffs"));
        command.args(args).arg("--socket").arg(self.dir.path().join("socket"));
        command.output().unwrap()
    }

    /// Asks over its socket, without a program between.
    pub fn ask(&self, request: &ffs::control::Request) -> ffs::control::Response {
        ffs::control::ask(&self.dir.path().join("socket"), request).unwrap()
    }

    /// Lets another program take over, the one that was built if none is named.
    pub fn upgrade(&self, program: Option<&Path>) -> Output {
        let program = program.unwrap_or(Path::new(env!("CARGO_BIN_EXE_ffs")));
        self.ffs(&["upgrade", self.at("").to_str().unwrap(), "--program", program.to_str().unwrap()])
    }

    pub fn layer(&self, verb: &str, what: &str) {
        let output = self.ffs(&["layer", verb, self.at("").to_str().unwrap(), what]);
        succeeded(&output);
    }

    pub fn status(&self) -> Status {
        let output = self.ffs(&["status", "--json", self.at("").to_str().unwrap()]);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    pub fn events(&self) -> Vec<Event> {
        let text = std::fs::read_to_string(self.dir.path().join("events")).unwrap_or_default();
        // The last line may be half written.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What was acknowledged, by the file.
    pub fn acks(&self) -> Vec<Ack> {
        let text = std::fs::read(self.dir.path().join("ack.json")).unwrap_or_default();
        text.split_inclusive(|byte| *byte == b'\n').map(|line| Ack::parse(line).unwrap()).collect()
    }

    pub fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.at(dir)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Ends it by a signal and returns its exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait()
    }

    /// Answers nobody, and reads nothing, from now on until this is dropped.
    pub fn stopped(&self) -> OnDrop<impl FnMut() + use<>> {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        let stopped = OnDrop(move || nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap());
        // The signal is sent when kill(2) returns; each thread stops before it goes on in the program. One that is in the kernel and
        // waits there uninterruptibly, for an answer of another thread, is as good as stopped.
        let goes_on = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['T', 'D', 'Z', 'X']))
        };
        eventually("all threads stop", || {
            let mut tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
            (!tasks.any(goes_on)).then_some(())
        });
        stopped
    }

    /// Waits for its end and returns its exit code.
    pub fn wait(&mut self) -> Option<i32> {
        eventually("the end of ffs", || self.child.try_wait().unwrap()).code()
    }

    pub fn is_mounted(&self) -> bool {
        let point = self.dir.path().join("mnt");
        let table = std::fs::read("/proc/self/mountinfo").unwrap();
        ffs::kernel::mountinfo::parse(&table).any(|entry| entry.point == point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(5);
            while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let _ = nix::mount::umount2(&self.dir.path().join("mnt"), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Threads of an `ffs` that wait for a disk.
pub fn wait_for_disks(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let disk = |task: &Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "disk\n");
    let calls = tasks
        .map(|task| task.path())
        .filter(|task| disk(task))
        .flat_map(|task| std::fs::read_to_string(task.join("syscall")));
    // One that has nothing to do is in futex(2), number 202 on x86-64, which is all that this project is built for.
    calls.filter(|call| call != "running\n" && !call.starts_with("202 ")).count()
}

#[track_caller]
pub fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A network of this thread's own, which has what it starts too. There every port is free, and stays so between the choice
/// of one and the program that binds it.
pub fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(
        up.is_ok_and(|status| status.success()),
        "`ip` of the package iproute2 sets up the network of the test"
    );
}

/// Descriptors, threads and resident bytes of a process.
pub fn usage(pid: u32) -> (usize, usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (count("fd"), count("task"), pages * 4096)
}

/// The same once its session has all its threads, which it starts one after the other: one for each connection with the
/// kernel but the one aside.
pub fn usage_at_rest(pid: u32) -> (usize, usize, usize) {
    eventually("a thread for each connection but the one aside", || {
        let of = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().flatten();
        let names = of("task").flat_map(|task| std::fs::read_to_string(task.path().join("comm")));
        let threads = names.filter(|name| name.starts_with("fuser-")).count();
        let links = of("fd").flat_map(|fd| std::fs::read_link(fd.path()));
        let connections = links.filter(|link| link == Path::new("/dev/fuse")).count();
        (threads + 1 >= connections).then(|| usage(pid))
    })
}

/// A loop device of this test's own, with an image on it, as a drive with a disc; gone when dropped.
///
/// It is not one that `losetup --find` gives: a device that is ejected is free, and whoever else looks for a free one on this
/// machine takes it. It is made anew, with a number that nobody chooses.
pub struct Drive {
    pub device: PathBuf,
    number: u32,
    files: Vec<tempfile::NamedTempFile>,
}

impl Drive {
    /// `None` where loop devices cannot be had.
    pub fn with(image: &[u8]) -> Option<Self> {
        let number = (1000..100_000).step_by(1000).find_map(|base| {
            let number = base + std::process::id() % 1000;
            loop_control(LOOP_CTL_ADD, number).then_some(number)
        })?;
        let mut drive = Self { device: format!("/dev/loop{number}").into(), number, files: Vec::new() };
        if !drive.device.exists() {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            // No devtmpfs is mounted there.
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            mknod(&drive.device, SFlag::S_IFBLK, mode, makedev(7, number.into())).ok()?;
        }
        drive.insert(image);
        Some(drive)
    }

    pub fn name(&self) -> &str {
        self.device.file_name().unwrap().to_str().unwrap()
    }

    pub fn eject(&self) {
        assert!(Command::new("losetup").arg("-d").arg(&self.device).status().unwrap().success());
    }

    pub fn insert(&mut self, image: &[u8]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image).unwrap();
        // The last user of the old disc may still be closing it.
        eventually("the insertion", || {
            let status = Command::new("losetup")
                .arg(&self.device)
                .arg(file.path())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            status.success().then_some(())
        });
        self.files.push(file);
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        // Whoever reads it last may still be closing it.
        while !loop_control(LOOP_CTL_REMOVE, self.number) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = std::fs::remove_file(&self.device);
    }
}

/// Commands of `linux/loop.h`: the first fails when the number is taken, the second while the device is in use.
const LOOP_CTL_ADD: u32 = 0x4c80;
const LOOP_CTL_REMOVE: u32 = 0x4c81;

/// Gives the kernel's driver a command on a number; whether it did it.
fn loop_control(command: u32, number: u32) -> bool {
    let script = "open(my $control, '+<', '/dev/loop-control') or exit 1; ioctl($control, 0 + $ARGV[0], 0 + $ARGV[1]) or exit 1";
    let status = Command::new("/usr/bin/perl")
        .args(["-e", script, &command.to_string(), &number.to_string()])
        .status();
    status.is_ok_and(|status| status.success())
}
