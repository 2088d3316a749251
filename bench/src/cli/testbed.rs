//! `bench testbed up | ssh | down`: a testbed to look around in.
//!
//! `up` leaves a process behind that holds the testbed's namespaces; a record in the cache folder
//! says which. The record is locked by that process for as long as it lives, so a stale one is
//! recognised for what it is, whatever ended the process.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use ctx_format::Number;
use ctx_io::{bounded, outln};
use serde::{Deserialize, Serialize};

use super::Ended;
use crate::drive::setup;
use crate::image::Cache;
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

/// Who holds the testbed.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The `unshare` process, in the user's PID namespace; killing it ends everything.
    holder: u32,
    /// The client's SSH configuration, inside.
    ssh_config: String,
}

pub(super) fn run(command: &Command) -> anyhow::Result<Ended> {
    match command {
        Command::Up { hosts, servers, hypervisor } if namespace::inside() => {
            hold(*hypervisor, hosts.get(), servers.get())
        }
        Command::Up { hypervisor, .. } => up(*hypervisor),
        Command::Ssh { machine, command } => ssh(machine, command),
        Command::Down => down(),
    }
}

fn record_path() -> anyhow::Result<PathBuf> {
    let cache = Cache::location()?;
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache.join("testbed.json"))
}

/// The record of a testbed that is up.
fn running(path: &Path) -> anyhow::Result<Option<Record>> {
    let Ok(file) = File::open(path) else { return Ok(None) };
    if file.try_lock_shared().is_ok() {
        return Ok(None);
    }
    let text = bounded::read_text_from(file, bounded::STATE)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_str(&text).ok())
}

/// Outside: starts the process that holds the testbed, and shows what it says until it is ready.
fn up(hypervisor: Hypervisor) -> anyhow::Result<Ended> {
    let path = record_path()?;
    if running(&path)?.is_some() {
        bail!("a testbed is up already: `bench testbed ssh a`, or `bench testbed down` first");
    }
    super::run::images(hypervisor)?;
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    let mut holder = namespace::command(std::env::args_os().skip(1))?;
    // Its own process group, so that a Ctrl-C here later does not reach it; the lock goes along as
    // its standard input.
    let log = path.with_extension("log");
    let stderr = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    holder.process_group(0).stdin(Stdio::from(file.try_clone()?)).stdout(Stdio::piped()).stderr(stderr);
    let mut holder = holder.spawn().context("cannot run unshare")?;
    let ssh_config = match follow(&mut holder) {
        Ok(line) => line,
        Err(error) => {
            let _ = holder.kill();
            let _ = holder.wait();
            return Err(
                error.context(bounded::tail(&log, bounded::TAIL).unwrap_or_default().trim().to_owned())
            );
        }
    };
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(serde_json::to_string(&Record { holder: holder.id(), ssh_config })?.as_bytes())?;
    outln!("The testbed is up: `bench testbed ssh a`, `bench testbed down`.");
    Ok(Ended::Done)
}

fn follow(holder: &mut Child) -> anyhow::Result<String> {
    let stdout = holder.stdout.take().context("no pipe from the testbed")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        match line.strip_prefix("ready ") {
            Some(rest) => return Ok(rest.to_owned()),
            None => outln!("{line}"),
        }
    }
    bail!("the testbed did not come up")
}

/// Inside: boots the machines, says so, and stays until it is killed.
fn hold(hypervisor: Hypervisor, hosts: u64, servers: u64) -> anyhow::Result<Ended> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let state = namespace::private_folder()?;
        let images = super::run::images(hypervisor)?;
        let accelerator = super::run::accelerator(hypervisor);
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
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        terminate.recv().await;
        testbed.down().await;
        Ok(Ended::Done)
    })
}

fn ssh(machine: &str, command: &[String]) -> anyhow::Result<Ended> {
    let Some(record) = running(&record_path()?)? else {
        bail!("no testbed is up: `bench testbed up` boots one");
    };
    let inside = first_process(record.holder)?;
    let error = Program::new("nsenter")
        .args(namespace::nsenter_flags(inside))
        .args(["--", "ssh", "-F"])
        .arg(&record.ssh_config)
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
    match running(&path)? {
        None => outln!("No testbed is up."),
        Some(record) => {
            // SIGKILL to `unshare` takes all the rest along: that is what its --kill-child is for.
            let holder = nix::unistd::Pid::from_raw(i32::try_from(record.holder)?);
            nix::sys::signal::kill(holder, nix::sys::signal::Signal::SIGKILL)
                .with_context(|| format!("cannot stop process {holder}"))?;
            // The lock goes when the last process has: that is the event to wait for.
            File::open(&path)?.lock_shared()?;
            outln!("The testbed is down.");
        }
    }
    let _ = std::fs::remove_file(&path);
    Ok(Ended::Done)
}
