//! The probes: each does the thing and says what came of it.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::accelerator::NO_NESTED;
use super::requirement::{existing, size};
use super::run;
use super::{Boot, Facts, Finding, IMAGES_DISK, Status, Subject, TESTBED_MEMORY, Virtualization, which};
use crate::image;
use crate::scenario::Hypervisor;

/// For programs that only print their version or make a namespace.
const LIMIT: Duration = Duration::from_secs(10);

const SETUP: &str = "run ci/setup, or install the Debian package";

/// Numbers of the machine.
pub(super) fn facts(cache: &Path) -> Facts {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = |name: &str| meminfo(&memory, name) << 10;
    let available = kibibytes("MemAvailable");
    Facts {
        processor: processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_available: cgroup_headroom().map_or(available, |headroom| headroom.min(available)),
        memory_total: kibibytes("MemTotal"),
        cache: cache.to_owned(),
        cache_free: free(cache).unwrap_or_default(),
        qemu: said(Command::new("qemu-system-x86_64").arg("--version"))
            .map(|text| version(&text))
            .unwrap_or_default(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        root: nix::unistd::geteuid().is_root(),
    }
}

/// One finding for each subject.
pub(super) fn findings(facts: &Facts, virtualization: &Virtualization) -> Vec<Finding> {
    vec![
        qemu(facts, &virtualization.emulated),
        hardware(virtualization),
        nested(virtualization),
        namespaces(facts.root),
        networks(facts.root),
        fuse(facts.root),
        libvirt(),
        image_tools(facts.root),
        ssh(),
        memory(facts),
        disk(facts),
        processors(facts),
    ]
}

fn finding(subject: Subject, status: Status, evidence: impl Into<String>) -> Finding {
    Finding { subject, status, evidence: evidence.into(), follows: String::new(), remedy: String::new() }
}

impl Finding {
    fn so(mut self, follows: &str, remedy: impl Into<String>) -> Self {
        follows.clone_into(&mut self.follows);
        self.remedy = remedy.into();
        self
    }
}

fn qemu(facts: &Facts, emulated: &Boot) -> Finding {
    let found = |status, evidence: String| finding(Subject::Qemu, status, evidence);
    match emulated {
        Boot::Up { nested: Some(true), took_ms, payload } => found(
            Status::Ok,
            format!("QEMU {}: {payload} on an emulated processor with SVM in {took_ms} ms", facts.qemu),
        ),
        Boot::Up { .. } => {
            found(Status::Missing, format!("QEMU {}: the emulated processor has no SVM", facts.qemu))
                .so("hosts could not run guests", "use Debian's or Ubuntu's own QEMU")
        }
        Boot::Impossible { reason } => found(Status::Missing, reason.clone())
            .so("no hosts can be booted", format!("{SETUP} qemu-system-x86")),
        other => found(Status::Missing, format!("QEMU {}: {}", facts.qemu, other))
            .so("no hosts can be booted", "try it again on a quieter machine, or install another QEMU"),
    }
}

fn hardware(virtualization: &Virtualization) -> Finding {
    let found = |status, evidence: String| finding(Subject::HardwareVirtualization, status, evidence);
    // The boot sector proves that something boots, a kernel that kernels do.
    let decisive = match (&virtualization.hardware, &virtualization.kernel) {
        (Boot::Up { .. }, kernel @ Boot::Up { .. }) => return found(Status::Ok, kernel.to_string()),
        (sector @ Boot::Up { .. }, Boot::Untried { reason }) => {
            return found(Status::Unknown, format!("{sector}; {reason}")).so(
                "hosts are emulated unless a kernel comes up",
                "run `bench image build`, then `bench doctor`",
            );
        }
        (Boot::Up { .. }, kernel) => kernel,
        (sector, _) => sector,
    };
    let remedy = match decisive {
        Boot::Impossible { reason } if reason.contains("ermission") => {
            "add yourself to the group kvm, then log in again"
        }
        Boot::Impossible { .. } => "switch it on in the firmware, or use a machine (or a runner) that has it",
        _ => "use a machine whose /dev/kvm boots guests",
    };
    found(Status::Degraded, decisive.to_string())
        .so("hosts are emulated (accelerator tcg); networks are scaled with them", remedy)
}

fn nested(virtualization: &Virtualization) -> Finding {
    let found = |status, evidence: &str| finding(Subject::NestedVirtualization, status, evidence);
    match (&virtualization.hardware, &virtualization.kernel, &virtualization.xen) {
        (_, _, Boot::Up { nested: Some(true), .. }) => {
            found(Status::Ok, "Xen in a guest can give guests of its own hardware virtualization")
        }
        (Boot::Up { nested: Some(true), .. }, Boot::Up { .. }, xen) if !matches!(xen, Boot::Untried { .. }) => {
            found(Status::Degraded, &virtualization.answer(Hypervisor::Xen).why).so(
                "hosts with Xen are emulated (accelerator tcg); hosts with KVM run with hardware virtualization",
                "use a machine on which Xen comes up as a guest, or another version of its hypervisor or QEMU",
            )
        }
        (Boot::Up { nested: Some(true), .. }, Boot::Up { .. }, _) => {
            found(Status::Unknown, "a guest's processor has VMX or SVM; no guest of a guest was booted").so(
                "hosts run with it (accelerator kvm); a host whose guest does not come up ends a run",
                "`bench run scenarios/smoke.toml` boots a guest of a guest; where it does not come up, `--accelerator tcg` emulates hosts",
            )
        }
        (Boot::Up { nested: Some(false), .. }, _, _) => {
            found(Status::Degraded, NO_NESTED).so(
                "hosts are emulated (accelerator tcg), although guests boot with hardware virtualization",
                "load kvm_intel or kvm_amd with nested=1",
            )
        }
        (Boot::Up { .. }, Boot::Untried { .. }, _) => {
            found(Status::Unknown, "not looked at before a kernel has come up with hardware virtualization")
        }
        _ => found(Status::Degraded, "not looked at, since no kernel comes up with hardware virtualization"),
    }
}

/// As root a user namespace is not needed.
fn unshare(root: bool, script: &str) -> Command {
    let mut command = run::command("unshare");
    if !root {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-euc",
        script,
    ]);
    command
}

