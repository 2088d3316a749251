//! Boots the cached images under emulation: what the initramfs promises, seen from inside.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test ends where it cannot go on, and says why it is skipped"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use bench::doctor::which;
use bench::image::seed::{self, Seed};
use bench::image::{Cache, Image, KERNEL_ARGUMENTS, Recipe};

/// A boot takes 10 s on a quiet machine; this is for a very busy one.
const LIMIT: Duration = Duration::from_secs(300);

/// The image, when this machine can boot it; else it says why not.
fn image(test: &str, name: &str) -> Option<Image> {
    let skip = |reason: &str| {
        eprintln!("SKIPPED boot::{test}: {reason}");
        None
    };
    if which("qemu-system-x86_64").is_none() || which("setpriv").is_none() {
        return skip("qemu-system-x86_64 or setpriv is not installed");
    }
    match Cache::open().unwrap().find(&Recipe::built_in(name).unwrap().digest()).unwrap() {
        Some(image) => Some(image),
        None => skip(&format!("the image {name} is not built (bench image build {name})")),
    }
}

/// Boots a machine until it ends by itself, and gives what it wrote on its console.
fn boot(image: &Image, disks: &[(&str, &Path)], append: &str) -> String {
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "qemu-system-x86_64",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max,-la57",
    ]);
    // One processor: seen once with two, the emulator let one run into a breakpoint that the other had taken out of the
    // kernel's code already (`Oops: int3` in a static branch), which is not what is tested here.
    command.args(["-M", "q35", "-m", "768", "-smp", "1", "-nodefaults", "-display", "none", "-nic", "none"]);
    command
        .args(["-no-reboot", "-serial", "stdio", "-kernel"])
        .arg(image.kernel())
        .arg("-initrd")
        .arg(image.initrd());
    command.args(["-append", &format!("console=ttyS0 {KERNEL_ARGUMENTS} {append}")]);
    for (serial, file) in disks {
        let drive = format!("if=none,id={serial},format=raw,readonly=on,file={}", file.display());
        command.args([
            "-drive",
            &drive,
            "-device",
            &format!("virtio-blk-pci,drive={serial},serial={serial}"),
        ]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let process = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let output = child.wait_with_output().unwrap();
        let _ = sender.send(());
        output
    });
    let ended = receiver.recv_timeout(LIMIT).is_ok();
    if !ended {
        nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let output = reader.join().unwrap();
    let console = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(ended, "it did not end within {LIMIT:?}; its console:\n{console}");
    format!("{console}{}", String::from_utf8_lossy(&output.stderr))
}

