//! What can be said on the command line.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use ctx_format::Number;
use ffs::config::{Bytes, KeepRemoved, LayerSpec};
use ffs::control::{LONGEST_SOCKET, socket_path};
use ffs::projection::Projection;

/// Shows layers (directories, ISO images, discs in drives) as one read-only tree that changes
/// atomically under running programs.
#[derive(Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Verb,
}

/// The number of a generation.
type Generation = Number<0, { u64::MAX }>;

#[derive(Subcommand)]
pub(crate) enum Verb {
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
    /// Change the layers of a mount: all that one call names is one switch, or nothing.
    #[command(subcommand)]
    Layer(LayerVerb),
    /// Show the generation before again, as a new one; directories as they are now.
    Rollback {
        /// The mount point.
        mount: PathBuf,
        /// Only if the generation before is this one.
        #[arg(long, value_name = "GENERATION", allow_negative_numbers = true)]
        to: Option<Generation>,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        at: At,
    },
    /// Read all layers of a mount again.
    Reload {
        /// The mount point.
        mount: PathBuf,
        #[command(flatten)]
        at: At,
    },
    /// Let another program take over a mount that is in use: a new version, without unmounting.
    ///
    /// Programs notice nothing; whatever they ask in between waits for a moment. The process stays the
    /// same. If the other program cannot take over, nothing changes, and this says why.
    Upgrade {
        /// The mount point.
        mount: PathBuf,
        /// The program's file; without it the one behind the mount, as it is installed now.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
        #[command(flatten)]
        at: At,
    },
    /// Take over a mount from the program that calls this; not for people.
    #[command(hide = true)]
    TakeOver(TakeOver),
    /// Unmount, and end the program behind the mount.
    Umount {
        /// The mount point.
        mount: PathBuf,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Args)]
#[allow(clippy::struct_excessive_bools)] // Flags, each of its own.
pub(crate) struct MountArgs {
    /// The mount point; may be given by the configuration.
    pub(crate) mount: Option<PathBuf>,
    /// A layer: NAME=dir:PATH, NAME=iso:PATH or NAME=device:PATH, with ,priority=N and, for a
    /// directory that is not to be followed, ,watch=off after it.
    #[arg(long = "layer", value_name = "NAME=SOURCE", value_parser = layer())]
    pub(crate) layers: Vec<LayerSpec>,
    /// Every drive with context data becomes the layer of its class.
    #[arg(long)]
    pub(crate) auto: bool,
    /// Device names that --auto looks at, in place of `sr*`.
    #[arg(long = "auto-device", value_name = "PATTERN")]
    pub(crate) auto_devices: Vec<String>,
    /// The configuration file; /etc/ffs.toml is read when it exists.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Milliseconds that the layer of a removed device is still shown; without it, until an image
    /// takes its place.
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    pub(crate) keep_removed: Option<KeepRemoved>,
    /// Bytes that images may hold in memory together; half of the machine's without it.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    pub(crate) max_memory: Option<Bytes>,
    /// A file with keys, and only images signed by one of them are taken; may be given more than once,
    /// and have `*` in its last component.
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Vec<String>,
    /// Show the tree otherwise than it is: `kubernetes`, as a `ConfigMap` volume with its `..data`.
    #[arg(long, value_name = "KIND")]
    pub(crate) projection: Option<Projection>,
    /// Let the kernel read files of more than 64 KiB in directory layers by itself: first reads as fast as
    /// the disk, without a copy in memory, and each open of any file slower (Linux 6.9, root).
    #[arg(long)]
    pub(crate) passthrough: bool,
    /// Let no file of the mount be executed.
    #[arg(long)]
    pub(crate) noexec: bool,
    /// Let no symbolic link of the mount be followed (Linux 5.14, root).
    #[arg(long)]
    pub(crate) nosymfollow: bool,
    /// A mount option of a security module (`context=…`), as in mount(8).
    #[arg(long = "label", value_name = "NAME=VALUE", hide = true, value_parser = label)]
    pub(crate) labels: Vec<(String, String)>,
    /// Append what happens, as JSON lines.
    #[arg(long, value_name = "FILE")]
    pub(crate) event_log: Option<PathBuf>,
    /// Stay in the foreground.
    #[arg(long)]
    pub(crate) foreground: bool,
    #[command(flatten)]
    pub(crate) at: At,
}

