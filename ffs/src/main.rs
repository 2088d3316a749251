//! `ffs`: shows layers of context data as one read-only tree that changes atomically.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use ffs::config::{Config, DEFAULT_PATH, LayerSpec};
use ffs::control::{Request, Response, Status, ask, socket_path};
use ffs::events::Log;

/// Shows layers (directories, ISO images, discs in drives) as one read-only tree that changes
/// atomically under running programs.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Mount a union of layers.
    Mount(MountArgs),
    /// Say how a mount is.
    Status {
        /// The mount point.
        mount: PathBuf,
        /// As JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        at: At,
    },
    /// Change the layers of a mount.
    #[command(subcommand)]
    Layer(LayerVerb),
    /// Read all layers of a mount again.
    Reload {
        /// The mount point.
        mount: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// Unmount, and end the program behind the mount.
    Umount {
        /// The mount point.
        mount: PathBuf,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Args)]
struct MountArgs {
    /// The mount point; may be given by the configuration.
    mount: Option<PathBuf>,
    /// A layer: NAME=dir:PATH, NAME=iso:PATH or NAME=device:PATH, with ,priority=N after it.
    #[arg(long = "layer", value_name = "NAME=SOURCE")]
    layers: Vec<LayerSpec>,
    /// Every drive with context data becomes the layer of its class.
    #[arg(long)]
    auto: bool,
    /// Device names that --auto looks at, in place of `sr*`.
    #[arg(long = "auto-device", value_name = "PATTERN")]
    auto_devices: Vec<String>,
    /// The configuration file; /etc/ffs.toml is read when it exists.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Milliseconds that the layer of a removed device is still shown; without it, until an image
    /// takes its place.
    #[arg(long, value_name = "MS")]
    keep_removed: Option<u64>,
    /// A file with keys, and only images signed by one of them are taken; may be given more than once,
    /// and have `*` in its last component.
    #[arg(long, value_name = "FILE")]
    trust: Vec<String>,
    /// Append what happens, as JSON lines.
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
    /// Stay in the foreground.
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Args)]
struct At {
    /// The control socket, in place of /run/ffs/NAME.sock.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Subcommand)]
enum LayerVerb {
    /// Add a layer.
    Add {
        /// The mount point.
        mount: PathBuf,
        /// NAME=dir:PATH, NAME=iso:PATH or NAME=device:PATH, with ,priority=N after it.
        layer: LayerSpec,
        #[command(flatten)]
        at: At,
    },
    /// Put a layer in place of the one of its name, in one step.
    Replace {
        /// The mount point.
        mount: PathBuf,
        /// NAME=dir:PATH, NAME=iso:PATH or NAME=device:PATH, with ,priority=N after it.
        layer: LayerSpec,
        #[command(flatten)]
        at: At,
    },
    /// Remove a layer.
    Remove {
        /// The mount point.
        mount: PathBuf,
        /// Its name.
        name: String,
        #[command(flatten)]
        at: At,
    },
    /// List the layers, highest priority first.
    List {
        /// The mount point.
        mount: PathBuf,
        #[command(flatten)]
        at: At,
    },
}

impl At {
    fn socket(&self, mount: &Path) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| socket_path(mount))
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; anything else is a usage error (sysexits.h).
            let code = if error.use_stderr() { 64 } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("FFS_LOG").unwrap_or_else(|_| "warn,fuser=error".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ffs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Mount(args) => mount(args),
        Verb::Status { mount, json, at } => {
            let status = request(&mount, &at, &Request::Status)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print_status(&status);
            }
            Ok(())
        }
        Verb::Layer(LayerVerb::Add { mount, layer, at }) => {
            request(&mount, &at, &Request::Add(spell(&layer))).map(drop)
        }
        Verb::Layer(LayerVerb::Replace { mount, layer, at }) => {
            request(&mount, &at, &Request::Replace(spell(&layer))).map(drop)
        }
        Verb::Layer(LayerVerb::Remove { mount, name, at }) => {
            request(&mount, &at, &Request::Remove(name)).map(drop)
        }
        Verb::Layer(LayerVerb::List { mount, at }) => {
            print_layers(&request(&mount, &at, &Request::Status)?);
            Ok(())
        }
        Verb::Reload { mount, at } => request(&mount, &at, &Request::Reload).map(drop),
        Verb::Umount { mount, at } => request(&mount, &at, &Request::Unmount).map(drop),
    }
}

fn spell(spec: &LayerSpec) -> String {
    let priority = spec.priority.map(|priority| format!(",priority={priority}")).unwrap_or_default();
    format!("{}={}{priority}", spec.name, spec.source)
}

fn request(mount: &Path, at: &At, request: &Request) -> anyhow::Result<Status> {
    let socket = at.socket(mount);
    let response = ask(&socket, request).with_context(|| {
        format!(
            "no ffs answers for `{}` at `{}`: is it mounted, and may you?",
            mount.display(),
            socket.display()
        )
    })?;
    match response {
        Response::Status(status) => Ok(*status),
        Response::Error(reason) => bail!(reason),
    }
}

fn print_layers(status: &Status) {
    for layer in &status.layers {
        let generation = layer.generation.map(|number| format!(", generation {number}")).unwrap_or_default();
        println!("{} (priority {}{generation}): {}", layer.name, layer.priority, layer.origin);
    }
}

fn print_status(status: &Status) {
    let Status { mount, generation, names, bytes, pid, version, .. } = status;
    println!("{}: generation {generation}, {names} names, {bytes} bytes", mount.display());
    println!("ffs {version}, process {pid}");
    print_layers(status);
    for device in &status.devices {
        println!("{}: {}", device.device, device.state);
    }
    for hook in &status.hooks {
        println!("hook {}: {} ({} ms, generation {})", hook.hook, hook.result, hook.millis, hook.generation);
    }
    for reduced in &status.reduced {
        println!("reduced: {reduced}");
    }
}

fn mount(args: MountArgs) -> anyhow::Result<()> {
    if !args.foreground {
        return in_background();
    }
    let path = args.config.clone().or_else(|| Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()));
    let mut config = path.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
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
    config.check().map_err(anyhow::Error::msg)?;
    let Some(point) = args.mount.or_else(|| config.mount.clone()) else {
        bail!("no mount point: name one, or set `mount` in the configuration");
    };
    let log = match &args.event_log {
        Some(path) => Log::to_file(path).with_context(|| format!("cannot write `{}`", path.display()))?,
        None => Log::default(),
    };
    let socket = args.at.socket(&point);
    Ok(ffs::daemon::run(&point, config, &socket, log)?)
}

/// Starts this program again in the foreground, in a process group of its own, and returns when it
/// says that it is ready: forking is not for programs with threads.
fn in_background() -> anyhow::Result<()> {
    let name = format!("ffs-start-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .arg("--foreground")
        .env("NOTIFY_SOCKET", format!("@{name}"))
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
            std::process::exit(status.code().unwrap_or(1));
        }
    }
    let _ = child.kill();
    bail!("not ready within 30 s")
}
