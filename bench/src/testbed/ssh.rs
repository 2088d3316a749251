//! SSH with keys made for the run, one multiplexed connection a machine.
//!
//! Setting a connection up costs seconds on an emulated machine, so there is one a machine, and
//! commands are channels of it. One that has broken fails the command that it broke under, which may have
//! been done or not; the next command gets a new one. The machines' host key is made here as well and
//! comes to them in their seed: that saves its making at boot, and the client can be strict about it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::plain::PlainPath;
use crate::deadline::Apart;
use crate::exec::{Exec, ExecError, Output};
use crate::observe::arrivals::{Arrivals, arrivals};
use ctx_io::{bounded, output};
use openssh::{KnownHosts, Session, SessionBuilder, Stdio};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout, timeout_at};

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
    /// A program did not start in time.
    #[error("{machine}: `{command}` did not start within {} s", limit.as_secs_f64())]
    Late {
        /// Name of the machine.
        machine: String,
        /// The program.
        command: String,
        /// The deadline.
        limit: Duration,
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
}

/// A machine that has said nothing for so long is asked whether it is there, and taken for lost after so many questions: an
/// emulated guest in the middle of a migration, or under a load on all processors, has been silent for over a minute.
const ALIVE_EVERY: Duration = Duration::from_secs(30);
const ALIVE_PROBES: u32 = 10;
/// How long a broken connection is tried to be made again.
const AGAIN: Duration = Duration::from_secs(120);
/// How long the local end of a connection may take to say that it is there: it is a process of this machine.
const CHECK: Duration = Duration::from_secs(30);
/// How long a program that is to be followed may take to start, besides making the connection again.
const START: Duration = Duration::from_secs(90);
/// How long `ssh-keygen` may take, on a busy machine.
const KEYGEN: Duration = Duration::from_secs(60);

/// Keys of one run, in its private folder.
#[derive(Debug, Clone)]
pub struct Keys {
    folder: PlainPath,
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
    pub async fn make(folder: &PlainPath, aliases: &[(String, Ipv4Addr)]) -> Result<Keys, SshError> {
        let fail = |e: std::io::Error| SshError::Keys(e.to_string());
        for name in ["client", "host"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f"])
                .arg(folder.join(name).as_str())
                .stdin(std::process::Stdio::null())
                .kill_on_drop(true)
                .output();
            let late = |_| SshError::Keys(format!("it did not end within {} s", KEYGEN.as_secs()));
            let out = timeout(KEYGEN, made).await.map_err(late)?.map_err(fail)?;
            if !out.status.success() {
                return Err(SshError::Keys(String::from_utf8_lossy(&out.stderr).trim().to_owned()));
            }
        }
        let read =
            |name: &str| bounded::read_to_string(folder.join(name).as_ref(), bounded::KEYS).map_err(fail);
        let keys = Keys {
            folder: folder.clone(),
            client_public: read("client.pub")?,
            host_private: read("host")?,
            host_public: read("host.pub")?,
        };
        std::fs::write(folder.join("known_hosts"), format!("198.18.* {}", keys.host_public)).map_err(fail)?;
        std::fs::write(keys.config(), keys.client_config(aliases)).map_err(fail)?;
        Ok(keys)
    }

    /// The client's configuration file.
    pub fn config(&self) -> PlainPath {
        self.folder.join("ssh_config")
    }

    fn client_config(&self, aliases: &[(String, Ipv4Addr)]) -> String {
        let mut text = String::new();
        for (name, address) in aliases {
            let _ = writeln!(text, "Host {name}\n    HostName {address}");
        }
        let folder = &self.folder;
        // One elliptic curve and a cipher that the emulated CPU does quickly: the post-quantum key
        // exchange costs most of a second there.
        let _ = writeln!(
            text,
            "Host *\n    User root\n    IdentityFile {folder}/client\n    IdentitiesOnly yes\n    \
             UserKnownHostsFile {folder}/known_hosts\n    StrictHostKeyChecking yes\n    \
             KexAlgorithms curve25519-sha256\n    Ciphers aes128-gcm@openssh.com\n    \
             PreferredAuthentications publickey\n    CheckHostIP no\n    \
             ServerAliveInterval {}\n    ServerAliveCountMax {ALIVE_PROBES}\n    LogLevel INFO",
            ALIVE_EVERY.as_secs()
        );
        text
    }
}