/// A layer, whose path need not be UTF-8.
fn layer() -> impl TypedValueParser<Value = LayerSpec> {
    OsStringValueParser::new().try_map(|word| LayerSpec::from_bytes(word.as_bytes()))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Args)]
pub(crate) struct TakeOver {
    /// The mount point.
    pub(crate) mount: Option<PathBuf>,
    /// The descriptor that the state is in.
    #[arg(long, value_name = "FD", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) state: i32,
    /// Only find out whether it works.
    #[arg(long)]
    pub(crate) rehearse: bool,
    /// The descriptor of the program that ran before.
    #[arg(long, value_name = "FD", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) predecessor: Option<i32>,
    /// Why the other program failed.
    #[arg(long, value_name = "REASON", allow_hyphen_values = true)]
    pub(crate) returned: Option<String>,
}

#[derive(Args)]
pub(crate) struct At {
    /// The control socket, in place of `/run/ffs/NAME.sock` or `$XDG_RUNTIME_DIR/ffs/NAME.sock`.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Only {
    /// Only if the mount is at this generation: else nothing is changed.
    #[arg(long, value_name = "GENERATION", allow_negative_numbers = true)]
    if_generation: Option<Generation>,
}

#[derive(Subcommand)]
pub(crate) enum LayerVerb {
    /// Add layers.
    Add {
        /// The mount point.
        mount: PathBuf,
        /// NAME=dir:PATH, NAME=iso:PATH or NAME=device:PATH, with ,priority=N and ,watch=off after it.
        #[arg(required = true, value_parser = layer())]
        layers: Vec<LayerSpec>,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        at: At,
    },
    /// Put layers in place of those of their names.
    Replace {
        /// The mount point.
        mount: PathBuf,
        /// NAME=dir:PATH, NAME=iso:PATH or NAME=device:PATH, with ,priority=N and ,watch=off after it.
        #[arg(required = true, value_parser = layer())]
        layers: Vec<LayerSpec>,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        at: At,
    },
    /// Remove layers.
    Remove {
        /// The mount point.
        mount: PathBuf,
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        at: At,
    },
    /// Bring the layers into this order.
    Order {
        /// The mount point.
        mount: PathBuf,
        /// The names of all layers, highest first.
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        at: At,
    },
    /// Do everything that a file says: one `add`, `replace`, `remove` or `order` a line, at most 4096 of them and 16 MiB.
    Apply {
        /// The mount point.
        mount: PathBuf,
        /// The file; `-` for the standard input.
        file: PathBuf,
        #[command(flatten)]
        only: Only,
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

impl Only {
    /// The generation, as a request has it.
    pub(crate) fn number(&self) -> Option<u64> {
        self.if_generation.map(Number::get)
    }
}

impl At {
    /// The control socket of a mount.
    pub(crate) fn socket(&self, mount: &Path) -> anyhow::Result<PathBuf> {
        let socket = self
            .socket
            .clone()
            .or_else(|| socket_path(mount))
            .context("XDG_RUNTIME_DIR is not set: say where the control socket is with --socket")?;
        let bytes = socket.as_os_str().len();
        anyhow::ensure!(
            bytes <= LONGEST_SOCKET,
            "control socket `{}`: a socket's path has at most {LONGEST_SOCKET} bytes, and this has {bytes}: give a \
             shorter one with --socket, or a relative one",
            socket.display()
        );
        Ok(socket)
    }
}
