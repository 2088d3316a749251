//! Running a shell script on some machine, wherever it is.
//!
//! The shaping and the workloads only need this: a POSIX shell with root's rights on a machine that
//! has a name. How it is reached (SSH, a namespace, this machine itself) is the executor's business,
//! so everything above it runs unchanged on nested machines, on a lab's inventory and in tests.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

/// What a script printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output, lossy UTF-8.
    pub stdout: String,
    /// Standard error, lossy UTF-8.
    pub stderr: String,
    /// Exit status; 128 + signal number when a signal ended it, as a shell says it.
    pub status: i32,
}

/// A script that could not be run, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The machine could not be reached, or the connection broke.
    #[error("{host}: cannot run a script: {reason}")]
    Unreachable {
        /// Name of the machine.
        host: String,
        /// What the transport said.
        reason: String,
    },
    /// The script ended with another status than 0.
    #[error("{host}: {what} failed with status {status}: {stderr}")]
    Failed {
        /// Name of the machine.
        host: String,
        /// What was being done, e.g. `mount the volume`.
        what: String,
        /// Exit status.
        status: i32,
        /// The last lines of its standard error.
        stderr: String,
    },
    /// The script did not end in time.
    #[error("{host}: {what} did not end within {} s", deadline.as_secs_f64())]
    Late {
        /// Name of the machine.
        host: String,
        /// What was being done.
        what: String,
        /// How long it had.
        deadline: Duration,
    },
}

/// A machine that runs shell scripts as root.
///
/// An implementation runs `script` with a POSIX `sh` whose standard input is empty, and returns
/// whatever status it ends with: a status other than 0 is not an error at this level. When the future
/// is dropped the script should be ended too; scripts that may outlast a connection carry their own
/// `timeout` besides.
pub trait Exec: Sync {
    /// Name of the machine for errors and logs, e.g. `remote`.
    fn name(&self) -> &str;

    /// Runs `script` to its end.
    ///
    /// # Errors
    /// [`ExecError::Unreachable`] when it could not be run at all.
    fn run(&self, script: &str) -> impl Future<Output = Result<Output, ExecError>> + Send;

    /// Runs `script`, demands that it ends with status 0 within `deadline`, and gives its standard
    /// output. `what` says in the imperative what the script does, for the error.
    ///
    /// # Errors
    /// All of [`ExecError`].
    fn demand(
        &self,
        what: &str,
        script: &str,
        deadline: Duration,
    ) -> impl Future<Output = Result<String, ExecError>> + Send {
        async move {
            tracing::debug!(host = self.name(), what, "run");
            let late = || ExecError::Late { host: self.name().into(), what: what.into(), deadline };
            let output = tokio::time::timeout(deadline, self.run(script)).await.map_err(|_| late())??;
            if output.status == 0 {
                return Ok(output.stdout);
            }
            Err(ExecError::Failed {
                host: self.name().into(),
                what: what.into(),
                status: output.status,
                stderr: last_lines(&output.stderr, 6),
            })
        }
    }
}

/// An executor that starts a program which runs the shell `sh -s` somewhere and feeds the script to its standard
/// input: with no words before it this machine itself, with `nsenter …`, `ip netns exec …` or `ssh …`
/// another place.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    prefix: Vec<String>,
}

impl Program {
    /// An executor called `name` that runs `prefix… sh -s`.
    pub fn new(name: impl Into<String>, prefix: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { name: name.into(), prefix: prefix.into_iter().map(Into::into).collect() }
    }

    /// This machine itself.
    pub fn here() -> Self {
        Self::new("localhost", Vec::<String>::new())
    }

    async fn feed(&self, script: &str) -> std::io::Result<std::process::Output> {
        let mut words = self.prefix.iter().map(String::as_str).chain(["sh", "-s"]);
        let mut child = tokio::process::Command::new(words.next().unwrap_or("sh"))
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut stdin = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        // The braces make the shell read all of it before the first command, which could otherwise
        // read the rest of the script as its own input.
        let text = format!("{{\n{script}\n}} </dev/null\n");
        let (fed, output) = tokio::join!(
            async move {
                let done = stdin.write_all(text.as_bytes()).await;
                drop(stdin);
                done
            },
            child.wait_with_output()
        );
        // A shell that ended before it read everything says why in its output.
        match fed {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
            _ => output,
        }
    }
}

impl Exec for Program {
    fn name(&self) -> &str {
        &self.name
    }

    async fn run(&self, script: &str) -> Result<Output, ExecError> {
        use std::os::unix::process::ExitStatusExt;
        let output = self
            .feed(script)
            .await
            .map_err(|error| ExecError::Unreachable { host: self.name.clone(), reason: error.to_string() })?;
        let status = output.status;
        Ok(Output {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(-1),
        })
    }
}

/// The last `count` lines of `text` that are not empty, joined by ` | `.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join(" | ")
}

/// `text` as one word of a POSIX shell.
pub fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_status_is_not_an_error_until_it_is_demanded() {
        let here = Program::here();
        let output = here.run("echo out; echo err >&2; exit 3").await.unwrap();
        assert_eq!(output, Output { stdout: "out\n".into(), stderr: "err\n".into(), status: 3 });
        let error = here.demand("count to three", "echo why >&2; exit 3", SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "localhost: count to three failed with status 3: why");
    }

    #[tokio::test]
    async fn a_command_cannot_eat_the_rest_of_the_script() {
        let output = Program::here().run("cat\necho after").await.unwrap();
        assert_eq!(output.stdout, "after\n");
    }

    #[tokio::test]
    async fn a_late_script_is_an_error_with_its_deadline() {
        let error = Program::here().demand("wait", "sleep 30", Duration::from_millis(200)).await.unwrap_err();
        assert_eq!(error.to_string(), "localhost: wait did not end within 0.2 s");
    }

    #[tokio::test]
    async fn a_missing_transport_names_the_machine() {
        let error = Program::new("a", ["/nonexistent/ssh"]).run("true").await.unwrap_err();
        assert!(error.to_string().starts_with("a: cannot run a script: No such file"), "{error}");
    }

    proptest! {
        #[test]
        fn the_shell_reads_back_what_was_quoted(text in "[^\0]{0,40}") {
            let output = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quote(&text))])
                .output()
                .unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
