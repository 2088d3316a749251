//! `ffs mount`: in the foreground, or started again in the background.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ctx_io::output::Misuse;
use ffs::config::{Config, DEFAULT_PATH};
use ffs::events::Log;

use crate::cli::MountArgs;

/// Mounts; returns when the mount has ended or, in the background, when it is ready.
///
/// `command` are the arguments that start the same mount again.
pub(crate) fn mount(args: MountArgs, command: &[OsString]) -> anyhow::Result<()> {
    if !args.foreground {
        return in_background(command);
    }
    let path = args.config.clone().or_else(|| Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()));
    let mut config = path.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
    for (at, layer) in args.layers.iter().enumerate() {
        if args.layers[..at].iter().any(|before| before.name == layer.name) {
            bail!(Misuse(format!("two layers are named `{}`: rename one", layer.name)));
        }
    }
    for layer in args.layers {
        config.layers.retain(|have| have.name != layer.name);
        config.layers.push(layer);
    }
    config.auto |= args.auto;
    if !args.auto_devices.is_empty() {
        config.auto_devices = args.auto_devices;
    }
    config.trust.extend(args.trust);
    config.keep_removed_ms = args.keep_removed.or(config.keep_removed_ms);
    config.projection = args.projection.or(config.projection);
    config.passthrough |= args.passthrough;
    config.noexec |= args.noexec;
    config.nosymfollow |= args.nosymfollow;
    config.labels.extend(args.labels);
    config.max_memory = args.max_memory.or(config.max_memory);
    config.check().map_err(anyhow::Error::msg)?;
    let Some(point) = args.mount.or_else(|| config.mount.clone()) else {
        bail!(Misuse("no mount point: name one, or set `mount` in the configuration".to_owned()));
    };
    let log = match &args.event_log {
        Some(path) => Log::to_file(path).with_context(|| format!("cannot write `{}`", path.display()))?,
        None => Log::default(),
    };
    let socket = args.at.socket(&point)?;
    Ok(ffs::daemon::run(&point, config, &socket, log)?)
}

/// Starts this program again in the foreground, in a session of its own, and returns when it says
/// that it is ready: forking is not for programs with threads.
fn in_background(command: &[OsString]) -> anyhow::Result<()> {
    let name = format!("ffs-start-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut child = Command::new(std::env::current_exe()?)
        // First comes `mount`; behind a `--` it would be no option.
        .args(command.first())
        .arg("--foreground")
        .args(command.iter().skip(1))
        .env("NOTIFY_SOCKET", format!("@{name}"))
        .env(ffs::daemon::BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .context("cannot start in the background")?;
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut buffer = [0; 256];
    while Instant::now() < deadline {
        if let Ok(len) = socket.recv(&mut buffer)
            && buffer[..len].starts_with(b"READY=1")
        {
            return Ok(());
        }
        if let Some(status) = child.try_wait()? {
            // It has said why on the same standard error.
            bail!(Ended(status.code().unwrap_or(1)));
        }
    }
    let _ = child.kill();
    bail!("not ready within 30 s")
}

/// The program in the background ended before it was ready; it has said why.
#[derive(Debug, thiserror::Error)]
#[error("ended with code {0}")]
pub(crate) struct Ended(pub(crate) i32);
