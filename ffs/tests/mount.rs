//! The program on a real mount.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Mounted, eventually, image, tree};

#[test]
fn the_union_shows_the_highest_layer_and_all_names() {
    needs_mount!("the_union_shows_the_highest_layer_and_all_names");
    let dir = tempfile::tempdir().unwrap();
    let low = tree(&dir.path().join("low"), &[("x", "low"), ("d/only-low", "1"), ("file-or-dir/x", "")]);
    let high = tree(&dir.path().join("high"), &[("x", "high"), ("d/only-high", "2"), ("file-or-dir", "f")]);
    std::os::unix::fs::symlink("d/only-low", high.join("link")).unwrap();
    std::fs::set_permissions(high.join("x"), PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(high.join("x"), Some(7), Some(8)).unwrap();
    let mounted = Mounted::new(&[
        "--layer",
        &format!("low=dir:{},priority=1", low.display()),
        "--layer",
        &format!("high=dir:{},priority=2", high.display()),
    ]);
    assert_eq!(mounted.names(""), ["d", "file-or-dir", "link", "x"]);
    assert_eq!(mounted.names("d"), ["only-high", "only-low"]);
    assert_eq!(mounted.read("x"), "high");
    assert_eq!(mounted.read("link"), "1");
    assert_eq!(mounted.read("file-or-dir"), "f");
    let meta = mounted.at("x").metadata().unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.len()), (0o640, 7, 8, 4));
    assert_eq!(meta.mtime(), high.join("x").metadata().unwrap().mtime());
    assert_eq!(mounted.at("d").metadata().unwrap().nlink(), 2);
    mounted.layer("remove", "high");
    assert_eq!(mounted.read("x"), "low");
    assert_eq!(mounted.names("file-or-dir"), ["x"]);
    assert!(!mounted.at("link").exists());
}

#[test]
fn nobody_can_write() {
    needs_mount!("nobody_can_write");
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(dir.path(), &[("x", "1"), ("d/y", "")]);
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    let refused = |what: &str, result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(nix::libc::EROFS), "{what}");
    };
    refused("open", File::options().write(true).open(mounted.at("x")).map(drop));
    refused("create", File::create(mounted.at("new")).map(drop));
    refused("mkdir", std::fs::create_dir(mounted.at("new")));
    refused("unlink", std::fs::remove_file(mounted.at("x")));
    refused("rmdir", std::fs::remove_dir(mounted.at("d")));
    refused("rename", std::fs::rename(mounted.at("x"), mounted.at("z")));
    refused("chmod", std::fs::set_permissions(mounted.at("x"), PermissionsExt::from_mode(0o777)));
    refused("symlink", std::os::unix::fs::symlink("a", mounted.at("l")));
    assert_eq!(mounted.read("x"), "1");
}

#[test]
fn an_open_file_and_listing_stay_in_their_generation() {
    needs_mount!("an_open_file_and_listing_stay_in_their_generation");
    let dir = tempfile::tempdir().unwrap();
    let iso = |generation: u64, files: &[(&str, &str)]| {
        let path = dir.path().join(format!("{generation}.iso"));
        std::fs::write(&path, image("infrastructure", 5, generation, files)).unwrap();
        format!("infra=iso:{}", path.display())
    };
    let many: Vec<String> = (0..3000).map(|i| format!("many/old-{i:04}")).collect();
    let mut old: Vec<(&str, &str)> = many.iter().map(|path| (path.as_str(), "")).collect();
    old.push(("site", "remote, the old one"));
    old.push(("same", "unchanged"));
    let mounted = Mounted::new(&["--layer", &iso(1, &old)]);
    let mut held = File::open(mounted.at("site")).unwrap();
    let same = mounted.at("same").metadata().unwrap().ino();
    let mut listing = std::fs::read_dir(mounted.at("many")).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();

    mounted.layer("replace", &iso(2, &[("site", "local"), ("many/new", ""), ("same", "unchanged")]));

    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "remote, the old one");
    held.seek(SeekFrom::Start(8)).unwrap();
    content.clear();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "the old one");
    assert_eq!(held.metadata().unwrap().len(), 19);
    let rest: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(rest.len() + 1, 3000, "first {first:?}");
    assert_eq!(mounted.read("site"), "local");
    assert_eq!(mounted.names("many"), ["new"]);
    assert_eq!(mounted.at("same").metadata().unwrap().ino(), same, "equal content keeps its inode");
    let status = mounted.status();
    assert_eq!((status.generation, status.layers[0].generation), (1, Some(2)));
}

