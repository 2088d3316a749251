//! SSH with keys made for the run, one multiplexed connection a machine.
//!
//! Setting a connection up costs seconds on an emulated machine, so there is one a machine, and
//! commands are channels of it. The machines' host key is made here as well and comes to them in
//! their seed: that saves its making at boot, and the client can be strict about it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::time::Duration;

use openssh::{KnownHosts, Session, SessionBuilder, Stdio};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

/// Why something could not be done on a machine.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The key pair could not be made.
    #[error("cannot make SSH keys with ssh-keygen: {0}")]
    Keys(String),
    /// No connection.
    #[error("{machine}: no SSH connection within {seconds} s: {reason}")]
    Connect {
        /// Name of the machine.
        machine: String,
        /// The deadline.
        seconds: u64,
        /// What ssh said last.
        reason: String,
    },
    /// The connection failed under a command.
    #[error("{machine}: SSH failed at `{command}`: {reason}")]
    Transport {
        /// Name of the machine.
        machine: String,
        /// First line of the command.
        command: String,
        /// What ssh said.
        reason: String,
    },
    /// A command took too long.
    #[error("{machine}: `{command}` did not end within {seconds} s")]
    Timeout {
        /// Name of the machine.
        machine: String,
        /// First line of the command.
        command: String,
        /// The deadline.
        seconds: u64,
    },
    /// A command failed.
    #[error("{machine}: `{command}` failed ({status}): {stderr}")]
    Failed {
        /// Name of the machine.
        machine: String,
        /// First line of the command.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of its standard error.
        stderr: String,
    },
}

/// Keys of one run, in its private folder.
#[derive(Debug, Clone)]
pub struct Keys {
    folder: PathBuf,
    /// The client's public key, for `authorized_keys`.
    pub client_public: String,
    /// The machines' private host key.
    pub host_private: String,
    /// The machines' public host key.
    pub host_public: String,
}

impl Keys {
    /// Makes both key pairs and the client's configuration in `folder`.
    ///
    /// `aliases` are the machines' names with their addresses, so that `ssh -F CONFIG a` works.
    ///
    /// # Errors
    /// When `ssh-keygen` fails or the folder cannot be written.
    pub async fn make(folder: &Path, aliases: &[(String, Ipv4Addr)]) -> Result<Keys, SshError> {
        let fail = |e: std::io::Error| SshError::Keys(e.to_string());
        for name in ["client", "host"] {
            let out = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"])
                .arg(folder.join(name))
                .output()
                .await
                .map_err(fail)?;
            if !out.status.success() {
                return Err(SshError::Keys(String::from_utf8_lossy(&out.stderr).trim().to_owned()));
            }
        }
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).map_err(fail);
        let keys = Keys {
            folder: folder.to_owned(),
            client_public: read("client.pub")?,
            host_private: read("host")?,
            host_public: read("host.pub")?,
        };
        std::fs::write(folder.join("known_hosts"), format!("198.18.* {}", keys.host_public)).map_err(fail)?;
        std::fs::write(keys.config(), keys.client_config(aliases)).map_err(fail)?;
        Ok(keys)
    }

    /// The client's configuration file.
    pub fn config(&self) -> PathBuf {
        self.folder.join("ssh_config")
    }

    fn client_config(&self, aliases: &[(String, Ipv4Addr)]) -> String {
        let mut text = String::new();
        for (name, address) in aliases {
            let _ = writeln!(text, "Host {name}\n    HostName {address}");
        }
        let folder = self.folder.display();
        // One elliptic curve and a cipher that the emulated CPU does quickly: the post-quantum key
        // exchange costs most of a second there.
        let _ = writeln!(
            text,
            "Host *\n    User root\n    IdentityFile {folder}/client\n    IdentitiesOnly yes\n    \
             UserKnownHostsFile {folder}/known_hosts\n    StrictHostKeyChecking yes\n    \
             KexAlgorithms curve25519-sha256\n    Ciphers aes128-gcm@openssh.com\n    \
             PreferredAuthentications publickey\n    CheckHostIP no\n    LogLevel ERROR"
        );
        text
    }
}

/// A connection to one machine. Clones share it.
#[derive(Clone)]
pub struct Ssh {
    machine: String,
    session: Arc<Session>,
}

/// The longest a command may take when its caller says nothing else.
pub const COMMAND_DEADLINE: Duration = Duration::from_secs(120);

impl Ssh {
    /// Connects, trying again until the deadline.
    ///
    /// # Errors
    /// [`SshError::Connect`] with the last reason.
    pub async fn connect(
        machine: &str,
        address: Ipv4Addr,
        keys: &Keys,
        deadline: Duration,
    ) -> Result<Ssh, SshError> {
        let end = Instant::now() + deadline;
        let mut builder = SessionBuilder::default();
        builder
            .config_file(keys.config())
            .known_hosts_check(KnownHosts::Strict)
            .control_directory(&keys.folder)
            .connect_timeout(Duration::from_secs(20))
            .server_alive_interval(Duration::from_secs(30));
        loop {
            let reason = match timeout(deadline, builder.connect_mux(address.to_string())).await {
                Ok(Ok(session)) => {
                    return Ok(Ssh { machine: machine.to_owned(), session: Arc::new(session) });
                }
                Ok(Err(e)) => chain(&e),
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() >= end {
                return Err(SshError::Connect {
                    machine: machine.to_owned(),
                    seconds: deadline.as_secs(),
                    reason,
                });
            }
            // A refused connection answers at once; the machine's sshd needs a moment more.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Name of the machine.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Runs a shell script and returns what it printed, whatever its exit status.
    ///
    /// # Errors
    /// When the connection fails or the deadline passes.
    pub async fn output(&self, script: &str, deadline: Duration) -> Result<Output, SshError> {
        let command = first_line(script);
        let mut run = self.session.command("sh");
        run.arg("-c").arg(script).stdin(Stdio::null());
        match timeout(deadline, run.output()).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(e)) => {
                Err(SshError::Transport { machine: self.machine.clone(), command, reason: chain(&e) })
            }
            Err(_) => {
                Err(SshError::Timeout { machine: self.machine.clone(), command, seconds: deadline.as_secs() })
            }
        }
    }

    /// Runs a shell script that must succeed and returns its standard output.
    ///
    /// # Errors
    /// As [`Ssh::output`], and [`SshError::Failed`] when its exit status is not 0.
    pub async fn run_within(&self, script: &str, deadline: Duration) -> Result<String, SshError> {
        let output = self.output(script, deadline).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let tail: Vec<&str> = stderr.trim().lines().rev().take(5).collect();
        Err(SshError::Failed {
            machine: self.machine.clone(),
            command: first_line(script),
            status: output.status.to_string(),
            stderr: tail.into_iter().rev().collect::<Vec<_>>().join(" | "),
        })
    }

    /// As [`Ssh::run_within`] with [`COMMAND_DEADLINE`].
    ///
    /// # Errors
    /// As [`Ssh::run_within`].
    pub async fn run(&self, script: &str) -> Result<String, SshError> {
        self.run_within(script, COMMAND_DEADLINE).await
    }
}

fn first_line(script: &str) -> String {
    let line = script.trim().lines().next().unwrap_or_default();
    line.chars().take(120).collect()
}

/// An error with its causes, one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}
