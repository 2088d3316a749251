//! The kernel reads large files of directory layers by itself where that is asked for: `passthrough = true`.
//!
//! That nobody is asked is seen by stopping the program, which then answers nobody.

#![allow(clippy::unwrap_used, unsafe_code)] // In what the tests share, as in them; and mmap(2).

mod common;

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::{Mounted, OnDrop, eventually, in_time, linux, succeeded, tree};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a file that is not copied.
const LARGE: usize = 300_000;

/// Returns from a test where the kernel does not know of it, and says so.
macro_rules! needs_passthrough {
    ($name:literal) => {
        needs_mount!($name);
        if linux() < (6, 9) {
            eprintln!("SKIPPED {}: needs Linux 6.9", $name);
            return;
        }
    };
}

/// A content that says which one it is wherever it is looked at.
fn large(which: u8) -> Vec<u8> {
    vec![which; LARGE]
}

fn mounted(layers: &[(&str, &Path)]) -> Mounted {
    let layers: Vec<String> =
        layers.iter().map(|(name, path)| format!("{name}=dir:{}", path.display())).collect();
    let mut args = vec!["--passthrough"];
    args.extend(layers.iter().flat_map(|layer| ["--layer", layer]));
    Mounted::new(&args)
}

/// Checks that a file is read to its end, and mapped, while the program answers nobody.
#[track_caller]
fn read_without_the_program(mounted: &Mounted, file: &File, which: u8) {
    let _stopped = mounted.stopped();
    let file = file.try_clone().unwrap();
    in_time("reading", move || {
        let mut content = vec![0; LARGE + 1];
        assert_eq!(file.read_at(&mut content, 0).unwrap(), LARGE);
        assert!(content[..LARGE] == large(which));
        let (length, private) = (NonZeroUsize::new(LARGE).unwrap(), MapFlags::MAP_PRIVATE);
        // SAFETY: a new map, which ends with this thread's use of it; nobody writes to the file.
        unsafe {
            let map = mmap(None, length, ProtFlags::PROT_READ, private, &file, 0).unwrap();
            assert!(std::slice::from_raw_parts(map.cast::<u8>().as_ptr(), LARGE) == large(which));
            munmap(map, LARGE).unwrap();
        }
    });
}

/// A file system of its own, which cannot be unmounted while anybody has one of its files open.
struct Disk(PathBuf);

impl Disk {
    fn new(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        Self(at.to_owned())
    }

