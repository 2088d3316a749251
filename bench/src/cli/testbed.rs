//! `bench testbed up | ssh | down`: a testbed to look around in.
//!
//! `up` leaves a process behind that holds the testbed's namespaces; a record in the cache folder
//! says which, from its start on. The record is locked by that process for as long as it lives, so a
//! stale one is recognised for what it is, whatever ended the process. It is never removed: another
//! `up` may have just locked it.
//!
//! The holder's standard output is one end of a pair of sockets. `up` reads from the other what to show,
//! and confirms when the record is complete. When it ends before that (Ctrl-C, a full disk), the holder
//! reads the end of the stream and ends, too, with its machines.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use ctx_format::Number;
use ctx_io::{bounded, outln};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::Ended;
use super::stop::Stoppable;
use crate::doctor;
use crate::drive::setup;
use crate::image::Cache;
use crate::scenario::AcceleratorChoice;
use crate::testbed::hypervisor::Hypervisor;
use crate::testbed::namespace;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Boot hosts (and file servers) and leave them running
    Up {
        /// How many hosts: 1 or 2
        #[arg(long, default_value = "2", allow_negative_numbers = true)]
        hosts: Number<1, 2>,
        /// How many file servers beside them: 0 to 2
        #[arg(long, default_value = "0", allow_negative_numbers = true)]
        servers: Number<0, 2>,
        /// What runs guests on the hosts
        #[arg(long, value_enum, default_value = "kvm")]
        hypervisor: Hypervisor,
        /// What runs the hosts; auto takes hardware virtualization where hosts come up with it
        #[arg(long, value_enum, default_value = "auto")]
        accelerator: AcceleratorChoice,
    },
    /// Open a shell on a machine, or run a command there
    Ssh {
        /// Name of the machine
        #[arg(value_parser = ["a", "b", "server-remote", "server-local", "guest"])]
        machine: String,
        /// Command and arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Stop the testbed
    Down,
}

/// How long a testbed that comes up may say nothing: images are linked, and all machines boot side by side.
const SILENT: Duration = Duration::from_secs(900);

/// How long `down` waits for killed machines to end, in milliseconds: they give back gigabytes of memory.
const END_MS: u16 = 60_000;

/// Who holds the testbed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The `unshare` process, in the user's PID namespace; killing it ends everything.
    holder: u32,
    /// The client's SSH configuration, inside; none while the machines boot.
    ssh_config: Option<String>,
}

impl Record {
    /// Writes it in one call over the one before, which is shorter: no reader sees a part.
    fn write(&self, file: &File) -> std::io::Result<()> {
        file.write_all_at(serde_json::to_string(self)?.as_bytes(), 0)
    }

    /// What another `up` is told.
    fn refusal(&self) -> &'static str {
        match self.ssh_config {
            Some(_) => "a testbed is up already: `bench testbed ssh a`, or `bench testbed down` first",
            None => "a testbed is coming up already: wait for it, or `bench testbed down` first",
        }
    }
}

pub(super) fn run(command: &Command) -> anyhow::Result<Ended> {
    match command {
        Command::Up { hosts, servers, hypervisor, accelerator } if namespace::inside() => {
            hold(*hypervisor, *accelerator, hosts.get(), servers.get())
        }
        Command::Up { hypervisor, accelerator, .. } => up(*hypervisor, *accelerator),
        Command::Ssh { machine, command } => ssh(machine, command),
        Command::Down => down(),
    }
}

fn record_path() -> anyhow::Result<PathBuf> {
    let cache = Cache::location()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache.join("testbed.json"))
}

/// The record of a testbed that is up, or comes up.
///
/// # Errors
/// When there is one, and its record cannot be read: `up` has locked it and not written it yet.
fn running(path: &Path) -> anyhow::Result<Option<Record>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    match file.try_lock_shared() {
        Ok(()) => return Ok(None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    let text = bounded::read_text_from(file, bounded::STATE)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let record = serde_json::from_str(&text).with_context(|| {
        format!("a testbed is just starting, and {} is not written yet: try again", path.display())
    })?;
    Ok(Some(record))
}

/// The record, empty, locked for the testbed that is about to start.
fn claim(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("cannot make {}", path.display()))?;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
            // Another `up` was faster, or somebody has the lock for the moment of looking whether it is free.
            Err(TryLockError::WouldBlock) => {
                if let Some(record) = running(path)? {
                    bail!(record.refusal());
                }
            }
        }
    }
    // The process that it names may be anybody's by now.
    file.set_len(0).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(file)
}