/// A seed with a name and a unit that runs `script` when all others are up, and then ends the machine.
fn examiner(script: &str) -> Seed {
    let unit = "[Unit]\nAfter=bench-ready.service\n[Service]\nType=oneshot\nStandardOutput=tty\nTTYPath=/dev/ttyS0\n\
        ExecStart=/usr/local/bin/examine\nExecStopPost=/usr/bin/systemctl poweroff --force --force\n";
    let mut seed = Seed::new()
        .text("/etc/hostname", "examined\n")
        .text("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        .text("/etc/systemd/system/examine.service", unit)
        .secret("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA\n")
        .symlink(
            "/etc/systemd/system/multi-user.target.wants/examine.service",
            "/etc/systemd/system/examine.service",
        );
    seed.put(
        "/usr/local/bin/examine",
        0o755,
        seed::Content::Bytes(format!("#!/bin/sh\n{script}\n").into_bytes()),
    );
    seed
}

fn examine(image: &Image, script: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("seed.ext4");
    seed::write(&examiner(script), &disk).unwrap();
    boot(image, &[("seed", &disk), ("root", &image.root())], "bench.seed=seed bench.upper=64m")
}

#[test]
fn a_guest_comes_up_with_its_seed_laid_over_its_image() {
    let Some(image) = image("a_guest_comes_up_with_its_seed_laid_over_its_image", "guest") else { return };
    let console = examine(
        &image,
        "echo \"name=$(hostname)\"; echo \"id=$(cat /etc/machine-id)\"; echo \"ssh=$(stat -c %a:%U /root/.ssh /root/.ssh/authorized_keys | tr '\\n' ' ')\"
         echo \"failed=$(systemctl --failed --no-legend --plain | wc -l)\"; echo \"sshd=$(systemctl is-active ssh.service)\"
         echo \"lib=$(readlink /lib)\"; echo written > /usr/bin/new && echo \"write=$(cat /usr/bin/new)\"
         echo \"upper=$(df -m / | awk 'NR == 2 { print $2 }')\"; echo \"bonnie=$(command -v bonnie++)\"; echo \"gluster=$(command -v glusterfsd)\"
         test -c /dev/fuse && echo fuse=yes",
    );
    assert!(console.contains("bench: ready after"), "{console}");
    for line in [
        "name=examined",
        "id=0123456789abcdef0123456789abcdef",
        "ssh=700:root 600:root",
        "failed=0",
        "sshd=active",
        "lib=usr/lib",
        "write=written",
        "upper=64",
        "bonnie=/usr/sbin/bonnie++",
        "gluster=/usr/sbin/glusterfsd",
        "fuse=yes",
    ] {
        assert!(console.contains(line), "no {line:?} in:\n{console}");
    }
}

#[test]
fn a_host_comes_up_with_kvm_libvirt_and_what_shaping_needs() {
    let Some(image) = image("a_host_comes_up_with_kvm_libvirt_and_what_shaping_needs", "host-kvm") else {
        return;
    };
    let console = examine(
        &image,
        "echo \"failed=$(systemctl --failed --no-legend --plain | wc -l)\"; test -c /dev/kvm && echo kvm=yes
         echo \"poll=$(cat /sys/module/kvm/parameters/halt_poll_ns)\"; test -c /dev/vhost-net && echo vhost=yes
         echo \"libvirt=$(virsh -q -c qemu:///system uri)\"; ip link set lo up; echo \"tcp=$(virsh -q -c qemu+tcp://127.0.0.1/system uri)\"
         echo \"uuid=$(virsh -q -c qemu:///system capabilities | sed -n 's,.*<uuid>\\(.*\\)</uuid>,\\1,p')\"
         ip link add d0 type dummy && tc qdisc add dev d0 root netem delay 10ms && echo \"tc=$(tc qdisc show dev d0 | cut -d' ' -f2)\"
         virsh -q -c qemu:///system domcapabilities --virttype kvm >/dev/null && echo domains=kvm",
    );
    for line in [
        "failed=0",
        "kvm=yes",
        "poll=0",
        "vhost=yes",
        "libvirt=qemu:///system",
        "tcp=qemu+tcp://127.0.0.1/system",
        "uuid=01234567-89ab-cdef-0123-456789abcdef",
        "tc=netem",
        "domains=kvm",
    ] {
        assert!(console.contains(line), "no {line:?} in:\n{console}");
    }
}

/// What is applied is what is read back, twice over: on the kernel that servers run, which has netem
/// where the runner's may not.
#[test]
fn the_kernel_gives_back_the_shaping_that_was_asked() {
    use bench::shape::{Link, Shape, readback};
    let Some(image) = image("the_kernel_gives_back_the_shaping_that_was_asked", "guest") else { return };
    for link in [Link::paper_remote(), Link::paper_local().dilated(5.0).unwrap()] {
        let shape = Shape { device: "d0".into(), client: [198, 18, 2, 41].into(), link };
        let apply = shape.apply();
        let console = examine(
            &image,
            &format!(
                "ip link add d0 type dummy\nip link set d0 up\n({apply})\n({apply})\necho '<read>'\n{}\necho '</read>'",
                shape.read()
            ),
        );
        let text = console.replace('\r', "");
        let (_, read) = text.split_once("<read>\n").unwrap_or_else(|| panic!("nothing was read:\n{console}"));
        let (read, _) = read.split_once("</read>").unwrap();
        assert_eq!(readback::compare(&shape, read).unwrap().dropped, 0);
    }
}

#[test]
fn a_machine_without_its_disk_says_so_and_ends() {
    let Some(image) = image("a_machine_without_its_disk_says_so_and_ends", "guest") else { return };
    let console = boot(&image, &[("other", &image.root())], "bench.wait=1");
    assert!(
        console.contains("bench-init: failed: no disk with the serial number 'root' within 1 s"),
        "{console}"
    );
    assert!(console.contains("disks seen: vda(other)"), "{console}");
}

/// A copy of an image in a cache of its own, by links. What is to be spoiled is zeros of the same length: a cache builds an
/// image anew when a file has another.
fn copy(image: &Image, cache: &Path, spoiled: Option<&str>) {
    let original = image.root().parent().unwrap().to_owned();
    let copy = cache.join("images").join(image.digest());
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(&original).unwrap() {
        let entry = entry.unwrap();
        let target = copy.join(entry.file_name());
        if spoiled.is_some_and(|name| entry.file_name() == name) {
            let len = entry.metadata().unwrap().len();
            std::fs::File::create(target).unwrap().set_len(len).unwrap();
        } else {
            std::os::unix::fs::symlink(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_host_whose_xen_does_not_come_up_says_so_and_leaves_nothing() {
    const TEST: &str = "a_host_whose_xen_does_not_come_up_says_so_and_leaves_nothing";
    let (Some(host), Some(guest)) = (image(TEST, "host-xen"), image(TEST, "guest")) else { return };
    let cache = tempfile::tempdir().unwrap();
    // Xen itself starts, finds no kernel that it can run as its first domain, and panics.
    copy(&host, cache.path(), Some("vmlinuz"));
    copy(&guest, cache.path(), None);
    let testbed = |arguments: &[&str]| {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
        bench.arg("testbed").args(arguments).env("BENCH_CACHE", cache.path()).stdin(Stdio::null());
        bench.output().unwrap()
    };
    let up = testbed(&["up", "--hypervisor", "xen", "--hosts", "1"]);
    // Before anything is said of it: a testbed that is up after all must not stay.
    let down = testbed(&["down"]);
    let said = String::from_utf8_lossy(&up.stderr);
    assert_eq!(up.status.code(), Some(1), "{said}");
    assert!(said.contains("a: it ended while it was booting"), "{said}");
    assert!(said.contains("its console ended with") && said.contains("Panic on CPU 0"), "{said}");
    assert_eq!(String::from_utf8_lossy(&down.stdout), "No testbed is up.\n");
}
