//! The command line: what can be asked, and how an answer becomes an exit status.
//!
//! Exit status: 0 done; 1 failed; 2 done, but samples are invalid or something is degraded; 64 wrong
//! usage (`EX_USAGE` of `sysexits.h`).

mod check;
mod local;
mod run;
mod stop;
mod testbed;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ctx_io::{errln, output};

use crate::{doctor, image};

/// Boot hosts, migrate guests between them for real, and measure what recontextualization costs and gains.
#[derive(Debug, Parser)]
#[command(name = "bench", version = crate::provenance::VERSION, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this machine can do, found out by doing it
    Doctor(doctor::cli::Arguments),
    /// Read a scenario and say what it would do, without starting anything
    Check(check::Arguments),
    /// Boot a testbed, do the trials of a scenario, and make its report
    Run(run::RunArguments),
    /// Go on with a run that was cut off
    Resume(run::ResumeArguments),
    /// Draw figures and report again, from stored files alone
    Report(run::ReportArguments),
    /// Say whether a run is worse than a stored one: exit 0 no worse, 1 worse, 2 not to be told
    Gate(run::GateArguments),
    /// Print the JSON schema of scenarios
    Schema,
    /// Do one task of experiment `layers` in this process
    #[command(name = crate::workload::layers::task::SUBCOMMAND, hide = true)]
    LayersProbe(local::ProbeArguments),
    /// Boot a testbed of hosts, go into a machine of it, or stop it
    Testbed {
        #[command(subcommand)]
        command: testbed::Command,
    },
    /// Build, list and remove disk images
    Image {
        #[command(subcommand)]
        command: image::cli::Command,
    },
}

/// How a command that did not fail ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All is well.
    Done,
    /// It is done, but samples are invalid, or something is degraded.
    Degraded,
    /// The program that it ran for the user ended with this status.
    Status(u8),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage("bench", &error),
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("BENCH_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .with_writer(output::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    output::end("bench", run_command(cli.command))
}

fn run_command(command: Command) -> ExitCode {
    let ended = match command {
        Command::Doctor(arguments) => return doctor::cli::run(&arguments),
        Command::Check(arguments) => check::check(&arguments),
        Command::Run(arguments) => run::run(&arguments),
        Command::Resume(arguments) => run::resume(&arguments),
        Command::Report(arguments) => run::report(&arguments),
        Command::Gate(arguments) => run::gate(&arguments),
        Command::Schema => run::schema(),
        Command::LayersProbe(arguments) => local::probe(&arguments),
        Command::Testbed { command } => testbed::run(&command),
        Command::Image { command } => {
            image::cli::run(&command).map(|()| Ended::Done).map_err(|error| match error {
                image::Error::Unknown { .. } => output::Misuse(error.to_string()).into(),
                error => anyhow::Error::from(error),
            })
        }
    };
    match ended {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Degraded) => ExitCode::from(2),
        Ok(Ended::Status(status)) => ExitCode::from(status),
        Err(error) => {
            errln!("bench: {}", output::reason(error.as_ref()));
            output::status(error.as_ref())
        }
    }
}

/// The folder in which our own programs stand: beside this one.
fn programs() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe()?;
    Ok(exe.parent().map_or_else(|| PathBuf::from("."), PathBuf::from))
}
