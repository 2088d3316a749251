//! A line in /etc/fstab and mount(8), as on any system; in a mount namespace of the test's own.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use common::{eventually, tree};

/// Runs a script where `/etc/fstab` is `fstab` and `/sbin/mount.ffs` is this program.
fn in_namespace(dir: &Path, fstab: &str, script: &str) -> Output {
    for name in ["helper", "upper", "work", "mnt"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    let link = dir.join("helper/mount.ffs");
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ffs"), &link).unwrap();
    }
    std::fs::write(dir.join("fstab"), fstab).unwrap();
    let prepare = r#"set -e
        mount --bind "$DIR/fstab" /etc/fstab
        sbin=$(readlink -f /sbin)
        mount -t overlay overlay -o "lowerdir=$DIR/helper:$sbin" "$sbin" || { echo NO-OVERLAY; exit 0; }
        set +e
        "#;
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &format!("{prepare}{script}")])
        .env("DIR", dir)
        .env("FFS", env!("CARGO_BIN_EXE_ffs"))
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn a_line_in_fstab_mounts() {
    needs_mount!("a_line_in_fstab_mounts");
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let a = tree(&at.join("a,b"), &[("x", "from a\n")]);
    let b = tree(&at.join("b"), &[("x", "from b\n"), ("y", "")]);
    let options = format!(
        r"ro,nosuid,nofail,_netdev,x-systemd.device-timeout=1,layer=a=dir:{},priority=2,layer=b=dir:{},socket={}",
        a.display().to_string().replace(',', r"\,"),
        b.display(),
        at.join("socket").display()
    );
    let fstab = format!("ffs {}/mnt ffs {options} 0 0\n", at.display());
    let script = r#"
        mount "$DIR/mnt"; echo "mount: $?"
        cat "$DIR/mnt/x"; ls "$DIR/mnt"
        findmnt -n -o FSTYPE "$DIR/mnt"
        "$FFS" status --json "$DIR/mnt" --socket "$DIR/socket" | sed -n 's/^  "pid": \(.*\),/pid: \1/p'
        umount "$DIR/mnt"; echo "umount: $?"
        "#;
    let output = in_namespace(at, &fstab, script);
    let text = text(&output);
    if text.contains("NO-OVERLAY") {
        eprintln!("SKIPPED a_line_in_fstab_mounts: no overlayfs to put mount.ffs into /sbin with");
        return;
    }
    let lines: Vec<&str> = text.lines().collect();
    let pid = lines.iter().find_map(|line| line.strip_prefix("pid: ")).unwrap_or_else(|| panic!("{text}"));
    let wanted = ["mount: 0", "from a", "x", "y", "fuse.ffs", &format!("pid: {pid}"), "umount: 0"];
    assert_eq!(lines, wanted, "{text}");
    // The program behind the mount ends with it.
    eventually("the end of ffs", || (!Path::new("/proc").join(pid).exists()).then_some(()));
}

#[test]
fn the_exit_codes_are_those_of_mount() {
    needs_mount!("the_exit_codes_are_those_of_mount");
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("mount.ffs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ffs"), &helper).unwrap();
    let point = dir.path().to_str().unwrap();
    for (args, code, says) in [
        (&["ffs"][..], 1, "usage"),
        (&["ffs", point, "-o", "umask=077"], 1, "leave `umask` out"),
        (&["ffs", point, "-o", "layer=a=nfs:/x"], 1, "dir:PATH"),
        (&["ffs", point, "-o", "nosymfollow,projection=kubernetes"], 32, "contradict"),
        (&["ffs", "/does/not/exist", "-o", "layer=a=dir:/etc"], 32, "/does/not/exist"),
        (&["ffs", point, "-o", "layer=a=dir:/does/not/exist"], 32, "layer `a`"),
        (&["ffs", point, "-f"], 0, ""),
    ] {
        let output = Command::new(&helper).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output));
        assert!(text(&output).contains(says), "{args:?}: {}", text(&output));
    }
}