/// A connection to one machine. Clones share it.
#[derive(Clone)]
pub struct Ssh {
    machine: String,
    address: Ipv4Addr,
    keys: Keys,
    session: Arc<Mutex<Shared>>,
}

/// A session. Dropping the last clone says goodbye to ssh and waits for its answer, so it is done where nobody waits.
#[derive(Clone)]
struct Shared(Arc<Apart<Session>>);

impl Shared {
    fn new(session: Session) -> Shared {
        Shared(Arc::new(Apart::new(session)))
    }
}

impl std::ops::Deref for Shared {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

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
        let session = open(machine, address, keys, deadline).await?;
        Ok(Ssh {
            machine: machine.to_owned(),
            address,
            keys: keys.clone(),
            session: Arc::new(Mutex::new(Shared::new(session))),
        })
    }

    /// The connection, made anew when it has broken.
    async fn session(&self) -> Result<Shared, SshError> {
        let mut session = self.session.lock().await;
        // A question to the local end, which ends with the connection.
        if !matches!(timeout(CHECK, session.check()).await, Ok(Ok(()))) {
            *session = Shared::new(open(&self.machine, self.address, &self.keys, AGAIN).await?);
        }
        Ok(session.clone())
    }

    /// Makes sure that a command can be done there now. A machine that was started anew has forgotten the connection, and this end
    /// notices only when it is used.
    ///
    /// # Errors
    /// When the machine does not answer.
    pub async fn ensure(&self) -> Result<(), SshError> {
        if self.demand("answer", "true", CHECK).await.is_err() {
            let mut session = self.session.lock().await;
            *session = Shared::new(open(&self.machine, self.address, &self.keys, AGAIN).await?);
        }
        Ok(())
    }

    /// Name of the machine.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Starts a program there and returns its standard output, line by line, dated as it arrives.
    /// It runs until the connection ends.
    ///
    /// # Errors
    /// When it cannot be started, or not in time.
    pub async fn follow(&self, program: &str, arguments: &[&str]) -> Result<Arrivals<String>, SshError> {
        let session = self.session().await?;
        let transport = |e: openssh::Error| SshError::Transport {
            machine: self.machine.clone(),
            command: program.to_owned(),
            reason: broke(&e, &session),
        };
        let mut command = Session::to_command(session.clone(), program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let late =
            |_| SshError::Late { machine: self.machine.clone(), command: program.to_owned(), limit: START };
        let mut child = timeout(START, command.spawn()).await.map_err(late)?.map_err(transport)?;
        let (inlet, lines) = arrivals();
        let stdout = child.stdout().take();
        tokio::spawn(async move {
            if let Some(stdout) = stdout {
                let mut reader = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = reader.next_line().await {
                    inlet.put(line);
                }
            }
            // The child is kept until its output has ended: dropping it would end it.
            let _ = child.wait().await;
        });
        Ok(lines)
    }
}

impl Exec for Ssh {
    fn name(&self) -> &str {
        &self.machine
    }

    async fn run(&self, script: &str) -> Result<Output, ExecError> {
        use std::os::unix::process::ExitStatusExt;
        let unreachable = |reason| ExecError::Unreachable { host: self.machine.clone(), reason };
        let session = self.session().await.map_err(|e| unreachable(e.to_string()))?;
        let mut command = session.command("sh");
        command.arg("-c").arg(script).stdin(Stdio::null());
        let output = command.output().await.map_err(|e| unreachable(broke(&e, &session)))?;
        let status = output.status;
        Ok(Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(-1),
        })
    }
}