const NAMESPACE_REMEDY: &str = "allow unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces, \
     kernel.apparmor_restrict_unprivileged_userns), or run as root";

fn namespaces(root: bool) -> Finding {
    let how = if root { "as root" } else { "without root" };
    match run::limited(&mut unshare(root, "ip link set lo up && test -d /proc/1"), LIMIT) {
        Ok(outcome) if outcome.success() => {
            finding(Subject::Namespaces, Status::Ok, format!("network, mount and process namespaces, {how}"))
        }
        other => finding(Subject::Namespaces, Status::Missing, failure(other))
            .so("testbeds have no network of their own", NAMESPACE_REMEDY),
    }
}

fn networks(root: bool) -> Finding {
    let script = "ip link add bench0 type bridge && ip link set bench0 up && \
        ip tuntap add dev bench1 mode tap vnet_hdr && ip link set bench1 master bench0 up && \
        ip address add 198.18.0.1/30 dev bench0";
    match run::limited(&mut unshare(root, script), LIMIT) {
        Ok(outcome) if outcome.success() => {
            finding(Subject::Networks, Status::Ok, "a TAP device with offloads on a bridge, in a namespace")
        }
        other => finding(Subject::Networks, Status::Missing, failure(other)).so(
            "testbeds have no networks",
            "load the modules tun and bridge; the program ip is in Debian's iproute2",
        ),
    }
}

fn failure(outcome: std::io::Result<run::Outcome>) -> String {
    match outcome {
        Err(error) => error.to_string(),
        Ok(run::Outcome { status: None, .. }) => format!("no answer within {} s", LIMIT.as_secs()),
        Ok(outcome) => outcome.last_line().to_owned(),
    }
}