    /// Waits until nobody has anything of it open.
    #[track_caller]
    fn is_left(&self) {
        eventually("the end of all that is open on a disk", || {
            umount2(&self.0, MntFlags::UMOUNT_NOFOLLOW).ok()
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_large_file_is_read_without_the_program() {
    needs_passthrough!("a_large_file_is_read_without_the_program");
    let dir = tempfile::tempdir().unwrap();
    let lower = tree(&dir.path().join("lower"), &[("small", "small"), ("empty", "")]);
    std::fs::write(lower.join("large"), large(1)).unwrap();
    std::fs::copy("/proc/self/exe", lower.join("program")).unwrap();
    let mounted = mounted(&[("lower", &lower)]);
    let status = mounted.status();
    assert!(status.abilities.iter().any(|able| able == "passthrough"), "{:?}", status.abilities);

    let file = File::open(mounted.at("large")).unwrap();
    read_without_the_program(&mounted, &file, 1);
    // Several at a time have the same file behind them.
    let again = File::open(mounted.at("large")).unwrap();
    read_without_the_program(&mounted, &again, 1);
    drop(file);
    read_without_the_program(&mounted, &again, 1);
    // What is copied comes from the program, and then from the kernel's cache.
    assert_eq!((mounted.read("small").as_str(), mounted.read("empty").as_str()), ("small", ""));
    let small = File::open(mounted.at("small")).unwrap();
    let cached = {
        let _stopped = mounted.stopped();
        in_time("a cached file", move || {
            let mut content = [0; 9];
            let read = small.read_at(&mut content, 0).unwrap();
            content[..read].to_vec()
        })
    };
    assert_eq!(cached, b"small");
    // As a program is, which the kernel maps.
    let listed = Command::new(mounted.at("program")).arg("--list").output().unwrap();
    succeeded(&listed);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("a_large_file_is_read_without_the_program"));
    // Nobody may write, as ever.
    assert_eq!(File::create(mounted.at("large")).unwrap_err().raw_os_error(), Some(nix::libc::EROFS));
}

#[test]
fn who_has_a_file_open_keeps_it_and_the_kernel_lets_go_of_it_with_the_last() {
    needs_passthrough!("who_has_a_file_open_keeps_it_and_the_kernel_lets_go_of_it_with_the_last");
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(&dir.path().join("disk"));
    std::fs::write(disk.0.join("large"), large(1)).unwrap();
    let other = tree(&dir.path().join("other"), &[("other", "other")]);
    let mounted = mounted(&[("lower", &disk.0), ("other", &other)]);
    let old = File::open(mounted.at("large")).unwrap();

    std::fs::write(disk.0.join("new"), large(2)).unwrap();
    std::fs::rename(disk.0.join("new"), disk.0.join("large")).unwrap();
    eventually("the new content", || (std::fs::read(mounted.at("large")).unwrap() == large(2)).then_some(()));
    let new = File::open(mounted.at("large")).unwrap();
    // What cannot take over must not end what the kernel has open.
    assert_eq!(mounted.upgrade(Some(Path::new("/bin/false"))).status.code(), Some(1));
    read_without_the_program(&mounted, &old, 1);

    succeeded(&mounted.upgrade(None));
    read_without_the_program(&mounted, &old, 1);
    read_without_the_program(&mounted, &new, 2);
    // Of one that is open already the kernel takes the same file alone.
    read_without_the_program(&mounted, &File::open(mounted.at("large")).unwrap(), 2);

    // Twice: a rollback would show the first.
    mounted.layer("remove", "lower");
    mounted.layer("replace", &format!("other=dir:{},priority=3", other.display()));
    read_without_the_program(&mounted, &old, 1);
    read_without_the_program(&mounted, &new, 2);
    assert_eq!(umount2(&disk.0, MntFlags::UMOUNT_NOFOLLOW), Err(nix::errno::Errno::EBUSY));
    drop((old, new));
    disk.is_left();
}

#[test]
fn readers_and_switches_and_upgrades_at_a_time() {
    needs_passthrough!("readers_and_switches_and_upgrades_at_a_time");
    let dir = tempfile::tempdir().unwrap();
    let disks: Vec<Disk> = (1..=2).map(|n| Disk::new(&dir.path().join(format!("disk{n}")))).collect();
    for (which, disk) in (1..).zip(&disks) {
        for name in ["a", "b"] {
            std::fs::write(disk.0.join(name), large(which)).unwrap();
        }
    }
    let spec = |n: usize| format!("lower=dir:{},watch=off", disks[n].0.display());
    let mounted = Mounted::new(&["--passthrough", "--layer", &spec(0)]);
    let (over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for name in ["a", "b", "a", "b"] {
            let (mounted, over, reads) = (&mounted, &over, &reads);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let content = std::fs::read(mounted.at(name)).unwrap();
                    assert!(content == large(1) || content == large(2));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
        for round in 1..=60 {
            mounted.layer("replace", &spec(round % 2));
            if round % 20 == 0 {
                succeeded(&mounted.upgrade(None));
            }
            let before = reads.load(Ordering::Relaxed);
            eventually("more reads", || (reads.load(Ordering::Relaxed) > before + 4).then_some(()));
        }
    });
    let gone = tree(&dir.path().join("gone"), &[("gone", "gone")]);
    for _ in 0..2 {
        mounted.layer("replace", &format!("lower=dir:{},watch=off", gone.display()));
    }
    disks.iter().for_each(Disk::is_left);
}

#[test]
fn what_the_kernel_does_not_take_comes_from_the_program() {
    needs_passthrough!("what_the_kernel_does_not_take_comes_from_the_program");
    let dir = tempfile::tempdir().unwrap();
    let below = Disk::new(&dir.path().join("below"));
    for name in ["lower", "upper", "work"] {
        std::fs::create_dir(below.0.join(name)).unwrap();
    }
    std::fs::write(below.0.join("lower/large"), large(1)).unwrap();
    let stacked = dir.path().join("stacked");
    std::fs::create_dir(&stacked).unwrap();
    let at = |name: &str| below.0.join(name).display().to_string();
    let options = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    mount(Some("overlay"), &stacked, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let stacked = Disk(stacked);
    {
        let mounted = mounted(&[("stacked", &stacked.0)]);
        // The kernel has refused the file by then, and keeps to it while it is open.
        let (one, two) = (File::open(mounted.at("large")).unwrap(), File::open(mounted.at("large")).unwrap());
        for file in [&one, &two] {
            let mut content = vec![0; LARGE];
            file.read_exact_at(&mut content, 0).unwrap();
            assert!(content == large(1));
        }
        // An overlayfs may still stand on top.
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let options = format!("lowerdir={}:{}", mounted.at("").display(), at("upper"));
        mount(Some("overlay"), &top, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        let top = Disk(top);
        assert!(std::fs::read(top.0.join("large")).unwrap() == large(1));
    }
}

#[test]
fn without_it_nothing_is_said_of_it_and_with_it_what_lacks() {
    needs_mount!("without_it_nothing_is_said_of_it_and_with_it_what_lacks");
    let dir = tempfile::tempdir().unwrap();
    let lower = tree(&dir.path().join("lower"), &[("a", "a")]);
    let layer = format!("lower=dir:{}", lower.display());
    let says = |mounted: &Mounted| {
        let status = mounted.status();
        let has = |list: &[String]| list.iter().any(|word| word.contains("passthrough"));
        (has(&status.abilities), has(&status.reduced))
    };
    assert_eq!(says(&Mounted::new(&["--layer", &layer])), (false, false));
    let able = linux() >= (6, 9);
    let mounted = Mounted::with_config(&["--layer", &layer], "passthrough = true\n");
    assert_eq!(says(&mounted), (able, !able));
    assert_eq!(mounted.read("a"), "a");
}
