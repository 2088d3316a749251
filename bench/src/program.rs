//! Programs of this machine, each run to its end or to its deadline, and with as much output as one may have.
//!
//! A program that is too late gets SIGKILL, which none can ignore. One that the kernel holds (a file system that does not answer)
//! does not end even then, and a child of its own may keep its output open: neither is waited for without end.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::deadline::{CallError, call_blocking};

/// How long a program may take to end after a signal that it cannot ignore.
const KILLED: Duration = Duration::from_secs(10);

/// The most bytes that a program may write to its output, and to its standard error.
const MOST: u64 = 16 << 20;

/// Runs a program to its end and gives what it wrote. Its standard input is the caller's to choose.
///
/// # Errors
/// It cannot be run; of kind [`io::ErrorKind::TimedOut`], it did not end within the limit and was killed; or, of kind
/// [`io::ErrorKind::FileTooLarge`], it wrote more than 16 MiB and was killed.
pub(crate) fn output(command: &mut Command, limit: Duration) -> io::Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let handle = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
        Ok(handle) => Arc::new(handle),
        Err(error) => {
            let _ = child.kill();
            return Err(error.into());
        }
    };
    let own = Arc::clone(&handle);
    match call_blocking(&name, "run it", limit, move || read(child, &own)) {
        Ok(output) => output.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => io::Error::new(error.kind(), format!("{name} {error}")),
            _ => error,
        }),
        Err(error) => {
            // It may have ended just now; the descriptor is of this process and of no other.
            let _ = pidfd_send_signal(handle.as_ref(), Signal::KILL);
            Err(match error {
                CallError::Late { .. } => late(&name, limit),
                error => io::Error::other(error),
            })
        }
    }
}

/// What a program writes until its end. One that writes too much is killed at once: it would fill any memory until its deadline.
fn read(mut child: Child, handle: &OwnedFd) -> io::Result<Output> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (stdout, stderr) = std::thread::scope(|scope| {
        let errors = scope.spawn(|| bounded(stderr, handle));
        (bounded(stdout, handle), errors.join())
    });
    let status = child.wait()?;
    let stderr =
        stderr.unwrap_or_else(|_| Err(io::Error::other("the thread that read its standard error panicked")));
    Ok(Output { status, stdout: stdout?, stderr: stderr? })
}

fn bounded(pipe: Option<impl Read>, handle: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST + 1).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 <= MOST {
        return Ok(bytes);
    }
    let _ = pidfd_send_signal(handle, Signal::KILL);
    let said = format!("wrote more than {} MiB and was killed", MOST >> 20);
    Err(io::Error::new(io::ErrorKind::FileTooLarge, said))
}

/// The error of a program that did not end.
fn late(name: &str, limit: Duration) -> io::Error {
    let said = format!("{name} did not end within {} s and was killed", limit.as_secs_f64());
    io::Error::new(io::ErrorKind::TimedOut, said)
}

/// Waits for a program's end; none when it has not come within the limit.
///
/// # Errors
/// It cannot be waited for.
pub(crate) fn ended_within(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = end.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= end {
            return Ok(status);
        }
    }
}

/// Asks a program to end and, when it has not within the limit, kills it. Whether it has ended then.
///
/// # Errors
/// It cannot be waited for.
pub(crate) fn end(child: &mut Child, limit: Duration) -> io::Result<bool> {
    // It is a child that was not waited for, so nobody else has its number.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
    if ended_within(child, limit)?.is_some() {
        return Ok(true);
    }
    child.kill()?;
    Ok(ended_within(child, KILLED)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_program_that_writes_without_end_is_killed_at_once_and_both_outputs_are_read() {
        let shell = |script: &str| output(Command::new("sh").args(["-c", script]), LONG);
        for script in ["exec cat /dev/zero", "exec cat /dev/zero >&2"] {
            let error = shell(script).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(error.to_string(), "sh wrote more than 16 MiB and was killed");
        }
        // As much as it may, on both, each beyond what a pipe holds.
        let both = shell("head -c 16777216 /dev/zero; head -c 1000000 /dev/zero >&2; exit 3").unwrap();
        assert_eq!(
            (both.stdout.len(), both.stderr.len(), both.status.code()),
            (16 << 20, 1_000_000, Some(3))
        );
    }

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null());
        command
    }

    #[test]
    fn what_ends_is_read_whole() {
        let output = output(&mut sh("echo out; echo err >&2; exit 3"), LONG).unwrap();
        assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"err\n".to_vec()));
        assert_eq!(output.status.code(), Some(3));
    }

    #[test]
    fn a_program_that_ignores_sigterm_is_killed_at_its_deadline() {
        let error = output(&mut sh("trap '' TERM; while :; do sleep 1; done"), SOON).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "sh did not end within 0.05 s and was killed");
    }

    #[test]
    fn a_child_that_keeps_the_output_open_is_not_waited_for() {
        // The shell ends at once; what it leaves behind has its output until `hold` is dropped.
        let (ends, hold) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exec 3<&0; cat <&3 & exit 0"]).stdin(ends);
        let error = output(&mut command, SOON).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(hold);
    }

    #[test]
    fn what_is_asked_to_end_ends_also_if_it_will_not() {
        for script in ["exec sleep 600", "trap '' TERM; while :; do sleep 1; done"] {
            let mut child = sh(script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            assert!(ended_within(&mut child, SOON).unwrap().is_none());
            assert!(end(&mut child, SOON).unwrap(), "{script}");
            assert!(ended_within(&mut child, SOON).unwrap().is_some());
        }
    }
}
