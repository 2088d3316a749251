//! From a recipe to an image: mmdebstrap makes the tree, mke2fs the file system, we the initramfs.
//!
//! mmdebstrap finds its own mirror and key ring, and works with or without root. Its tar stream is unpacked while it
//! is still written. Everything happens in a folder beside the image that is renamed at the end; a lock makes
//! of two builders of one image a builder and somebody who waits.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ctx_io::bounded;
use sha2::{Digest as _, Sha256};

use super::cache::{FileDigest, HYPERVISOR, HYPERVISOR_CONFIG};
use super::{Cache, Error, Image, Manifest, Progress, Recipe, Stage, TREE, ext4, initramfs, run, wait_for};
use crate::deadline::call_blocking;
use crate::program;

/// Where the script lies that configures the tree from inside; removed when it has run.
const HOOK: &str = ".bench-hook";
/// Where a build notes the folder that it uses outside the cache.
const SCRATCH_NOTE: &str = "scratch";
/// How long mmdebstrap may take, over a slow network.
const BUILD: Duration = Duration::from_secs(2 * 3600);
/// How long it may take to clean up when it is stopped, and a program to say its version.
const END: Duration = Duration::from_secs(60);
/// Lines of mmdebstrap's output that an error shows.
const SHOWN: usize = 25;

/// The recipe's image: out of the cache, or built now. `progress` is called at every stage of a build.
///
/// # Errors
/// Any of [`Error`]; a build that fails leaves nothing behind.
pub fn build(recipe: &Recipe, cache: &Cache, progress: &(dyn Fn(&Progress) + Sync)) -> Result<Image, Error> {
    make(recipe, cache, false, progress)
}

