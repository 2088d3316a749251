//! `ffs`: shows layers of context data as one read-only tree that changes atomically.
//!
//! Called as `mount.ffs` it is the helper of mount(8), so that a line in /etc/fstab mounts.

mod cli;
mod start;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use ctx_format::Number;
use ctx_io::{bounded, errln, outln, output};
use ffs::config::NO_LINKS;
use ffs::control::{Request, Response, Status, ask};
use ffs::daemon::Order;
use ffs::edit::{Op, parse_script};
use ffs::fstab;
use ffs::projection::Projection;

use cli::{At, Cli, LayerVerb, MountArgs, TakeOver, Verb};

/// Says on the standard error what `FFS_LOG` asks for (`info`, `warn,ffs=debug`), else warnings.
fn log() {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;
    let asked = std::env::var("FFS_LOG").ok().and_then(|text| text.parse::<Targets>().ok());
    let usual = || Targets::new().with_default(LevelFilter::WARN).with_target("fuser", LevelFilter::ERROR);
    // What cannot be said is dropped: the daemon outlives its terminal.
    let to = tracing_subscriber::fmt::layer().with_writer(output::stderr).log_internal_errors(false);
    tracing_subscriber::registry().with(to).with(asked.unwrap_or_else(usual)).init();
}

fn main() -> ExitCode {
    log();
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    let words: Vec<OsString> = words.collect();
    let helps =
        Path::new(&program).file_name().is_some_and(|name| name == "mount.ffs" || name == "mount.fuse.ffs");
    // mount.fuse3 calls a file system by its name alone, with what is to be mounted: a layer, or `ffs` as in the table of mounts.
    let spec = words.first().is_some_and(|word| word == "ffs" || word.as_encoded_bytes().contains(&b'='));
    if helps || spec {
        return helper(&words);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage("ffs", &error),
    };
    let code = match run(cli.command, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say("ffs", &error);
            match error.downcast_ref::<start::Ended>() {
                // What was started has said it.
                Some(ended) => ExitCode::from(u8::try_from(ended.0).unwrap_or(1)),
                None => output::status(error.as_ref()),
            }
        }
    };
    output::end("ffs", code)
}

fn say(program: &str, error: &anyhow::Error) {
    if !error.is::<start::Ended>() {
        errln!("{program}: {}", output::reason(error.as_ref()));
    }
}

/// The helper of mount(8), with its exit codes.
fn helper(words: &[OsString]) -> ExitCode {
    let call = match fstab::parse(words) {
        Ok(call) => call,
        Err(error) => {
            errln!("mount.ffs: {error}");
            return ExitCode::from(fstab::USAGE);
        }
    };
    let command = match Cli::try_parse_from([OsString::from("ffs")].iter().chain(&call.command)) {
        Ok(Cli { command: Verb::Mount(args) }) => args,
        Ok(_) => return ExitCode::from(fstab::USAGE),
        Err(error) => {
            let _ = output::usage("mount.ffs", &error);
            return ExitCode::from(fstab::USAGE);
        }
    };
    if call.fake {
        return ExitCode::SUCCESS;
    }
    let done = if call.remount {
        remount(&call, &command)
            .with_context(|| format!("cannot remount `{}`", Path::new(&call.point).display()))
    } else {
        start::mount(command, &call.command)
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say("mount.ffs", &error);
            let system = !call.remount && error.chain().any(<dyn std::error::Error>::is::<std::io::Error>);
            ExitCode::from(if system { fstab::SYSTEM } else { fstab::FAILURE })
        }
    }
}

/// Changes what a mount forbids. What it shows is asked; one that does not answer is remounted all the same.
fn remount(call: &fstab::Call, command: &MountArgs) -> anyhow::Result<()> {
    let point = Path::new(&call.point);
    let projected = || {
        let status = command.at.socket(point).ok().and_then(|socket| ask(&socket, &Request::Status).ok());
        matches!(status, Some(Response::Status(status)) if status.projection == Some(Projection::Kubernetes))
    };
    if call.nosymfollow && projected() {
        bail!(NO_LINKS);
    }
    Ok(ffs::kernel::guard::remount(point, call.noexec, call.nosymfollow)?)
}