/// Lines of fstab, and the flags of the mount that mount(8) makes of each.
#[test]
fn the_options_that_mount_passes_are_obeyed() {
    needs_mount!("the_options_that_mount_passes_are_obeyed");
    let always = "ro,nosuid,nodev,noatime";
    let noexec = "ro,nosuid,nodev,noexec,noatime";
    let lines = [
        ("defaults", always),
        ("rw", always),
        ("ro,noexec", noexec),
        ("noexec,exec", always),
        ("user", noexec),
        ("users,exec", always),
        ("group", always),
        ("owner,noexec", noexec),
        ("suid,dev,exec,async,atime", always),
        ("noatime,nodiratime,relatime,strictatime,lazytime", always),
        ("sync,dirsync,mand,iversion,silent", always),
        ("noauto,nofail,_netdev,x-systemd.automount,X-mount.mkdir,comment=x", always),
        (
            "max_read=65536,blksize=512,nonempty,fsname=x,subtype=y,kernel_cache,allow_root,default_permissions",
            always,
        ),
        ("nosymfollow", "ro,nosuid,nodev,noatime,nosymfollow"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let layer = tree(&dir.path().join("a"), &[("x", "from a\n")]);
    let (mut fstab, mut wanted) = (String::new(), String::new());
    // The last one needs Linux 5.14.
    let lines = &lines[..lines.len() - usize::from(common::linux() < (5, 14))];
    for (number, (options, flags)) in lines.iter().enumerate() {
        let layer = layer.display();
        let own = format!("layer=a=dir:{layer},socket={at}/socket{number}");
        writeln!(fstab, "ffs {at}/mnt/{number} ffs {options},{own} 0 0").unwrap();
        std::fs::create_dir_all(dir.path().join(format!("mnt/{number}"))).unwrap();
        writeln!(wanted, "{options}: 0 {flags}").unwrap();
    }
    // Flags alone change; what is not said is as it was at first, as with other file systems.
    write!(wanted, "remount: 0 {noexec}\nremount,rw: 0 {always}\nof another: 32 {always}\n").unwrap();
    let script = format!(
        r#"
        show() {{ echo "$1: $2 $(findmnt -n -o VFS-OPTIONS "$DIR/mnt/$3")"; }}
        number=0
        for options in {}; do
            mount "$DIR/mnt/$number" 2>&1; show "$options" $? $number
            number=$((number + 1))
        done
        mount -o remount,noexec "$DIR/mnt/0"; show remount $? 0
        mount -o remount,rw "$DIR/mnt/0"; show remount,rw $? 0
        mount -t ffs -o remount ffs "$DIR/a" 2> /dev/null; show "of another" $? 0
        umount "$DIR"/mnt/*
        "#,
        lines.iter().map(|(options, _)| *options).collect::<Vec<_>>().join(" ")
    );
    let text = text(&in_namespace(dir.path(), &fstab, &script));
    if text.contains("NO-OVERLAY") {
        eprintln!(
            "SKIPPED the_options_that_mount_passes_are_obeyed: no overlayfs to put mount.ffs into /sbin with"
        );
        return;
    }
    assert_eq!(text, wanted);
}

#[test]
fn a_projection_is_not_remounted_without_its_links() {
    needs_mount!("a_projection_is_not_remounted_without_its_links");
    let dir = tempfile::tempdir().unwrap();
    let a = tree(&dir.path().join("a"), &[("x", "1")]);
    let layer = format!("a=dir:{}", a.display());
    let mounted = common::Mounted::new(&["--layer", &layer, "--projection", "kubernetes"]);
    let helper = dir.path().join("mount.ffs");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ffs"), &helper).unwrap();
    let socket = mounted.dir.path().join("socket");
    let remount = |flags: &str| {
        let options = format!("remount,{flags},socket={}", socket.display());
        Command::new(&helper).arg("ffs").arg(mounted.at("")).args(["-o", &options]).output().unwrap()
    };
    let output = remount("nosymfollow");
    assert_eq!(output.status.code(), Some(32), "{}", text(&output));
    assert!(text(&output).contains("contradict"), "{}", text(&output));
    assert_eq!(mounted.read("x"), "1");
    common::succeeded(&remount("noexec"));
    assert_eq!(mounted.read("x"), "1");
}

#[test]
fn a_mount_without_a_line_in_fstab_is_remounted_through_fuse_s_own_helper() {
    needs_mount!("a_mount_without_a_line_in_fstab_is_remounted_through_fuse_s_own_helper");
    if !Path::new("/sbin/mount.fuse3").exists() {
        eprintln!(
            "SKIPPED a_mount_without_a_line_in_fstab_is_remounted_through_fuse_s_own_helper: no mount.fuse3"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let a = common::tree(&dir.path().join("a"), &[("x", "1")]);
    let mounted = common::Mounted::new(&["--layer", &format!("a=dir:{}", a.display())]);
    let programs = Path::new(env!("CARGO_BIN_EXE_ffs")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let point = mounted.at("").canonicalize().unwrap();
    // As mount(8) calls it for the type `fuse.ffs`, but for the path, which it sets to that of the system.
    let output = Command::new("/sbin/mount.fuse3")
        .env("PATH", path)
        .arg("ffs")
        .arg(&point)
        .args(["-o", "ro,nosuid,nodev,noatime,user_id=0,group_id=0,remount,noexec", "-t", "fuse.ffs"])
        .output()
        .unwrap();
    common::succeeded(&output);
    let table = std::fs::read("/proc/self/mountinfo").unwrap();
    let entry = ffs::kernel::mountinfo::parse(&table).find(|entry| entry.point == point).unwrap();
    assert!(entry.flags.contains(nix::mount::MsFlags::MS_NOEXEC) && entry.is_read_only());
}