/// Outside: starts the process that holds the testbed, and shows what it says until it is ready.
fn up(hypervisor: Hypervisor, choice: AcceleratorChoice) -> anyhow::Result<Ended> {
    let path = record_path()?;
    if let Some(record) = running(&path)? {
        bail!(record.refusal());
    }
    let needed = super::run::hardware(hypervisor, choice);
    if !needed.is_empty() {
        doctor::require(&doctor::probe(), &needed)?;
    }
    super::run::images(hypervisor)?;
    doctor::accelerator(hypervisor, choice)?;
    let mut command = namespace::command(std::env::args_os().skip(1))?;
    let log = path.with_extension("log");
    let stderr = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let (ours, theirs) = UnixStream::pair().context("cannot make a pair of sockets")?;
    let file = claim(&path)?;
    // Its own process group, so that a Ctrl-C here later does not reach it; the lock goes along as
    // its standard input.
    command
        .process_group(0)
        .stdin(Stdio::from(file.try_clone()?))
        .stdout(Stdio::from(OwnedFd::from(theirs)))
        .stderr(stderr);
    let mut holder = command.spawn().context("cannot run unshare")?;
    // It has the other end of the sockets, which is not to stay open here.
    drop(command);
    ours.set_read_timeout(Some(SILENT)).context("cannot set a deadline")?;
    let kept = keep(&ours, holder.id(), &file, &path);
    if let Err(error) = kept {
        let _ = holder.kill();
        let _ = holder.wait();
        let said = bounded::tail(&log, bounded::TAIL).unwrap_or_default().trim().to_owned();
        return Err(if said.is_empty() { error } else { error.context(said) });
    }
    outln!("The testbed is up: `bench testbed ssh a`, `bench testbed down`.");
    Ok(Ended::Done)
}

/// Keeps the record of a holder from its start until it is ready, and confirms that to it.
fn keep(mut holder: &UnixStream, process: u32, file: &File, path: &Path) -> anyhow::Result<()> {
    let write = |ssh_config| {
        Record { holder: process, ssh_config }
            .write(file)
            .with_context(|| format!("cannot write {}", path.display()))
    };
    write(None)?;
    let ssh_config = follow(holder)?;
    write(Some(ssh_config))?;
    holder.write_all(KEPT).context("the testbed has just ended")
}

/// What confirms to the holder that its record is complete.
const KEPT: &[u8] = b"k";

fn follow(holder: &UnixStream) -> anyhow::Result<String> {
    for line in BufReader::new(holder).lines() {
        let line = line.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                anyhow::anyhow!("the testbed said nothing for too long")
            }
            _ => error.into(),
        })?;
        match line.strip_prefix("ready ") {
            Some(rest) => return Ok(rest.to_owned()),
            None => outln!("{line}"),
        }
    }
    bail!("the testbed did not come up")
}

/// Whether the other side has confirmed that the testbed is to stay; not when it has ended before.
fn confirmed(mut up: &UnixStream) -> bool {
    let mut byte = [0; KEPT.len()];
    up.read_exact(&mut byte).is_ok() && byte == KEPT
}

/// Ends this process, the first of its namespaces, and with it all others there, when `up` ends before the testbed is ready.
fn end_with_up() -> anyhow::Result<()> {
    let up = UnixStream::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    std::thread::Builder::new().name("up".into()).spawn(move || {
        if !confirmed(&up) {
            std::process::exit(1);
        }
    })?;
    Ok(())
}

/// Inside: boots the machines, says so, and stays until it is killed.
fn hold(
    hypervisor: Hypervisor,
    choice: AcceleratorChoice,
    hosts: u64,
    servers: u64,
) -> anyhow::Result<Ended> {
    end_with_up()?;
    let stoppable = Stoppable::begin()?;
    let held = stoppable.until_stopped(async {
        let state = namespace::private_folder()?;
        let images = super::run::images(hypervisor)?;
        let accelerator = doctor::accelerator(hypervisor, choice)?;
        let spec = setup::plain(hypervisor, accelerator, usize::try_from(hosts)?, usize::try_from(servers)?);
        let testbed = crate::testbed::up::up(&spec, &images, &state, state.path().as_ref()).await?;
        for node in testbed.hosts.iter().chain(&testbed.servers) {
            outln!(
                "{}: up after {:.1} s on {}",
                node.name(),
                node.boot_time.as_secs_f64(),
                node.accelerator.name()
            );
        }
        outln!("ready {}", testbed.keys.config());
        // Until it is stopped, which ends the machines.
        std::future::pending::<anyhow::Result<Ended>>().await
    });
    held.unwrap_or(Ok(Ended::Done))
}

