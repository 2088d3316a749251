//! systemd's path units notice a switch, every time: a real systemd, as process 1 of namespaces of its own.
//!
//! It watches a path with inotify, and each directory above it, and watches anew what has taken the place of a file.
//! What it may touch is its own: a control group that is removed afterwards, an empty `/run`, units of this test only;
//! the rest of the machine it sees read-only.

mod common;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::eventually;
use common::site::Site;

/// Makes the namespaces' view of the machine and becomes systemd. Arguments: control group, units, what may be written.
const BECOME: &str = r#"
echo 0 > "$1/cgroup.procs"
exec unshare --cgroup sh -ec '
    mount --bind "$3" "$3"
    mount --bind /dev/null /dev/console
    mount -o remount,bind,ro /
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir /run/none
    exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$2" SYSTEMD_GENERATOR_PATH=/run/none \
        SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/run/none "$4" --system --log-target=null
' sh "$@"
"#;

/// A systemd with units of its own; gone, with all that it started, when dropped.
struct Systemd {
    child: Child,
    group: PathBuf,
}

impl Systemd {
    /// Starts it with the units in `units`; it may write below `work`. `Err`: why it cannot be had here.
    fn start(units: &Path, work: &Path) -> Result<Self, String> {
        let program = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
        let program =
            program.iter().find(|path| Path::new(path).exists()).ok_or("needs the package systemd")?;
        let group = own_group()?.join(format!("ffs-test-{}", std::process::id()));
        std::fs::create_dir(&group).map_err(|error| format!("needs a writable control group: {error}"))?;
        let mut command = Command::new("unshare");
        command.args([
            "--fork",
            "--kill-child",
            "--pid",
            "--mount",
            "--net",
            "--uts",
            "--ipc",
            "--mount-proc",
        ]);
        command.args(["sh", "-ec", BECOME, "sh"]).arg(&group).arg(units).arg(work).arg(program);
        let child = command.stdin(Stdio::null()).process_group(0).spawn().expect("util-linux is everywhere");
        let mut systemd = Self { child, group };
        eventually("systemd", || {
            assert!(systemd.child.try_wait().expect("a child").is_none(), "systemd ended");
            systemd.ctl(&["is-active", "default.target"]).filter(|answer| answer == "active").map(drop)
        });
        Ok(systemd)
    }

    /// What `systemctl` says to it.
    fn ctl(&self, args: &[&str]) -> Option<String> {
        // It moves itself, and nothing else, into this scope.
        let pids = std::fs::read_to_string(self.group.join("init.scope/cgroup.procs")).ok()?;
        let mut command = Command::new("nsenter");
        // Its root, too: where this one is changed (chroot), the namespace has another.
        command
            .args(["--mount", "--pid", "--root", "--target", pids.lines().next()?, "systemctl"])
            .args(args);
        let output = command.stderr(Stdio::null()).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Waits until a path unit watches: it was told of the end of the service that it had started.
    fn waits(&self, unit: &str) {
        eventually("the watch", || {
            let state = self.ctl(&["show", "--property=SubState", "--value", unit])?;
            assert_ne!(state, "failed", "{unit}: {:?}", self.ctl(&["status", unit]));
            (state == "waiting").then_some(())
        });
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        // Its namespaces end with it, and so do all processes in them.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + Duration::from_secs(5);
        while remove(&self.group).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Where this process is in the second version's tree of control groups.
fn own_group() -> Result<PathBuf, String> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let root = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let root = root.filter(|words| words.get(2) == Some(&"cgroup2")).find_map(|words| words.get(1).copied());
    let groups = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    match (root, own) {
        (Some(root), Some(own)) => Ok(Path::new(root).join(own)),
        _ => Err("needs control groups of version 2".to_owned()),
    }
}

/// Removes a control group and those below it.
fn remove(group: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// Writes a path unit with its service, and returns what the service writes.
fn unit(units: &Path, name: &str, watch: &str, run: &str) -> PathBuf {
    let out = units.with_file_name(name);
    let header = "[Unit]\nDefaultDependencies=no\nStartLimitIntervalSec=0\n";
    let path = format!("{header}[Path]\n{watch}\nUnit={name}.service\n");
    std::fs::write(units.join(format!("{name}.path")), path).expect("write");
    let run = run.replace("OUT", &out.display().to_string());
    let service = format!(
        "{header}[Service]\nType=oneshot\nStandardInput=null\nStandardOutput=null\nStandardError=null\nExecStart=/bin/sh -ec '{run}'\n"
    );
    std::fs::write(units.join(format!("{name}.service")), service).expect("write");
    std::fs::write(&out, "").expect("write");
    out
}

#[test]
fn path_units_start_their_services_at_every_switch() {
    needs_mount!("path_units_start_their_services_at_every_switch");
    let mut site = Site::new(&[("d/site", "1"), ("flags/other", "")]);
    let units = site.work("units");
    std::fs::create_dir(&units).expect("a directory");
    let at = |path: &str| site.mounted.at(path).display().to_string();
    // What it reads when it is started, a line each time.
    let reads = format!("echo $(cat {}) >> OUT", at("d/site"));
    let watched = [
        unit(&units, "changed", &format!("PathChanged={}", at("d/site")), &reads),
        unit(&units, "modified", &format!("PathModified={}", at("d/site")), &reads),
        unit(&units, "directory", &format!("PathChanged={}", at("d")), &reads),
    ];
    // Ends when the file has gone: while it is there, systemd would start an ended service again at once.
    let there = at("flags/there");
    let stays = format!("echo come >> OUT; while [ -e {there} ]; do sleep 0.02; done; echo gone >> OUT");
    let exists = unit(&units, "exists", &format!("PathExists={there}"), &stays);
    let names = ["changed.path", "modified.path", "directory.path", "exists.path"];
    let wanted = names.join(" ");
    let target = format!("[Unit]\nDefaultDependencies=no\nRequires={wanted}\nAfter={wanted}\n");
    std::fs::write(units.join("default.target"), target).expect("write");
    let systemd = match Systemd::start(&units, site.dir.path()) {
        Ok(systemd) => systemd,
        Err(reason) => {
            eprintln!("SKIPPED path_units_start_their_services_at_every_switch: {reason}");
            return;
        }
    };
    let lines = |path: &Path| -> Vec<String> {
        std::fs::read_to_string(path).expect("read").lines().map(str::to_owned).collect()
    };
    for name in names {
        systemd.waits(name);
    }
    assert!(watched.iter().chain([&exists]).all(|out| lines(out).is_empty()), "nothing has changed yet");
    // More than once, for what is watched is each time another file.
    for generation in 2..=6 {
        let flag = generation % 2 == 0;
        let content = generation.to_string();
        let other = if flag { ("flags/there", "") } else { ("flags/other", "") };
        site.switch(&[("d/site", &content), other]);
        for out in &watched {
            eventually("the service of the switch", || (lines(out).last() == Some(&content)).then_some(()));
        }
        let expected = if flag { "come" } else { "gone" };
        eventually("the service of the file that came", || {
            (lines(&exists).last().map(String::as_str) == Some(expected)).then_some(())
        });
        // While the file is there, its service runs.
        for name in names.iter().filter(|name| **name != "exists.path" || !flag) {
            systemd.waits(name);
        }
    }
    assert_eq!(lines(&exists), ["come", "gone", "come", "gone", "come"]);
    for out in &watched {
        let mut seen = lines(out);
        // A replacement is more than one event: it may start a service twice, and never with what was before.
        seen.dedup();
        assert_eq!(seen, ["2", "3", "4", "5", "6"], "{}", out.display());
    }
}