/// Several images side by side: a build waits for the network as often as for the processor.
///
/// # Errors
/// The first error, after all builds have ended.
pub fn build_all(
    recipes: &[Recipe],
    cache: &Cache,
    afresh: bool,
    progress: &(dyn Fn(&Progress) + Sync),
) -> Result<Vec<Image>, Error> {
    thread::scope(|scope| {
        let builds: Vec<_> =
            recipes.iter().map(|recipe| scope.spawn(move || make(recipe, cache, afresh, progress))).collect();
        builds
            .into_iter()
            .map(|build| build.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn make(
    recipe: &Recipe,
    cache: &Cache,
    afresh: bool,
    progress: &(dyn Fn(&Progress) + Sync),
) -> Result<Image, Error> {
    let digest = recipe.digest();
    if !afresh && let Some(image) = cache.find(&digest)? {
        return Ok(image);
    }
    let begun = Instant::now();
    let report = |stage| progress(&Progress::at(&recipe.name, stage, begun.elapsed()));
    let mut lock = cache.lock_file(&digest, "build")?;
    if lock.try_lock().is_err() {
        report(Stage::Waiting);
        let locked = move || lock.lock().map(|()| lock);
        lock = wait_for("another bench that builds it", &recipe.name, cache.folder(), BUILD + TREE, locked)?;
        // Whoever held the lock has most likely built what we want.
        if let Some(image) = cache.find(&digest)? {
            return Ok(image);
        }
    }

    let folder = cache.folder().join(format!(".{digest}.building"));
    clear(&folder)?;
    fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
    let built = assemble(recipe, &digest, &folder, begun, &report);
    if let Err(error) = built {
        // The build's own error is the one to tell.
        let _ = clear(&folder);
        return Err(error);
    }
    let finished = cache.folder().join(&digest);
    ext4::remove_tree(&finished)?;
    fs::rename(&folder, &finished).map_err(Error::io("rename to", &finished))?;
    sync(cache.folder())?;
    report(Stage::Done);
    drop(lock);
    cache.find(&digest)?.ok_or_else(|| Error::Incomplete {
        image: recipe.name.clone(),
        message: "somebody removed it while it was built".into(),
    })
}

/// Removes the folder of a build that has ended or died, and what it used elsewhere.
pub(super) fn clear(folder: &Path) -> Result<(), Error> {
    if let Ok(scratch) = bounded::read(&folder.join(SCRATCH_NOTE), bounded::NUMBER) {
        ext4::remove_tree(Path::new(OsStr::from_bytes(&scratch)))?;
    }
    ext4::remove_tree(folder)
}

fn assemble(
    recipe: &Recipe,
    digest: &str,
    folder: &Path,
    begun: Instant,
    report: &dyn Fn(Stage),
) -> Result<(), Error> {
    let tree = folder.join("tree");
    fs::create_dir(&tree).map_err(Error::io("create", &tree))?;
    debootstrap(recipe, folder, &tree, report)?;

    report(Stage::FileSystem);
    let incomplete = |message: String| Error::Incomplete { image: recipe.name.clone(), message };
    let version = initramfs::kernel(&tree).map_err(incomplete)?;
    let take = |from: &str, to: &str| take_from(&tree.join(from), &folder.join(to));
    take(&format!("boot/vmlinuz-{version}"), "vmlinuz")?;
    take("usr/share/bench/packages.tsv", "packages.tsv")?;
    let mut names = vec!["root.ext4", "vmlinuz", "initrd", "packages.tsv", "recipe.toml"];
    if let Some(hypervisor) = hypervisor(&tree.join("boot")).map_err(incomplete)? {
        put(&folder.join(HYPERVISOR), &gunzip(&recipe.name, &hypervisor)?)?;
        take_from(&hypervisor.with_extension("config"), &folder.join(HYPERVISOR_CONFIG))?;
        names.extend([HYPERVISOR, HYPERVISOR_CONFIG]);
    }
    let initrd = initramfs::make(&recipe.name, &tree, &recipe.initramfs)?;
    put(&folder.join("initrd"), &initrd)?;
    let text = toml::to_string(recipe).map_err(|error| incomplete(error.to_string()))?;
    put(&folder.join("recipe.toml"), text.as_bytes())?;
    // The machine is started with the kernel beside the image.
    ext4::remove_tree(&tree.join("boot"))?;
    for place in ["boot", "dev"] {
        let place = tree.join(place);
        fs::create_dir_all(&place).map_err(Error::io("create", &place))?;
    }
    ext4::write(&recipe.name, &tree, &folder.join("root.ext4"), digest)?;
    ext4::remove_tree(&tree)?;

    let mut files = BTreeMap::new();
    for name in names {
        let path = folder.join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(Error::io("protect", &path))?;
        sync(&path)?;
        files.insert(name.to_owned(), digest_of(&path)?);
    }
    let manifest = Manifest {
        name: recipe.name.clone(),
        digest: digest.to_owned(),
        suite: recipe.suite.clone(),
        kernel: version,
        built_at: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        build_seconds: begun.elapsed().as_secs_f64(),
        tools: ["mmdebstrap", "mke2fs"].iter().map(|tool| ((*tool).to_owned(), tool_version(tool))).collect(),
        files,
    };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|error| incomplete(error.to_string()))?;
    put(&folder.join("image.json"), &text)?;
    sync(folder)
}

/// Runs mmdebstrap and unpacks its stream into `tree`.
fn debootstrap(recipe: &Recipe, folder: &Path, tree: &Path, report: &dyn Fn(Stage)) -> Result<(), Error> {
    // apt downloads as a user of its own, who may not enter a private cache folder; /var/tmp is on disk where /tmp is memory.
    // Not $TMPDIR, which may have any characters: a shell reads the path in mmdebstrap's hooks.
    let root = Path::new(if Path::new("/var/tmp").is_dir() { "/var/tmp" } else { "/tmp" });
    let scratch = tempfile::Builder::new()
        .prefix("bench-image-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(root)
        .map_err(Error::io("create a folder in", root))?
        .keep();
    put(&folder.join(SCRATCH_NOTE), scratch.as_os_str().as_encoded_bytes())?;
    let files = scratch.join("files.tar");
    pack(recipe, &scratch.join("files"), &files)?;

    let privileged = nix::unistd::geteuid().is_root();
    let missing = |program: &str, package| {
        let program = program.to_owned();
        move |_| Error::Missing { program, package }
    };
    // `setpriv` lets it end with us, even when we are killed; on SIGTERM it cleans up behind itself.
    let mut mmdebstrap = Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "mmdebstrap", "--verbose", "--variant=minbase", "--skip=output/dev"])
        .arg(format!("--mode={}", if privileged { "root" } else { "unshare" }))
        .arg(format!("--include={}", recipe.packages.join(",")))
        .arg("--aptopt=Apt::Install-Recommends \"false\"")
        .args(recipe.exclude.iter().map(|pattern| format!("--dpkgopt=path-exclude={pattern}")))
        // The kernel's package would make an initramfs that nobody uses: a third of a build's time.
        .arg(
            "--essential-hook=chroot \"$1\" dpkg-divert --quiet --local --rename --add /usr/sbin/update-initramfs \
             && ln -s ../bin/true \"$1/usr/sbin/update-initramfs\"",
        )
        .arg(format!("--customize-hook=tar-in {} /", files.display()))
        .arg(format!("--customize-hook=chroot \"$1\" /bin/sh -eu /{HOOK}"))
        .arg(format!("--customize-hook=rm \"$1/{HOOK}\""))
        .args(["--format=tar", &recipe.suite, "-"])
        .env("TMPDIR", &scratch)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing("setpriv", "util-linux"))?;
    let (Some(stream), Some(said)) = (mmdebstrap.stdout.take(), mmdebstrap.stderr.take()) else {
        unreachable!("both were piped");
    };
    let unpack = ext4::as_root("tar")
        .args(["--extract", "--file=-", "--preserve-permissions", "--numeric-owner", "--exclude=./dev/*"])
        .arg("--directory")
        .arg(tree)
        .stdin(stream)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing("tar", "tar"))?;

    let log_path = folder.join("build.log");
    let mut log = fs::File::create(&log_path).map_err(Error::io("create", &log_path))?;
    let mut last = VecDeque::new();
    let whole = each_line(said, BUILD, |line| {
        if let Some(stage) = Stage::announced_by(&line) {
            report(stage);
        }
        writeln!(log, "{line}").map_err(Error::io("write", &log_path))?;
        if last.len() == SHOWN {
            last.pop_front();
        }
        last.push_back(line);
        Ok(())
    })?;
    let late = |program, limit| Error::Late { program, image: recipe.name.clone(), limit };
    if !whole {
        // It cleans up behind itself, and tar ends with its stream.
        let waited = Error::io("wait for mmdebstrap in", folder);
        program::end(&mut mmdebstrap, END).map_err(waited)?;
        return Err(late("mmdebstrap", BUILD));
    }
    let status = program::ended_within(&mut mmdebstrap, TREE)
        .map_err(Error::io("wait for mmdebstrap in", folder))?
        .ok_or_else(|| late("mmdebstrap", TREE))?;
    let unpacked = call_blocking("this machine", "unpack", TREE, move || unpack.wait_with_output())
        .map_err(|_| late("tar", TREE))?
        .map_err(Error::io("wait for tar in", folder))?;
    // 127: setpriv found no such program.
    if status.code() == Some(127) {
        return Err(Error::Missing { program: "mmdebstrap".into(), package: "mmdebstrap" });
    }
    let failed = |program, status: std::process::ExitStatus, stderr| Error::Program {
        program,
        image: recipe.name.clone(),
        status: status.to_string(),
        stderr,
    };
    if !status.success() {
        return Err(failed("mmdebstrap", status, Vec::from(last).join("\n")));
    }
    if !unpacked.status.success() {
        return Err(failed("tar", unpacked.status, String::from_utf8_lossy(&unpacked.stderr).into_owned()));
    }
    ext4::remove_tree(&scratch)?;
    let note = folder.join(SCRATCH_NOTE);
    fs::remove_file(&note).map_err(Error::io("remove", &note))
}

