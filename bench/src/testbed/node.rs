//! One running machine of the testbed: started, waited for, reached, stopped.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::console::Console;
use super::machine::{Accelerator, Machine};
use super::qmp::{Qmp, QmpError};
use super::ssh::{Keys, Ssh, SshError};

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// QEMU could not be started.
    #[error("{machine}: cannot start qemu-system-x86_64: {source}; `bench doctor` tells what is missing")]
    Start {
        /// Name of the machine.
        machine: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// It did not get ready.
    #[error("{machine}: {reason}; its console ended with\n{console}")]
    NotReady {
        /// Name of the machine.
        machine: String,
        /// What was waited for.
        reason: String,
        /// Last lines of its console.
        console: String,
    },
    /// QEMU runs it with another accelerator than was asked for.
    #[error("{machine}: QEMU runs it with {got}, not with {asked}")]
    Accelerator {
        /// Name of the machine.
        machine: String,
        /// As QMP reported it.
        got: &'static str,
        /// As asked.
        asked: &'static str,
    },
    /// QMP failed.
    #[error("{machine}: {source}")]
    Qmp {
        /// Name of the machine.
        machine: String,
        /// The error.
        #[source]
        source: QmpError,
    },
    /// SSH failed.
    #[error(transparent)]
    Ssh(#[from] SshError),
}

/// A machine that is up.
pub struct Node {
    /// What was started.
    pub machine: Machine,
    /// The connection to it.
    pub ssh: Ssh,
    /// The accelerator, as QMP reported it.
    pub accelerator: Accelerator,
    /// From the start of QEMU until SSH answered.
    pub boot_time: Duration,
    qemu: Child,
}

impl Node {
    /// Starts a machine and waits until its services and SSH answer.
    ///
    /// # Errors
    /// [`BootError`], with the end of the machine's console where that helps.
    pub async fn boot(
        machine: Machine,
        accelerator: Accelerator,
        keys: &Keys,
        logs: &Path,
        deadline: Duration,
    ) -> Result<Node, BootError> {
        let name = machine.name.clone();
        let start_error = |source| BootError::Start { machine: name.clone(), source };
        let started = Instant::now();
        let log = |suffix: &str| -> PathBuf { logs.join(format!("{name}.{suffix}")) };
        let stderr = std::fs::File::create(log("qemu.log")).map_err(start_error)?;
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(machine.arguments(accelerator))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(start_error)?;
        let stdout = qemu.stdout.take().expect("standard output was asked to be a pipe");
        let console = Console::follow(stdout, &log("console.log")).await.map_err(start_error)?;
        let not_ready = |reason: String, console: &Console| {
            let qemu_says =
                ctx_io::bounded::tail(&log("qemu.log"), ctx_io::bounded::TAIL).unwrap_or_default();
            let reason = match qemu_says.trim().lines().last() {
                Some(line) => format!("{reason} (QEMU: {line})"),
                None => reason,
            };
            BootError::NotReady { machine: name.clone(), reason, console: console.tail() }
        };
        console.ready(deadline).await.map_err(|reason| not_ready(reason, &console))?;
        let qmp_error = |source| BootError::Qmp { machine: name.clone(), source };
        let mut qmp = Qmp::connect(machine.qmp.as_ref()).await.map_err(qmp_error)?;
        let got = qmp.accelerator().await.map_err(qmp_error)?;
        if got != accelerator {
            return Err(BootError::Accelerator { machine: name, got: got.name(), asked: accelerator.name() });
        }
        let ssh = Ssh::connect(&name, machine.management(), keys, Duration::from_secs(60))
            .await
            .map_err(|e| not_ready(e.to_string(), &console))?;
        Ok(Node { machine, ssh, accelerator: got, boot_time: started.elapsed(), qemu })
    }

    /// Name of the machine.
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Stops the machine at once: all its writes are in memory, so there is nothing to save.
    pub async fn stop(mut self) {
        if self.qemu.start_kill().is_ok() {
            // It is being killed; waiting only reaps it.
            let _ = timeout(Duration::from_secs(10), self.qemu.wait()).await;
        }
    }
}
