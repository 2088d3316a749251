//! A mount by a user who is not root: fusermount3 does what needs root, and what it cannot do is
//! said.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::{eventually, image, tree};
use ffs::control::Status;

/// `nobody`: a user who owns nothing else.
const USER: u32 = 65534;

/// What a user has: a home, and a place for sockets.
struct Home {
    dir: tempfile::TempDir,
    program: PathBuf,
}

/// Makes `/dev/fuse` what udev makes of it, open to everybody, for this thread and what it starts:
/// containers often have it for root alone.
fn open_device(dir: &Path) {
    use nix::mount::{MsFlags, mount};
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let folder = dir.join("dev");
    std::fs::create_dir(&folder).unwrap();
    mount(Some("tmpfs"), &folder, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    let device = folder.join("fuse");
    mknod(&device, SFlag::S_IFCHR, Mode::empty(), makedev(10, 229)).unwrap();
    std::fs::set_permissions(&device, PermissionsExt::from_mode(0o666)).unwrap();
    mount(Some(&device), "/dev/fuse", none, MsFlags::MS_BIND, none).unwrap();
}

impl Home {
    /// `None` where a user cannot mount.
    fn new() -> Option<Self> {
        let fusermount = ["/usr/bin/fusermount3", "/bin/fusermount3"].iter().find_map(|path| {
            let mode = Path::new(path).metadata().ok()?.permissions().mode();
            (mode & 0o4000 != 0).then_some(())
        });
        fusermount?;
        let dir = tempfile::tempdir().unwrap();
        open_device(dir.path());
        // The folder of the build may be closed to others.
        let program = dir.path().join("ffs");
        std::fs::copy(env!("CARGO_BIN_EXE_ffs"), &program).unwrap();
        for name in ["mnt", "run"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::os::unix::fs::chown(dir.path().join(name), Some(USER), Some(USER)).unwrap();
        }
        std::os::unix::fs::chown(dir.path(), Some(USER), Some(USER)).unwrap();
        Some(Self { dir, program })
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Runs something as the user.
    fn run(&self, program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Output {
        Command::new(program)
            .args(args)
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .current_dir("/")
            .stdin(Stdio::null())
            .uid(USER)
            .gid(USER)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ffs(&self, args: &[&str]) -> String {
        let output = self.run(&self.program, args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> Status {
        serde_json::from_str(&self.ffs(&["status", "--json", self.at("mnt").to_str().unwrap()])).unwrap()
    }

    /// Sets an extended attribute as the user; returns the error number.
    fn set(&self, name: &str, value: &str) -> Option<i32> {
        // setxattr(2) is number 188 on x86-64, which is all that this project is built for.
        let script = "my ($path, $name, $value) = @ARGV;\
                      exit(0 + $!) if syscall(188, $path, $name, $value, length $value, 0) < 0;";
        let path = self.at("mnt/.ffs");
        let output = self.run("/usr/bin/perl", &["-e", script, path.to_str().unwrap(), name, value]);
        assert!(output.stderr.is_empty(), "{output:?}");
        output.status.code().filter(|code| *code != 0)
    }

    fn cat(&self, path: &str) -> String {
        let output = self.run("cat", &[self.at("mnt").join(path).to_str().unwrap()]);
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.at("mnt"), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_user_mounts_changes_and_unmounts() {
    needs_mount!("a_user_mounts_changes_and_unmounts");
    let Some(home) = Home::new() else {
        eprintln!("SKIPPED a_user_mounts_changes_and_unmounts: no setuid fusermount3");
        return;
    };
    let point = home.at("mnt").to_str().unwrap().to_owned();
    let a = tree(&home.at("a"), &[("x", "a")]);
    // Modes and owners count: a user who may write there is still refused.
    for path in [a.clone(), a.join("x")] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    let iso = |generation: u64, text: &str| {
        let path = home.at(&format!("{generation}.iso"));
        std::fs::write(&path, image("i", 9, generation, &[("y", text)])).unwrap();
        path.display().to_string()
    };
    home.ffs(&["mount", &point, "--layer", &format!("a=dir:{}", a.display())]);
    let status = home.status();
    assert!(status.reduced.iter().any(|line| line.contains("inotify")), "{:?}", status.reduced);
    assert!(status.reduced.iter().any(|line| line.contains("only this user")), "{:?}", status.reduced);
    assert!(status.abilities.iter().any(|able| able == "follow_directories"), "{:?}", status.abilities);
    assert_eq!(home.cat("x"), "a");
    let socket = home.at("run/ffs").join(format!("{}.sock", point.trim_matches('/').replace('/', "-")));
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);

    // Others, root too, are kept out by the kernel.
    assert!(std::fs::read_dir(home.at("mnt")).is_err());
    for (program, args) in [
        ("touch", &["NEW"][..]),
        ("dd", &["conv=notrunc", "if=/dev/null", "of=OLD"]),
        ("mkdir", &["NEW"]),
        ("ln", &["-s", "x", "NEW"]),
        ("mkfifo", &["NEW"]),
        ("rm", &["-f", "OLD"]),
        ("chmod", &["600", "OLD"]),
    ] {
        let path =
            |word: &str| word.replace("NEW", &format!("{point}/new")).replace("OLD", &format!("{point}/x"));
        let args: Vec<String> = args.iter().map(|word| path(word)).collect();
        let output = home.run(program, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(String::from_utf8_lossy(&output.stderr).contains("Read-only"), "{program}: {output:?}");
    }

    home.ffs(&["layer", "add", &point, &format!("i=iso:{}", iso(1, "1"))]);
    assert_eq!(home.status().generation, 1);
    home.ffs(&["rollback", &point]);
    assert_eq!(home.status().layers.len(), 1);

    // Commands by attribute, which the kernel lets through on a mount that it does not hold read-only.
    let b = tree(&home.at("b"), &[("x", "b"), ("dir/x", "")]);
    for path in [b.clone(), b.join("x"), b.join("dir")] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    assert_eq!(home.set("user.ffs.layers", &format!("@1 +<b=dir:{}", b.display())), Some(nix::libc::EBUSY));
    assert_eq!(home.set("user.ffs.layers", &format!("@2 +<b=dir:{}", b.display())), None);
    assert_eq!(home.cat("x"), "b");
    assert_eq!(home.set("user.mergerfs.branches", "=a:b"), None);
    assert_eq!(home.cat("x"), "a");
    assert_eq!(home.set("user.ffs.cmd.rollback", ""), None);
    assert_eq!(home.cat("x"), "b");
    assert_eq!(home.set("user.ffs.cmd.reload", ""), None);
    assert_eq!(home.set("user.ffs.cmd.invalidate", ""), None);
    for (name, value, errno) in [
        ("user.ffs.generation", "7", nix::libc::EROFS),
        ("user.ffs.unheard", "", nix::libc::ENODATA),
        ("user.ffs.layers", "+<c", nix::libc::EINVAL),
        ("user.ffs.layers", "+<c=dir:/does/not/exist", nix::libc::EINVAL),
    ] {
        assert_eq!(home.set(name, value), Some(errno), "{name}={value}");
    }

    // Whatever a program of its owner tries: all but the commands is refused, by this program and not by the kernel.
    let attack = |args: &[&str]| {
        let script = home.at("attack.py");
        std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attack.py"), &script).unwrap();
        let words = [&["60", "/usr/bin/python3", script.to_str().unwrap(), &point, "x"], args].concat();
        let output = home.run("timeout", &words);
        assert!(output.status.success(), "{output:?}");
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            // The hidden name is not there for others than the replay, and temporary files are not had at all.
            let other = ["replay ENOENT", "create-temporary ENOTSUP"].contains(&line);
            assert!(line.ends_with(" EROFS") || other, "{line}");
        }
        assert_eq!(home.cat("x"), "b");
    };
    attack(&["no-commands"]);

    // Another program takes over, also without root.
    let before = home.status();
    home.ffs(&["upgrade", &point]);
    let after = home.status();
    assert_eq!((after.pid, after.taken_over, after.generation), (before.pid, 1, before.generation));
    attack(&["no-commands"]);
    assert_eq!(home.set("user.mergerfs.branches", "=a:b"), None);
    assert_eq!(home.cat("x"), "a");

    let pid = home.status().pid;
    home.ffs(&["umount", &point]);
    eventually("the end of ffs", || (!Path::new("/proc").join(pid.to_string()).exists()).then_some(()));
    assert!(!String::from_utf8_lossy(&std::fs::read("/proc/thread-self/mounts").unwrap()).contains(&point));
    assert!(!socket.exists());
}

#[test]
fn a_user_unmounts_nothing_that_root_mounted() {
    use nix::mount::{MsFlags, mount, umount};
    needs_mount!("a_user_unmounts_nothing_that_root_mounted");
    let Some(home) = Home::new() else {
        eprintln!("SKIPPED a_user_unmounts_nothing_that_root_mounted: no setuid fusermount3");
        return;
    };
    let (at, none) = (home.at("mnt"), None::<&str>);
    let point = at.to_str().unwrap();
    let a = tree(&home.at("a"), &[("x", "a")]);
    home.ffs(&["mount", point, "--layer", &format!("a=dir:{}", a.display())]);
    let pid = home.status().pid;
    mount(Some("t"), &at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    std::fs::write(at.join("roots"), "root's").unwrap();
    let output = home.run(&home.program, &["umount", point]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && error.contains("tmpfs"), "{output:?}");
    assert_eq!(std::fs::read_to_string(at.join("roots")).unwrap(), "root's");
    umount(&at).unwrap();
    assert_eq!(home.cat("x"), "a");
    // Where else root has bound it, fusermount3 takes it away too.
    let bound = home.at("bound");
    std::fs::create_dir(&bound).unwrap();
    mount(Some(&at), &bound, none, MsFlags::MS_BIND, none).unwrap();
    home.ffs(&["umount", point]);
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap();
    let left = ffs::kernel::mountinfo::parse(&table).find(|row| row.point == at || row.point == bound);
    assert_eq!(left, None);
    eventually("the end of ffs", || (!Path::new("/proc").join(pid.to_string()).exists()).then_some(()));
}

#[test]
fn without_a_place_for_the_socket_it_says_so() {
    needs_mount!("without_a_place_for_the_socket_it_says_so");
    let Some(home) = Home::new() else {
        eprintln!("SKIPPED without_a_place_for_the_socket_it_says_so: no setuid fusermount3");
        return;
    };
    let output = Command::new(&home.program)
        .args(["mount", home.at("mnt").to_str().unwrap(), "--layer", "a=dir:/etc"])
        .env_remove("XDG_RUNTIME_DIR")
        .uid(USER)
        .gid(USER)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
}