/// Reads lines to the end of a stream and gives each to `take`; whether the end came within the limit.
fn each_line(
    stream: impl Read + Send + 'static,
    limit: Duration,
    mut take: impl FnMut(String) -> Result<(), Error>,
) -> Result<bool, Error> {
    let end = Instant::now() + limit;
    let (sender, lines) = mpsc::channel();
    // Nobody can end a read: after the limit, the thread is left to it.
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => take(line)?,
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(true),
            Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
        }
    }
}

/// The recipe's files and the script, as a tar that holds no directories: those of the packages keep their permissions.
fn pack(recipe: &Recipe, stage: &Path, out: &Path) -> Result<(), Error> {
    let mut names = Vec::new();
    let mut place = |inside: &str| -> Result<PathBuf, Error> {
        let relative = inside.trim_start_matches('/');
        let path = stage.join(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        }
        names.push(relative.to_owned());
        Ok(path)
    };
    for file in &recipe.files {
        let path = place(&file.path)?;
        put(&path, file.content.as_deref().unwrap_or_default().as_bytes())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
            .map_err(Error::io("protect", &path))?;
    }
    for link in &recipe.symlinks {
        let path = place(&link.path)?;
        std::os::unix::fs::symlink(&link.target, &path).map_err(Error::io("create", &path))?;
    }
    for path in &recipe.switch_off {
        let path = place(path)?;
        std::os::unix::fs::symlink("/dev/null", &path).map_err(Error::io("create", &path))?;
    }
    put(&place(HOOK)?, script(recipe).as_bytes())?;
    let mut tar = Command::new("tar");
    tar.args(["--create", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--no-recursion"])
        .arg("--directory")
        .arg(stage)
        .arg("--file")
        .arg(out)
        .arg("--")
        .args(&names)
        .stdin(Stdio::null());
    let output = run(&mut tar, "tar", "tar", &recipe.name)?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::Program {
        program: "tar",
        image: recipe.name.clone(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// What runs inside the tree, as root: units, hooks, and the list of packages.
fn script(recipe: &Recipe) -> String {
    let mut script = String::from("export DEBIAN_FRONTEND=noninteractive\n");
    let mut line = |text: &str| {
        script.push_str(text);
        script.push('\n');
    };
    for (verb, units) in [("disable", &recipe.disable), ("enable", &recipe.enable)] {
        if !units.is_empty() {
            line(&format!("systemctl --quiet {verb} {}", units.join(" ")));
        }
    }
    for unit in &recipe.mask {
        line(&format!("ln -sfn /dev/null '/etc/systemd/system/{unit}'"));
    }
    for hook in &recipe.hooks {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ =
            write!(text, "echo 'I: hook: {}' >&2\n(\n{}\n)", hook.name.replace('\'', ""), hook.script.trim());
        line(&text);
    }
    line("dpkg-divert --quiet --local --no-rename --remove /usr/sbin/update-initramfs");
    line("rm -f /boot/initrd.img-* /boot/System.map-*");
    line("mkdir -p /usr/share/bench");
    line(
        "dpkg-query --show --showformat '${Package}\\t${Version}\\t${Architecture}\\n' > /usr/share/bench/packages.tsv",
    );
    script
}

/// Xen in a tree's `/boot`, compressed: `xen-VERSION-ARCHITECTURE.gz`, with its configuration beside it.
fn hypervisor(boot: &Path) -> Result<Option<PathBuf>, String> {
    let mut found: Vec<PathBuf> = fs::read_dir(boot)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"xen-")))
        // Debian links the newest under a shorter name.
        .filter(|path| !path.is_symlink())
        .collect();
    match (found.pop(), found.is_empty()) {
        (found, true) => Ok(found),
        (_, false) => {
            Err("it has more than one Xen; the recipe shall name one package xen-hypervisor-…".into())
        }
    }
}

/// The loader takes Xen as an ELF file alone.
fn gunzip(image: &str, path: &Path) -> Result<Vec<u8>, Error> {
    let mut gzip = Command::new("gzip");
    gzip.args(["--decompress", "--stdout"]).arg(path).stdin(Stdio::null());
    let output = run(&mut gzip, "gzip", "gzip", image)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Program {
        program: "gzip",
        image: image.to_owned(),
        status: output.status.to_string(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn take_from(source: &Path, to: &Path) -> Result<(), Error> {
    fs::copy(source, to).map_err(Error::io("read", source)).map(drop)
}

fn put(path: &Path, content: &[u8]) -> Result<(), Error> {
    fs::write(path, content).map_err(Error::io("write", path))
}

fn sync(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|file| ctx_io::durable::sync(&file)).map_err(Error::io("write", path))
}

fn digest_of(path: &Path) -> Result<FileDigest, Error> {
    let mut file = fs::File::open(path).map_err(Error::io("read", path))?;
    let (mut hasher, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        let read = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if read == 0 {
            return Ok(FileDigest { bytes, sha256: super::recipe::hex(&hasher.finalize()) });
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// The first line of `--version`, or of `-V` where the program knows only that.
fn tool_version(tool: &str) -> String {
    let ask = |option: &str| {
        let output = program::output(Command::new(tool).arg(option).stdin(Stdio::null()), END).ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned())
    };
    ask(if tool == "mke2fs" { "-V" } else { "--version" }).unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_that_never_ends_is_not_waited_for() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut lines = Vec::new();
        (&writer).write_all(b"one\ntwo\n").unwrap();
        // Long enough for a thread to start on a busy machine; what is tested is that the end comes.
        let whole = each_line(reader, Duration::from_secs(1), |line| {
            lines.push(line);
            Ok(())
        });
        assert!(!whole.unwrap());
        drop(writer);
        let whole = each_line(&b"three"[..], Duration::from_secs(600), |line| {
            lines.push(line);
            Ok(())
        });
        assert!(whole.unwrap());
        assert_eq!(lines.last().map(String::as_str), Some("three"));
    }

    #[test]
    fn the_script_enables_masks_and_records() {
        let script = script(&Recipe::built_in("host-kvm").unwrap());
        assert!(script.contains("systemctl --quiet enable ssh.service"));
        assert!(script.contains("'/etc/systemd/system/libvirtd-tls.socket'"));
        assert!(!script.contains("systemd-machined"), "libvirt needs it");
        assert!(!script.contains("systemd-udev-trigger"), "drivers need it");
        assert!(script.trim_end().ends_with("/usr/share/bench/packages.tsv"));
    }

    #[test]
    fn the_tar_holds_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("files.tar");
        pack(&Recipe::built_in("guest").unwrap(), &folder.path().join("files"), &out).unwrap();
        let output = Command::new("tar").arg("-tvf").arg(&out).output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(listing.lines().all(|line| !line.starts_with('d') && line.contains(" 0/0 ")), "{listing}");
        assert!(listing.contains("etc/ssh/sshd_config.d/00-bench.conf"));
    }
}