fn ssh(machine: &str, command: &[String]) -> anyhow::Result<Ended> {
    let Some(record) = running(&record_path()?)? else {
        bail!("no testbed is up: `bench testbed up` boots one");
    };
    let Some(ssh_config) = &record.ssh_config else {
        bail!("the testbed is coming up: wait until `bench testbed up` says that it is up");
    };
    let inside = first_process(record.holder)?;
    let error = Program::new("nsenter")
        .args(namespace::nsenter_flags(inside))
        .args(["--", "ssh", "-F"])
        .arg(ssh_config)
        // What comes after is no option of ssh, before the machine's name or behind it.
        .args(["--", machine])
        .args(command)
        .exec();
    Err(error).context("cannot run nsenter")
}

/// The first process of the namespaces, as this side sees it: the only child of `unshare`.
fn first_process(holder: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{holder}/task/{holder}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    children.split_whitespace().next().and_then(|pid| pid.parse().ok()).context("the testbed has just ended")
}

fn down() -> anyhow::Result<Ended> {
    let path = record_path()?;
    let Some(record) = running(&path)? else {
        outln!("No testbed is up.");
        return Ok(Ended::Done);
    };
    // Before the kill, as long as it can be found. Right after its start, the holder has no machines to wait for.
    let first = first_process(record.holder).and_then(watch).ok();
    // SIGKILL to `unshare` takes all the rest along: that is what its --kill-child is for.
    let holder = nix::unistd::Pid::from_raw(i32::try_from(record.holder)?);
    nix::sys::signal::kill(holder, nix::sys::signal::Signal::SIGKILL)
        .with_context(|| format!("cannot stop process {holder}"))?;
    if let Some(first) = first {
        // The first process of a PID namespace has ended when all others there have.
        let ended = poll(&mut [PollFd::new(first.as_fd(), PollFlags::POLLIN)], PollTimeout::from(END_MS))?;
        anyhow::ensure!(
            ended > 0,
            "the machines were killed and have not ended in {} s: try again",
            END_MS / 1000
        );
    }
    outln!("The testbed is down.");
    Ok(Ended::Done)
}

/// A descriptor that can be read from when the process has ended.
fn watch(process: u32) -> anyhow::Result<OwnedFd> {
    let process =
        rustix::process::Pid::from_raw(i32::try_from(process)?).context("no process has number 0")?;
    Ok(rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_stays_only_when_its_record_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("testbed.json");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"a: up after 9 s\nready /mnt/ssh_config\n").unwrap();
        let file = claim(&path).unwrap();
        keep(&ours, 77, &file, &path).unwrap();
        let record = Record { holder: 77, ssh_config: Some("/mnt/ssh_config".into()) };
        assert_eq!(running(&path).unwrap(), Some(record));
        drop(ours);
        assert!(confirmed(&theirs));
        assert!(!confirmed(&theirs), "there is one confirmation");
    }

    #[test]
    fn a_holder_that_says_nothing_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("testbed.json");
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let error = keep(&ours, 77, &claim(&path).unwrap(), &path).unwrap_err();
        assert_eq!(error.to_string(), "the testbed said nothing for too long");
        drop(ours);
        assert!(!confirmed(&theirs));
    }

    #[test]
    fn a_holder_whose_record_cannot_be_written_does_not_stay() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"ready /mnt/ssh_config\n").unwrap();
        let error = keep(&ours, 77, &full, Path::new("/dev/full")).unwrap_err();
        assert!(format!("{error:#}").contains("cannot write /dev/full: No space left"), "{error:#}");
        drop(ours);
        assert!(!confirmed(&theirs));
    }

    #[test]
    fn a_locked_record_is_never_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("testbed.json");
        assert_eq!(running(&path).unwrap(), None);
        std::fs::write(&path, r#"{"holder":1,"ssh_config":"of a testbed before"}"#).unwrap();
        assert_eq!(running(&path).unwrap(), None, "nobody has it");
        let file = claim(&path).unwrap();
        let error = running(&path).unwrap_err().to_string();
        assert!(error.contains("a testbed is just starting"), "{error}");
        let record = Record { holder: 77, ssh_config: None };
        record.write(&file).unwrap();
        assert_eq!(running(&path).unwrap(), Some(record));
        let error = claim(&path).unwrap_err().to_string();
        assert!(error.contains("a testbed is coming up already"), "{error}");
    }
}