fn fuse(root: bool) -> Finding {
    let found = |status, evidence: String| finding(Subject::Fuse, status, evidence);
    let device = match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(device) => device,
        Err(error) => {
            let remedy = if error.kind() == std::io::ErrorKind::PermissionDenied {
                "let this user open /dev/fuse (Debian's and Ubuntu's default is mode 0666)"
            } else {
                "modprobe fuse"
            };
            return found(Status::Degraded, format!("/dev/fuse: {error}"))
                .so("ffs's own tests are skipped; guests have FUSE of their own", remedy);
        }
    };
    if !root && which("fusermount3").is_none() {
        return found(Status::Degraded, "/dev/fuse opens, and nothing mounts for an ordinary user".into())
            .so("ffs's own tests are skipped", format!("{SETUP} fuse3"));
    }
    match if root { mount_fuse(&device) } else { fusermount() } {
        Ok(()) => found(Status::Ok, "mounted and unmounted a file system".into()),
        Err(error) => found(Status::Degraded, format!("mount: {error}"))
            .so("ffs's own tests are skipped; guests have FUSE of their own", "run where mounts are allowed"),
    }
}

/// Nobody serves the file system; mounting it does not ask it anything.
fn mount_fuse(device: &fs::File) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("bench-doctor"), folder.path(), Some("fuse"), flags, Some(options.as_str()))
        .and_then(|()| umount2(folder.path(), MntFlags::MNT_DETACH))
        .map_err(|error| error.to_string())
}

/// The same by the program that does it for ordinary users: it hands the descriptor back over a socket.
fn fusermount() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    // Held until it is unmounted: the file system ends with the descriptor that waits in it.
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
    let run = |command: &mut Command| match crate::program::output(command, LIMIT) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("fusermount3: {error}")),
    };
    let theirs = std::os::fd::OwnedFd::from(theirs);
    let mut mount = Command::new("fusermount3");
    mount.args(["-o", "fsname=bench-doctor", "--"]).arg(folder.path());
    run(mount.env("_FUSE_COMMFD", "0").stdin(theirs))?;
    run(Command::new("fusermount3").args(["-u", "-z", "--"]).arg(folder.path()))
}

/// The file name of the library that this program has loaded, which has its version.
pub(super) fn libvirt_library() -> Option<String> {
    loaded_libvirt(&fs::read("/proc/self/maps").unwrap_or_default())
}

fn libvirt() -> Finding {
    // The program is linked against it, so a program that runs has it.
    match libvirt_library().or_else(|| said(Command::new("virsh").arg("--version"))) {
        Some(version) => finding(Subject::Libvirt, Status::Ok, version),
        None => finding(Subject::Libvirt, Status::Missing, "the library libvirt.so is not there")
            .so("hosts cannot be talked to", format!("{SETUP} libvirt0")),
    }
}

/// The file name of the library in a process's maps, in which paths are bytes.
fn loaded_libvirt(maps: &[u8]) -> Option<String> {
    let lines = maps.split(|byte| *byte == b'\n');
    let mut files = lines.filter_map(|line| line.rsplit(|byte| *byte == b'/').next());
    let file = files.find(|file| file.starts_with(b"libvirt.so"))?;
    Some(String::from_utf8_lossy(file).into_owned())
}

fn image_tools(root: bool) -> Finding {
    let needed = [
        ("mmdebstrap", "mmdebstrap"),
        ("mke2fs", "e2fsprogs"),
        ("tar", "tar"),
        ("setpriv", "util-linux"),
        ("unshare", "util-linux"),
    ];
    let missing: Vec<_> = needed.iter().filter(|(program, _)| which(program).is_none()).collect();
    if !missing.is_empty() {
        let list = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
            missing.iter().map(|entry| pick(entry)).collect::<Vec<_>>().join(" ")
        };
        return finding(Subject::ImageTools, Status::Missing, format!("missing: {}", list(|entry| entry.0)))
            .so("no images can be built", format!("{SETUP} {}", list(|entry| entry.1)));
    }
    if !root && (which("newuidmap").is_none() || !image::has_subordinate_ids()) {
        return finding(Subject::ImageTools, Status::Missing, "no subordinate ids for this user").so(
            "images cannot be built without root",
            "install the Debian package uidmap and give yourself a range in /etc/subuid and /etc/subgid (usermod --add-subuids), or run as root",
        );
    }
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    if !Path::new(keys).exists() {
        return finding(Subject::ImageTools, Status::Missing, format!("no {keys}"))
            .so("Debian's packages cannot be verified", format!("{SETUP} debian-archive-keyring"));
    }
    if let Err(error) = image::rehearse() {
        return finding(Subject::ImageTools, Status::Missing, error.to_string())
            .so("no images can be built", format!("{SETUP} e2fsprogs uidmap"));
    }
    let versions: Vec<String> =
        [said(Command::new("mmdebstrap").arg("--version")), said(Command::new("mke2fs").arg("-V"))]
            .into_iter()
            .flatten()
            .collect();
    finding(Subject::ImageTools, Status::Ok, versions.join(", "))
}

