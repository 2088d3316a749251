//! Hooks: what is run when paths change.
//!
//! One thread runs them, one after the other in the order of the configuration, after the switch.
//! Changes that arrive meanwhile are taken together: a hook runs once for all of them, with the
//! newest generation.

use std::collections::BTreeSet;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ctx_io::bounded;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::config::{Hook, matches, signal_number};
use crate::door::Door;
use crate::events::{Log, Step};

/// The list of changed paths is cut here, in bytes: an environment variable may not exceed 128 KiB.
const CHANGED_MAX: usize = 100_000;

/// The last result of a hook, for the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The hook's name.
    pub hook: String,
    /// The mount's generation that it ran for.
    pub generation: u64,
    /// How long it ran, in milliseconds.
    pub millis: u64,
    /// `ok`, `exit N`, `signal N`, `timeout`, or why it did not start.
    pub result: String,
}

/// The running of hooks.
pub struct Hooks(Arc<Shared>);

/// What hooks are to run for: the newest generation, and all paths.
pub(crate) type Waiting = Option<(u64, BTreeSet<Vec<u8>>)>;

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    more: Condvar,
    outcomes: Mutex<Vec<Outcome>>,
}

/// A panic elsewhere leaves these whole: each change is one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hooks {
    /// Starts the thread that runs `hooks`, going through `door` for each round of them. `outcomes` and
    /// `waiting` are what another program left.
    ///
    /// # Errors
    /// What starting a thread returns.
    pub(crate) fn start(
        hooks: Vec<Hook>,
        point: &Path,
        log: Arc<Log>,
        door: Door,
        outcomes: Vec<Outcome>,
        waiting: Waiting,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::new(waiting),
            more: Condvar::new(),
            outcomes: Mutex::new(outcomes),
        });
        let (of, point) = (shared.clone(), point.to_owned());
        std::thread::Builder::new()
            .name("hooks".to_owned())
            .spawn(move || work(&hooks, &point, &of, &log, &door))?;
        Ok(Self(shared))
    }

    /// Queues the changes of a switch.
    pub fn changed(&self, generation: u64, paths: BTreeSet<Vec<u8>>) {
        let mut waiting = locked(&self.0.waiting);
        let (newest, all) = waiting.get_or_insert_default();
        *newest = generation;
        all.extend(paths);
        self.0.more.notify_one();
    }

    /// The last outcome of each hook that ran.
    pub fn outcomes(&self) -> Vec<Outcome> {
        locked(&self.0.outcomes).clone()
    }

    /// What hooks are yet to run for.
    pub(crate) fn waiting(&self) -> Waiting {
        locked(&self.0.waiting).clone()
    }
}

fn work(hooks: &[Hook], point: &Path, shared: &Shared, log: &Log, door: &Door) {
    loop {
        let waiting = locked(&shared.waiting);
        drop(shared.more.wait_while(waiting, |waiting| waiting.is_none()));
        // Inside before anything is taken: what is left behind the door is handed over.
        let _inside = door.enter();
        let Some((generation, paths)) = locked(&shared.waiting).take() else { continue };
        for hook in hooks {
            let hit: Vec<&[u8]> =
                paths.iter().map(Vec::as_slice).filter(|path| matches(hook.path.as_bytes(), path)).collect();
            if hit.is_empty() {
                continue;
            }
            let started = Instant::now();
            let result = run(hook, point, generation, &hit);
            let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let hook = hook.name().to_owned();
            log.write(Step::Hook { hook: hook.clone(), generation, millis, result: result.clone() });
            let mut outcomes = locked(&shared.outcomes);
            outcomes.retain(|outcome| outcome.hook != hook);
            outcomes.push(Outcome { hook, generation, millis, result });
        }
        log.write(Step::HooksDone { generation });
    }
}

fn run(hook: &Hook, point: &Path, generation: u64, changed: &[&[u8]]) -> String {
    let mut command = match (&hook.run, &hook.reload, &hook.signal, &hook.pid_file) {
        (Some(run), ..) => match run.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args);
                command
            }
            None => return "empty command".to_owned(),
        },
        (_, Some(unit), ..) => {
            let mut command = Command::new("systemctl");
            command.args(["reload-or-restart", "--", unit]);
            command
        }
        (_, _, Some(name), Some(file)) => return send(name, file),
        _ => return "nothing to do".to_owned(),
    };
    let mut list = String::from_utf8_lossy(&changed.join(&b'\n')).into_owned();
    if list.len() > CHANGED_MAX {
        let cut = (0..=CHANGED_MAX).rev().find(|&at| list.is_char_boundary(at)).unwrap_or(0);
        list.truncate(cut);
    }
    let list = list.replace('\0', "");
    let child = command
        .env("FFS_MOUNT", point)
        .env("FFS_GENERATION", generation.to_string())
        .env("FFS_CHANGED", list)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        // A group of its own, so that a time-out ends its children too.
        .process_group(0)
        .spawn();
    match child {
        Err(error) => format!("cannot start: {error}"),
        Ok(child) => wait(child, Duration::from_millis(hook.timeout_ms.get())),
    }
}

/// Waits for a child under a time limit; what does not end is killed with its group.
fn wait(child: Child, limit: Duration) -> String {
    // A process number always fits.
    let group = Pid::from_raw(child.id().cast_signed());
    let (done, result) = channel();
    let waiter = std::thread::spawn(move || {
        let mut child = child;
        let _ = done.send(child.wait());
    });
    let (status, late) = if let Ok(status) = result.recv_timeout(limit) {
        (status, false)
    } else {
        let _ = killpg(group, Signal::SIGKILL);
        (result.recv().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into())), true)
    };
    let _ = waiter.join();
    match status {
        _ if late => "timeout".to_owned(),
        Err(error) => format!("cannot wait: {error}"),
        Ok(status) if status.success() => "ok".to_owned(),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "unknown".to_owned(),
        },
    }
}

fn send(name: &str, pid_file: &Path) -> String {
    let Some(signal) = signal_number(name) else { return format!("no signal is named `{name}`") };
    let pid = match bounded::read_to_string(pid_file, bounded::NUMBER) {
        Ok(text) => text.trim().parse::<i32>().ok().filter(|pid| *pid > 1),
        Err(error) => return format!("cannot read `{}`: {error}", pid_file.display()),
    };
    match pid {
        None => format!("no process number in `{}`", pid_file.display()),
        Some(pid) => match kill(Pid::from_raw(pid), signal) {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("cannot signal {pid}: {error}"),
        },
    }
}