#[test]
fn whiteouts_hide() {
    needs_mount!("whiteouts_hide");
    let dir = tempfile::tempdir().unwrap();
    let low =
        tree(&dir.path().join("low"), &[("gone", ""), ("also-gone", ""), ("d/hidden", ""), ("kept", "")]);
    let high = tree(&dir.path().join("high"), &[(".wh.gone", ""), ("d/.wh..wh..opq", ""), ("d/shown", "")]);
    let device = nix::sys::stat::makedev(0, 0);
    let mode = nix::sys::stat::Mode::empty();
    nix::sys::stat::mknod(&high.join("also-gone"), nix::sys::stat::SFlag::S_IFCHR, mode, device).unwrap();
    let mounted = Mounted::new(&[
        "--layer",
        &format!("low=dir:{},priority=1", low.display()),
        "--layer",
        &format!("high=dir:{},priority=2", high.display()),
    ]);
    assert_eq!(mounted.names(""), ["d", "kept"]);
    assert_eq!(mounted.names("d"), ["shown"]);
}

#[test]
fn a_changed_directory_layer_is_never_mixed_and_never_an_error() {
    needs_mount!("a_changed_directory_layer_is_never_mixed_and_never_an_error");
    let dir = tempfile::tempdir().unwrap();
    let large = "first, of a size that is not copied\n".repeat(10_000);
    let files = [("x", "first"), ("gone", "still read"), ("large", &large), ("large-gone", &large)];
    let layer = tree(dir.path(), &files);
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    let mut held = File::open(mounted.at("large")).unwrap();
    let mut start = [0; 5];
    held.read_exact(&mut start).unwrap();
    for (name, content) in [("x", "second, and longer"), ("large", "second")] {
        std::fs::write(layer.join("new"), content).unwrap();
        std::fs::rename(layer.join("new"), layer.join(name)).unwrap();
    }
    {
        // In place, and so first cut and then written: stopped, it cannot read the layer between.
        let _stopped = mounted.stopped();
        std::fs::write(layer.join("gone"), "cut").unwrap();
    }
    // Until the layer is read again, what was shown is whole: the old or the new, nothing between.
    let seen = mounted.read("x");
    assert!(["first", "second, and longer"].contains(&seen.as_str()), "{seen}");
    let seen = std::fs::read_to_string(mounted.at("gone")).unwrap();
    assert!(["still read", "cut"].contains(&seen.as_str()), "{seen}");
    for name in ["gone", "large-gone"] {
        std::fs::remove_file(layer.join(name)).unwrap();
    }
    let output = mounted.ffs(&["reload", mounted.at("").to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("the new content", || (mounted.read("x") == "second, and longer").then_some(()));
    assert_eq!(mounted.read("large"), "second");
    assert_eq!(mounted.names(""), ["large", "x"]);
    let mut rest = String::new();
    held.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, large[5..], "what was open is what it was");
}

/// How often the files are read at least while they change.
const READS: usize = 10_000;

/// Two files that always change together, and are longer than one read.
#[test]
fn readers_never_see_a_mixture() {
    needs_mount!("readers_never_see_a_mixture");
    let dir = tempfile::tempdir().unwrap();
    let content = |generation: u64| format!("{generation:08}\n").repeat(4000);
    let path = |generation: u64| dir.path().join(format!("{generation}.iso"));
    for generation in 1..=2 {
        let text = content(generation);
        std::fs::write(path(generation), image("i", 1, 1, &[("a", &text), ("d/b", &text)])).unwrap();
    }
    let mounted = Mounted::new(&["--layer", &format!("i=iso:{}", path(1).display())]);
    let contents = [content(1), content(2)];
    let done = AtomicBool::new(false);
    let began = std::time::Instant::now();
    let switches = std::thread::scope(|scope| {
        let readers: Vec<_> = ["a", "d/b"]
            .map(|file| {
                let (mounted, contents) = (&mounted, &contents);
                scope.spawn(move || {
                    let mut seen = [0; 2];
                    // A switch takes a program, which may take longer than all of these reads.
                    while seen.iter().sum::<usize>() < READS / 2 || seen.contains(&0) {
                        assert!(began.elapsed() < common::DEADLINE, "{seen:?}");
                        let text = mounted.read(file);
                        let which = contents.iter().position(|content| *content == text);
                        seen[which.expect("torn or mixed content")] += 1;
                    }
                })
            })
            .into();
        let _end = common::OnDrop(|| done.store(true, Ordering::Relaxed));
        let switcher = scope.spawn(|| {
            let mut switches = 0_u64;
            while !done.load(Ordering::Relaxed) {
                switches += 1;
                mounted.layer("replace", &format!("i=iso:{}", path(1 + switches % 2).display()));
            }
            switches
        });
        for reader in readers {
            reader.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        switcher.join().unwrap()
    });
    assert_eq!(mounted.status().generation, switches);
}

#[test]
fn it_ends_cleanly_by_signal_and_on_request() {
    needs_mount!("it_ends_cleanly_by_signal_and_on_request");
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(dir.path(), &[("x", "1")]);
    let spec = format!("l=dir:{}", layer.display());
    let mut mounted = Mounted::new(&["--layer", &spec]);
    assert_eq!(mounted.terminate(), Some(0));
    assert!(!mounted.is_mounted());

    let mut mounted = Mounted::new(&["--layer", &spec]);
    // In use: detached all the same.
    let held = File::open(mounted.at("x")).unwrap();
    assert_eq!(mounted.terminate(), Some(0));
    assert!(!mounted.is_mounted());
    drop(held);

    let mounted = Mounted::new(&["--layer", &spec]);
    let output = mounted.ffs(&["umount", mounted.at("").to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    eventually("the unmount", || (!mounted.is_mounted()).then_some(()));

    // By somebody else: the program ends too.
    let mut mounted = Mounted::new(&["--layer", &spec]);
    nix::mount::umount(&mounted.dir.path().join("mnt")).unwrap();
    assert_eq!(mounted.wait(), Some(0));
}

/// A folder whose name is not UTF-8.
fn odd(dir: &std::path::Path) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let odd = dir.join(std::ffi::OsStr::from_bytes(b"odd \xff"));
    std::fs::create_dir(&odd).unwrap();
    odd
}

#[test]
fn an_unmount_is_noticed_beside_a_mount_whose_path_is_not_text() {
    needs_mount!("an_unmount_is_noticed_beside_a_mount_whose_path_is_not_text");
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(&dir.path().join("a"), &[("x", "1")]);
    let beside = odd(dir.path());
    let none = None::<&str>;
    nix::mount::mount(none, &beside, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let _unmount = common::OnDrop(|| nix::mount::umount(&beside).unwrap());
    let mut mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    assert!(mounted.is_mounted());
    nix::mount::umount(&mounted.dir.path().join("mnt")).unwrap();
    assert_eq!(mounted.wait(), Some(0));
}

#[test]
fn a_mount_point_need_not_be_text() {
    needs_mount!("a_mount_point_need_not_be_text");
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(&dir.path().join("a"), &[("x", "1")]);
    let (point, socket) = (odd(dir.path()), dir.path().join("socket"));
    let ffs = |words: &[&std::ffi::OsStr]| {
        let program = env!("CARGO_BIN_EXE_ffs");
        std::process::Command::new(program).args(words).arg("--socket").arg(&socket).output().unwrap()
    };
    let (at, spec) = (point.as_os_str(), format!("l=dir:{}", layer.display()));
    common::succeeded(&ffs(&["mount".as_ref(), at, "--layer".as_ref(), spec.as_ref()]));
    assert_eq!(std::fs::read_to_string(point.join("x")).unwrap(), "1");
    let status = ffs(&["status".as_ref(), "--json".as_ref(), at]);
    common::succeeded(&status);
    let status: ffs::control::Status = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status.mount.file_name(), Some("odd \u{fffd}".as_ref()));
    let program = env!("CARGO_BIN_EXE_ffs");
    common::succeeded(&ffs(&["upgrade".as_ref(), at, "--program".as_ref(), program.as_ref()]));
    assert_eq!(std::fs::read_to_string(point.join("x")).unwrap(), "1");
    common::succeeded(&ffs(&["umount".as_ref(), at]));
    eventually("the end of ffs", || {
        (!std::path::Path::new("/proc").join(status.pid.to_string()).exists()).then_some(())
    });
    assert_eq!(std::fs::read_dir(&point).unwrap().count(), 0);
}

/// Cuts the connection between the kernel and the program, as an administrator does with a file system that hangs.
fn abort(mounted: &Mounted) {
    use std::os::unix::fs::MetadataExt;
    let control = tempfile::tempdir().unwrap();
    let (none, kind) = (None::<&str>, Some("fusectl"));
    nix::mount::mount(none, control.path(), kind, nix::mount::MsFlags::empty(), none).unwrap();
    let number = nix::libc::minor(mounted.at("").metadata().unwrap().dev());
    let aborted = std::fs::write(control.path().join(number.to_string()).join("abort"), "1");
    nix::mount::umount(control.path()).unwrap();
    aborted.unwrap();
}

#[test]
fn a_connection_that_is_cut_leaves_no_dead_mount() {
    needs_mount!("a_connection_that_is_cut_leaves_no_dead_mount");
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(dir.path(), &[("x", "1")]);
    let spec = format!("l=dir:{}", layer.display());
    let mut mounted = Mounted::new(&["--layer", &spec]);
    abort(&mounted);
    assert_eq!(mounted.wait(), Some(1));
    assert!(!mounted.is_mounted());
    // Wherever it is.
    let mut mounted = Mounted::new(&["--layer", &spec]);
    let elsewhere = dir.path().with_extension("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let (none, bind) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
    nix::mount::mount(Some(&mounted.at("")), &elsewhere, none, bind, none).unwrap();
    abort(&mounted);
    assert_eq!(mounted.wait(), Some(1));
    assert!(!mounted.is_mounted());
    // Dead or mounted it could not be removed.
    std::fs::remove_dir(&elsewhere).unwrap();
    // The same where another program had taken over.
    let mut mounted = Mounted::new(&["--layer", &spec]);
    common::succeeded(&mounted.upgrade(None));
    abort(&mounted);
    assert_eq!(mounted.wait(), Some(1));
    assert!(!mounted.is_mounted());
}

#[test]
fn bad_input_is_refused_before_anything_is_mounted() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ffs"));
        // Where an ordinary user's control socket would be.
        let output = command.args(args).env("XDG_RUNTIME_DIR", dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let point = dir.path().to_str().unwrap();
    let (code, error) = run(&["mount", point, "--layer", "x=nfs:/a"]);
    assert_eq!(code, Some(64), "{error}");
    assert!(error.contains("dir:PATH"), "{error}");
    let (code, error) = run(&["mount", "--foreground", point, "--layer", "x=dir:/does/not/exist"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("layer `x`") && error.contains("/does/not/exist"), "{error}");
    let file = tree(&dir.path().join("a"), &[("x", "")]).join("x");
    let layer = format!("x=dir:{}", dir.path().display());
    let (code, error) = run(&["mount", "--foreground", file.to_str().unwrap(), "--layer", &layer]);
    assert_eq!(code, Some(1));
    assert!(error.contains("not a directory"), "{error}");
    let torn = dir.path().join("torn.iso");
    let whole = image("i", 1, 1, &[("a", "content")]);
    let at = whole.windows(7).position(|window| window == b"content").unwrap();
    let mut bytes = whole;
    bytes[at] ^= 1;
    std::fs::write(&torn, bytes).unwrap();
    let (code, error) =
        run(&["mount", "--foreground", point, "--layer", &format!("x=iso:{}", torn.display())]);
    assert_eq!(code, Some(1));
    assert!(error.contains("`a` is not what the manifest says"), "{error}");
}