fn ssh() -> Finding {
    match (said(Command::new("ssh").arg("-V")), make_key()) {
        (Some(version), Ok(())) => finding(Subject::Ssh, Status::Ok, version),
        (Some(_), Err(why)) => {
            finding(Subject::Ssh, Status::Missing, format!("ssh-keygen makes no key: {why}"))
                .so("hosts cannot be talked to", format!("{SETUP} openssh-client"))
        }
        _ => finding(Subject::Ssh, Status::Missing, "ssh and ssh-keygen are not there")
            .so("hosts cannot be talked to", format!("{SETUP} openssh-client")),
    }
}

/// A key as a testbed's are made.
fn make_key() -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"]).arg(folder.path().join("key"));
    match run::limited(&mut command, LIMIT) {
        Ok(outcome) if outcome.success() => Ok(()),
        other => Err(failure(other)),
    }
}

fn memory(facts: &Facts) -> Finding {
    let evidence = format!("{} free of {}", size(facts.memory_available), size(facts.memory_total));
    if facts.memory_available >= TESTBED_MEMORY {
        return finding(Subject::Memory, Status::Ok, evidence);
    }
    finding(Subject::Memory, Status::Degraded, evidence).so(
        "a testbed with file servers may not fit; each run checks what it needs before it starts",
        format!("make {} free", size(TESTBED_MEMORY)),
    )
}

fn disk(facts: &Facts) -> Finding {
    let evidence = format!("{} free at {}", size(facts.cache_free), facts.cache.display());
    // Where it is or will be: a file of our own tells what permissions, quotas and read-only mounts allow.
    if let Err(error) =
        existing(&facts.cache).map_or_else(|| Ok(()), |at| tempfile::tempfile_in(at).map(drop))
    {
        return finding(
            Subject::Disk,
            Status::Missing,
            format!("{} cannot be written: {error}", facts.cache.display()),
        )
        .so("no images can be kept", "set BENCH_CACHE to a folder that you can write");
    }
    if facts.cache_free >= IMAGES_DISK {
        return finding(Subject::Disk, Status::Ok, evidence);
    }
    finding(Subject::Disk, Status::Degraded, evidence).so(
        "images may not fit",
        format!("make {} free, or set BENCH_CACHE to another folder", size(IMAGES_DISK)),
    )
}

fn processors(facts: &Facts) -> Finding {
    let evidence = format!("{} of {}", facts.processors, facts.processor);
    if facts.processors >= 2 {
        return finding(Subject::Processors, Status::Ok, evidence);
    }
    finding(Subject::Processors, Status::Degraded, evidence)
        .so("two hosts share one processor: times say little", "use a machine with at least 2")
}