fn run(verb: Verb, words: &[OsString]) -> anyhow::Result<()> {
    let apply = |mount: &Path, at: &At, ops: Vec<Op>, if_generation| {
        request(mount, at, &Request::Apply { ops, if_generation }).map(drop)
    };
    match verb {
        Verb::Mount(args) => start::mount(args, words),
        Verb::Status { mount, json, at } => {
            let status = request(&mount, &at, &Request::Status)?;
            if json {
                outln!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                print_status(&status);
            }
            Ok(())
        }
        Verb::Layer(LayerVerb::Add { mount, layers, only, at }) => {
            let ops = layers.iter().map(|layer| Op::Add(layer.to_string())).collect();
            apply(&mount, &at, ops, only.number())
        }
        Verb::Layer(LayerVerb::Replace { mount, layers, only, at }) => {
            let ops = layers.iter().map(|layer| Op::Replace(layer.to_string())).collect();
            apply(&mount, &at, ops, only.number())
        }
        Verb::Layer(LayerVerb::Remove { mount, names, only, at }) => {
            apply(&mount, &at, names.into_iter().map(Op::Remove).collect(), only.number())
        }
        Verb::Layer(LayerVerb::Order { mount, names, only, at }) => {
            apply(&mount, &at, vec![Op::Order(names)], only.number())
        }
        Verb::Layer(LayerVerb::Apply { mount, file, only, at }) => {
            apply(&mount, &at, script(&file)?, only.number())
        }
        Verb::Layer(LayerVerb::List { mount, at }) => {
            print_layers(&request(&mount, &at, &Request::Status)?);
            Ok(())
        }
        Verb::Rollback { mount, to, only, at } => {
            let request_it = Request::Rollback { to: to.map(Number::get), if_generation: only.number() };
            request(&mount, &at, &request_it).map(drop)
        }
        Verb::Reload { mount, at } => request(&mount, &at, &Request::Reload).map(drop),
        Verb::Upgrade { mount, program, at } => {
            // The daemon may be elsewhere.
            let program = program.map(std::path::absolute).transpose()?;
            let status = request(&mount, &at, &Request::Upgrade { program })?;
            outln!("{}: taken over by ffs {}, process {}", mount.display(), status.version, status.pid);
            Ok(())
        }
        Verb::TakeOver(TakeOver { mount, state, rehearse, predecessor, returned }) => {
            Ok(ffs::daemon::take_over(&Order { state, mount, rehearse, predecessor, returned })?)
        }
        Verb::Umount { mount, at } => request(&mount, &at, &Request::Unmount).map(drop),
    }
}

fn script(file: &Path) -> anyhow::Result<Vec<Op>> {
    let text = if file == Path::new("-") {
        bounded::read_from(std::io::stdin().lock(), bounded::REQUEST)
    } else {
        bounded::read(file, bounded::REQUEST)
    };
    let text = text.with_context(|| format!("cannot read `{}`", file.display()))?;
    parse_script(&text).map_err(|error| anyhow::anyhow!("`{}`: {error}", file.display()))
}

fn request(mount: &Path, at: &At, request: &Request) -> anyhow::Result<Status> {
    let socket = at.socket(mount)?;
    let response = match ask(&socket, request) {
        // Not that nobody answers.
        Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => bail!("{error}"),
        asked => asked.with_context(|| {
            format!(
                "no ffs answers for `{}` at `{}`: is it mounted, and may you?",
                mount.display(),
                socket.display()
            )
        })?,
    };
    match response {
        Response::Status(status) => Ok(*status),
        Response::Conflict(reason) | Response::Error(reason) => bail!(reason),
    }
}

fn print_layers(status: &Status) {
    for layer in &status.layers {
        let mut facts = vec![format!("priority {}", layer.priority)];
        facts.extend(layer.class.as_ref().map(|class| format!("class {class}")));
        facts.extend(layer.generation.map(|number| format!("generation {number}")));
        facts.extend(layer.digest.as_ref().map(|digest| format!("{} bytes, {digest}", layer.bytes)));
        outln!("{} ({}): {}", layer.name, facts.join(", "), layer.origin);
    }
}

fn print_status(status: &Status) {
    let Status { mount, generation, names, bytes, pid, version, memory, taken_over, .. } = status;
    outln!("{}: generation {generation}, {names} names, {bytes} bytes", mount.display());
    outln!(
        "ffs {version}, process {pid}, {} of {} bytes of image memory in use",
        memory.in_use,
        memory.limit
    );
    if *taken_over > 0 {
        outln!("taken over {taken_over} times since the mount");
    }
    if let Some(before) = status.rollback_to {
        outln!("rollback shows generation {before} again");
    }
    print_layers(status);
    for device in &status.devices {
        outln!("{}: {}", device.device, device.state);
    }
    for hook in &status.hooks {
        outln!("hook {}: {} ({} ms, generation {})", hook.hook, hook.result, hook.millis, hook.generation);
    }
    outln!("works: {}", status.abilities.join(", "));
    for reduced in &status.reduced {
        outln!("reduced: {reduced}");
    }
}