/// Connects, trying again until the deadline.
async fn open(
    machine: &str,
    address: Ipv4Addr,
    keys: &Keys,
    deadline: Duration,
) -> Result<Session, SshError> {
    let mut builder = SessionBuilder::default();
    builder
        .config_file(keys.config())
        .known_hosts_check(KnownHosts::Strict)
        .control_directory(&keys.folder)
        .connect_timeout(Duration::from_secs(20));
    let connect = || async { builder.connect_mux(address.to_string()).await.map_err(|e| chain(&e)) };
    let connected = again_until(deadline, connect).await;
    connected.map_err(|reason| SshError::Connect {
        machine: machine.to_owned(),
        seconds: deadline.as_secs(),
        reason,
    })
}

/// Tries again until the deadline, whatever a single try takes; then the last reason.
async fn again_until<T, F: Future<Output = Result<T, String>>>(
    deadline: Duration,
    mut attempt: impl FnMut() -> F,
) -> Result<T, String> {
    let end = Instant::now() + deadline;
    let mut reason = "no answer".to_owned();
    loop {
        match timeout_at(end, attempt()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(why)) => reason = why,
            Err(_) => return Err(reason),
        }
        // A refused connection answers at once; the machine's sshd needs a moment more.
        let pause = Instant::now() + Duration::from_millis(300);
        if pause >= end {
            return Err(reason);
        }
        tokio::time::sleep_until(pause).await;
    }
}

/// Why a command failed, with what ssh itself has said last of the connection.
fn broke(error: &openssh::Error, session: &Session) -> String {
    let log = session.control_socket().with_file_name("log");
    let said = bounded::tail(&log, bounded::TAIL).unwrap_or_default();
    match said.trim().lines().last() {
        Some(line) => format!("{} (ssh: {line})", chain(error)),
        None => chain(error),
    }
}

/// An error with its causes, one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    output::reason(error).replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn a_try_that_hangs_does_not_outlast_the_deadline() {
        let mut tries = 0;
        let hung = again_until(Duration::from_millis(400), || {
            tries += 1;
            let first = tries == 1;
            async move {
                if first {
                    return Err::<(), _>("refused".to_owned());
                }
                std::future::pending().await
            }
        });
        // Were each try given the deadline anew, this would never end.
        assert_eq!(
            tokio::time::timeout(Duration::from_secs(600), hung).await.unwrap().unwrap_err(),
            "refused"
        );
    }

    /// ssh's local end of a connection accepts, and never answers.
    #[test]
    fn a_command_on_a_stuck_connection_is_given_up_with_host_operation_and_limit() {
        let home = tempfile::tempdir_in("/tmp").unwrap();
        let master = home.path().join("master");
        let stuck = std::os::unix::net::UnixListener::bind(&master).unwrap();
        let keys = Keys {
            folder: PlainPath::new(home.path()).unwrap(),
            client_public: String::new(),
            host_private: String::new(),
            host_public: String::new(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(async {
            let session = Arc::new(Mutex::new(Shared::new(Session::resume_mux(master.into(), None))));
            let ssh = Ssh { machine: "a".into(), address: Ipv4Addr::LOCALHOST, keys, session };
            ssh.demand("read the clock", "cat /proc/uptime", Duration::from_millis(50)).await.unwrap_err()
        });
        assert_eq!(error.to_string(), "a: read the clock did not end within 0.05 s");
        drop(runtime);
        drop(stuck);
    }

    /// A path with a space, or with a `%`, made ssh look for other files than there are.
    #[tokio::test]
    async fn ssh_finds_the_files_that_its_configuration_names() {
        let there = |program: &str| crate::doctor::which(program).is_some();
        if !there("ssh") || !there("ssh-keygen") {
            eprintln!("SKIPPED testbed::ssh::ssh_finds_the_files_that_its_configuration_names: no ssh");
            return;
        }
        let home = tempfile::tempdir_in("/tmp").unwrap();
        let folder = PlainPath::new(home.path()).unwrap();
        let keys = Keys::make(&folder, &[("a".into(), [198, 18, 0, 11].into())]).await.unwrap();
        let output =
            Command::new("ssh").args(["-G", "-F", keys.config().as_str(), "a"]).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        assert_eq!(value("hostname"), Some("198.18.0.11"));
        for name in ["identityfile", "userknownhostsfile"] {
            assert!(value(name).is_some_and(|file| Path::new(file).is_file()), "{name} in {text}");
        }
    }
}