/// First line of what a program says, on either stream; nothing when it cannot be run.
pub(super) fn said(command: &mut Command) -> Option<String> {
    succeeds(command).map(|text| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// What a program says, on standard output and then on standard error; nothing when it fails or takes longer than a version takes.
pub(super) fn succeeds(command: &mut Command) -> Option<String> {
    let outcome = run::limited(command, LIMIT).ok()?;
    outcome.success().then_some(outcome.output)
}

/// `QEMU emulator version 10.0.2 (Debian …)` is `10.0.2`.
fn version(text: &str) -> String {
    let number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    text.split_whitespace().find(number).unwrap_or_default().to_owned()
}

fn meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

fn processor(text: &str) -> String {
    text.lines()
        .find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The path of a process's control group, version 2, from the top; names of groups are bytes.
fn group_path(groups: &[u8]) -> Option<&Path> {
    use std::os::unix::ffi::OsStrExt;
    let path = groups.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(Path::new(std::ffi::OsStr::from_bytes(path)))
}

/// What the control group that we are in, or one above, still lets us take; nothing without a limit.
fn cgroup_headroom() -> Option<u64> {
    let own = fs::read("/proc/self/cgroup").ok()?;
    let path = group_path(&own)?;
    let root = Path::new("/sys/fs/cgroup");
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = root.join(path);
    group
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            let limit = number(&folder.join("memory.max"))?;
            Some(limit.saturating_sub(number(&folder.join("memory.current")).unwrap_or_default()))
        })
        .min()
}

/// Bytes that are free for this user where a path is or will be.
pub(super) fn free(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(existing(path)?).ok()?;
    Some(stat.blocks_available() * stat.fragment_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_tables_are_read() {
        use std::os::unix::ffi::OsStrExt;
        assert_eq!(meminfo("MemTotal:  100 kB\nMemAvailable:   42 kB\n", "MemAvailable"), 42);
        assert_eq!(processor("processor\t: 0\nmodel name\t: A Fast One\n"), "A Fast One");
        let maps =
            b"7f00-7f01 r--p 0 08:01 5 /x/\xff.so\n7f00 r--p 0 08:01 6 /usr/lib/libvirt.so.0.11000.0\n";
        assert_eq!(loaded_libvirt(maps).as_deref(), Some("libvirt.so.0.11000.0"));
        let path = Path::new(std::ffi::OsStr::from_bytes(b"a\xfe/b"));
        assert_eq!(group_path(b"1:cpu:/\xff\n0::/a\xfe/b\n"), Some(path));
        assert_eq!(version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)"), "10.0.2");
    }

    #[test]
    fn an_unusable_kvm_is_degraded_and_says_what_follows() {
        let hangs = Boot::Hangs { payload: "a Linux kernel".into(), limit_ms: 8000 };
        let emulated = Boot::Up { payload: "x".into(), took_ms: 1, nested: Some(true) };
        let untried = Boot::Untried { reason: "no kernel".into() };
        let judge = |hardware: &Boot, kernel: &Boot| {
            let (hardware, kernel) = (hardware.clone(), kernel.clone());
            let (xen, emulated) = (untried.clone(), emulated.clone());
            let virtualization = Virtualization { hardware, kernel, xen, emulated };
            (super::hardware(&virtualization), super::nested(&virtualization))
        };
        let up = &emulated;
        for (found, nested) in [judge(&hangs, &untried), judge(up, &hangs)] {
            assert_eq!((found.status, nested.status), (Status::Degraded, Status::Degraded));
            assert!(found.evidence.contains("8 s") && found.follows.contains("tcg"), "{found:?}");
            assert!(!found.remedy.is_empty());
        }
        // A boot sector that came up is no kernel that did.
        let (found, nested) = judge(up, &untried);
        assert_eq!((found.status, nested.status), (Status::Unknown, Status::Unknown));
        assert!(
            found.evidence.contains("no kernel") && found.remedy.contains("bench image build"),
            "{found:?}"
        );
        assert_eq!(judge(up, up).0.status, Status::Ok);
    }

    #[test]
    fn why_hosts_with_xen_are_emulated_is_said() {
        let up = |nested| Boot::Up { payload: "x".into(), took_ms: 1, nested };
        let judge = |xen: Boot| {
            let (hardware, kernel, emulated) = (up(Some(true)), up(None), up(Some(true)));
            super::nested(&Virtualization { hardware, kernel, xen, emulated })
        };
        let stops = Boot::Fails { payload: "Xen with its first domain".into(), reason: "it panics".into() };
        for (xen, why) in [(stops, "it panics"), (up(Some(false)), "no nested paging")] {
            let found = judge(xen);
            assert_eq!(found.status, Status::Degraded, "{found:?}");
            assert!(found.evidence.contains(why), "{found:?}");
            assert!(found.follows.contains("hosts with Xen are emulated"), "{found:?}");
        }
        assert_eq!(judge(up(Some(true))).status, Status::Ok);
        assert_eq!(judge(Boot::Untried { reason: "no image".into() }).status, Status::Unknown);
    }

    #[test]
    fn free_space_is_told_of_folders_that_are_not_there_yet() {
        assert!(free(&std::env::temp_dir().join("not/yet")).is_some_and(|bytes| bytes > 0));
    }
}
