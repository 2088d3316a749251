//! The program `ctx`: context data for virtual machines, on the host's side.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use ctx::config::{Config, DEFAULT_SOCKET, Source};
use ctx::keys::{generate, read_public, read_secret};
use ctx::recontext::control::{Answer, Ask, Status, ask};
use ctx::recontext::daemon::daemon;
use ctx::recontext::hook::{self, HookError};
use ctx::recontext::{Outcome, Record};
use ctx::source::{check_templates, read_directory};
use ctx_format::check::check;
use ctx_format::manifest::MANIFEST_PATH;
use ctx_format::sign::Ring;
use ctx_format::{
    ClassName, ContextData, ImageOptions, InstanceId, Label, Mode, Number, Priority, write_signed_iso,
};
use ctx_io::{bounded, durable, errln, outln, output};
use tokio::signal::unix::{SignalKind, signal};

/// Context data for virtual machines, built and replaced while they run.
///
/// Exit status: 0 done, 1 failed, 2 done in part or nothing to do, 64 wrong usage.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The mode of files, or none for the one that each has.
#[derive(Clone)]
struct FileMode(Option<Mode>);

impl std::str::FromStr for FileMode {
    type Err = <Mode as std::str::FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(if text == "keep" { None } else { Some(text.parse()?) }))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Follow libvirt's events and give domains new context data when they have migrated here.
    Daemon {
        /// The configuration.
        #[arg(long, default_value = "/etc/ctx/ctx.toml")]
        config: PathBuf,
    },
    /// Recontextualize a domain now, by the daemon of this host.
    Trigger {
        /// The domain's name or UUID.
        domain: String,
        /// Why, for the log.
        #[arg(long)]
        reason: Option<String>,
        /// The daemon's control socket.
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
        /// Print the records as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say how the daemon of this host stands.
    Status {
        /// The daemon's control socket.
        #[arg(long, default_value = DEFAULT_SOCKET)]
        socket: PathBuf,
        /// Print it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make an image of a directory: the same bytes for the same files, every time.
    Build {
        /// The class of the files.
        #[arg(long)]
        class: ClassName,
        /// The class's rank in the guest; the higher one is seen.
        #[arg(long, allow_negative_numbers = true)]
        priority: Priority,
        /// The generation; it must grow from image to image.
        #[arg(long, allow_negative_numbers = true)]
        generation: Number<0, { u64::MAX }>,
        /// Whom the image is for, mostly the domain's UUID.
        #[arg(long)]
        instance: InstanceId,
        /// CTX for data that a machine starts with and keeps, RECTX for data that is replaced.
        #[arg(long, default_value = "CTX")]
        label: Label,
        /// The mode of the files in the guest, or `keep` for the mode that they have here.
        #[arg(long, default_value = "0600")]
        mode: FileMode,
        /// Sign it with this secret key, as `ctx keygen` wrote it.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        /// The directory.
        dir: PathBuf,
        /// The image to write.
        out: PathBuf,
    },
    /// Answer a hook of libvirt: give an image to a device that migrates here without its own.
    ///
    /// Called by `hooks/50-ctx`. Reads the domain's XML on standard input for `migrate begin`, and
    /// prints it where it had to be changed; does nothing for any other operation.
    Hook {
        /// The configuration, for the state directory.
        #[arg(long, default_value = "/etc/ctx/ctx.toml")]
        config: PathBuf,
        /// libvirt's driver: `qemu` or `libxl`.
        driver: String,
        /// What libvirt gave the hook: the domain's name, the operation, its part, more.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make a key: ctx.key, which signs, and ctx.pub, the line that guests are given.
    Keygen {
        /// The directory for both.
        dir: PathBuf,
        /// The classes that the key may vouch for; without them any.
        #[arg(long, value_delimiter = ',')]
        classes: Vec<ClassName>,
    },
    /// Check a configuration and the sources of its classes, or an image. Templates are parsed and not rendered, programs are
    /// not run: both need a domain.
    Check {
        /// The configuration, or an image.
        file: PathBuf,
        /// The image must be signed by this public key; may be given more than once.
        #[arg(long = "key", value_name = "FILE")]
        keys: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage("ctx", &error),
    };
    let code = run(cli.command).unwrap_or_else(|error| {
        errln!("ctx: {}", output::reason(error.as_ref()));
        output::status(error.as_ref())
    });
    output::end("ctx", code)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Daemon { config } => serve(&config),
        Command::Trigger { domain, reason, socket, json } => {
            let answer = question(&socket, &Ask::Trigger { domain, reason })?;
            let records = answer.records.unwrap_or_default();
            if json {
                outln!("{}", serde_json::to_string_pretty(&records)?);
            } else {
                records.iter().for_each(print_record);
            }
            Ok(exit_code(&records))
        }
        Command::Status { socket, json } => {
            let status = question(&socket, &Ask::Status)?.status.unwrap_or_default();
            if json {
                outln!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print_status(&status);
            }
            Ok(if status.connected { ExitCode::SUCCESS } else { ExitCode::from(2) })
        }
        Command::Build { class, priority, generation, instance, label, mode, key, dir, out } => {
            let key = key.as_deref().map(read_secret).transpose()?;
            let files = read_directory(&dir, mode.0)?;
            let generation = generation.get();
            let data = ContextData { class, priority, generation, instance_id: instance, files };
            let image = write_signed_iso(&data, &ImageOptions { label }, key.as_ref())?;
            durable::write(&out, &image).map_err(|error| anyhow::anyhow!("{}: {error}", out.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Hook { config, driver, arguments } => answer_hook(&config, &driver, &arguments),
        Command::Keygen { dir, classes } => {
            outln!("{}", generate(&dir, &classes)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { file, keys } => {
            if let Some((mut image, rest)) = open_image(&file) {
                let rest = bounded::read_from(rest, bounded::IMAGE);
                image.extend(rest.with_context(|| file.display().to_string())?);
                return check_image(&file, &image, &keys);
            }
            if !keys.is_empty() {
                anyhow::bail!("{}: not an image: --key is for images", file.display());
            }
            let config = Config::load(&file)?;
            for class in &config.classes {
                let name = &class.name;
                match &class.source {
                    Source::Directory(path) => {
                        let files = read_directory(path, class.mode)?;
                        outln!("class {name}: {} files in {}", files.len(), path.display());
                    }
                    Source::Template(path) => {
                        let files = read_directory(path, class.mode)?;
                        check_templates(path, &files)?;
                        outln!("class {name}: {} templates in {}, not rendered", files.len(), path.display());
                    }
                    Source::Command(command) => outln!("class {name}: `{}`, not run", command.join(" ")),
                }
            }
            outln!("ok");
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The first bytes of an ISO 9660 image, and the file after them; `None` for any other file.
fn open_image(file: &Path) -> Option<(Vec<u8>, File)> {
    // A configuration that cannot be read has an error of its own.
    let mut opened = File::open(file).ok()?;
    let mut start = Vec::new();
    opened.by_ref().take(0x8006).read_to_end(&mut start).ok()?;
    start.get(0x8001..).is_some_and(|id| id == b"CD001").then_some((start, opened))
}

fn check_image(file: &Path, image: &[u8], keys: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let keys = keys.iter().map(|path| read_public(path)).collect::<Result<Vec<_>, _>>()?;
    let ring: Ring = keys.into_iter().collect();
    let fail = |error: &dyn std::fmt::Display| anyhow::anyhow!("{}: {error}", file.display());
    let index = ctx_format::read::index(image).map_err(|error| fail(&error))?;
    let ring = (!ring.is_empty()).then_some(&ring);
    let checked = check(&index, image, ring).map_err(|error| fail(&error))?;
    let Some(checked) = checked else {
        return Err(fail(&format!("no /{MANIFEST_PATH}: it is not an image of ctx")));
    };
    let manifest = &checked.manifest;
    let files = manifest.files.len();
    outln!(
        "class {}, generation {}, {files} files, for {}",
        manifest.class,
        manifest.generation,
        manifest.instance_id
    );
    match checked.key {
        Some(key) => outln!("signed by {key}"),
        None => outln!("whole; no key was given to check who vouches for it"),
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(path: &Path) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(output::stderr)
        .log_internal_errors(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("CTX_LOG").unwrap_or_else(|_| "info".into()),
        )
        .init();
    let config = Config::load(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stop = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        };
        let uri = config.uri.clone();
        let ready = || {
            tracing::info!(uri, "following events");
            // Without systemd there is nobody to tell.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        };
        daemon(config, ready, stop).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// What is wrong with the domain stops no migration: its recontextualization says so afterwards.
fn answer_hook(config: &Path, driver: &str, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let asked_for_xml = hook::asks_for_xml(arguments);
    if !asked_for_xml && !hook::asks_for_files(driver, arguments) {
        return Ok(ExitCode::SUCCESS);
    }
    let xml = bounded::read_text_from(std::io::stdin().lock(), bounded::XML)
        .context("the domain's XML on standard input")?;
    let state = || Ok(Config::load(config)?.state);
    let answer = if asked_for_xml {
        hook::filter(&xml, Path::exists, || hook::placeholder(&state()?))
    } else {
        hook::stand_in(&xml, state).map(|()| None)
    };
    match answer {
        Ok(Some(changed)) => output::text(&changed),
        Ok(None) => {}
        Err(HookError::View(error)) => errln!("ctx: {driver} domain {}: {error}", arguments[0]),
        Err(error) => return Err(error.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn question(socket: &Path, question: &Ask) -> anyhow::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(ask(socket, question))?;
    if let Some(error) = answer.error {
        anyhow::bail!(error);
    }
    Ok(answer)
}

fn exit_code(records: &[Record]) -> ExitCode {
    let any = |outcome| records.iter().any(|record| record.outcome == outcome);
    if any(Outcome::Failed) {
        ExitCode::FAILURE
    } else if any(Outcome::Skipped) || any(Outcome::Degraded) || records.is_empty() {
        ExitCode::from(2)
    } else {
        ExitCode::SUCCESS
    }
}

fn print_record(record: &Record) {
    let target = record.target.as_deref().unwrap_or("-");
    match (&record.outcome, &record.error) {
        (Outcome::Done | Outcome::Degraded, error) => {
            let generation = record.generation.unwrap_or_default();
            let ms = record.total_ns as f64 / 1e6;
            let answer = match (&record.acknowledgement, error) {
                (_, Some(why)) => format!("; {why}"),
                (Some(ack), None) if ack.hooks.is_empty() => "; acknowledged".to_owned(),
                (Some(ack), None) => format!("; acknowledged, {} hooks done", ack.hooks.len()),
                (None, None) => String::new(),
            };
            outln!("{} {target}: generation {generation} after {ms:.1} ms{answer}", record.domain);
        }
        (_, error) => outln!("{} {target}: {}", record.domain, error.as_deref().unwrap_or("failed")),
    }
}

fn print_status(status: &Status) {
    let connection = if status.connected { "connected" } else { "NOT CONNECTED" };
    outln!("ctx {} on {}, {connection} to {}", status.version, status.host, status.uri);
    outln!("runs: {} done, {} skipped, {} failed", status.done, status.skipped, status.failed);
    for uuid in &status.running {
        outln!("under way: {uuid}");
    }
    status.last.iter().for_each(print_record);
}
