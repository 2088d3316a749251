//! Runs that pass a deadline, or are stopped while a program does not answer: what is kept, and what is said.
//!
//! All in experiment `layers`, which needs no machines.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test ends where it cannot go on")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bench::doctor::{Requirement, Subject, require};
use bench::store::StoredRun;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

/// Trials of at least two seconds, in which readers look for mixed content.
const SCENARIO: &str = "title = \"t\"\nexperiment = \"layers\"\n[testbed]\nkind = \"local\"\n\
    [layers]\nfiles = 20\nlarge = \"1 MiB\"\nmounts = 1\npasses = 1\nswaps = 2\ncached = 10\nstorm = \"2 s\"\n\
    storm_rate = 10\nmany_files = 20\nmany_layers = 2\nmany_looked_up = 1\n\
    [design]\nwarmup = 0\nseed = 1\n";

/// For a very busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// A folder with a scenario; none where a run is not possible, which it says.
struct Home(tempfile::TempDir);

impl Home {
    fn new(test: &str, design: &str, needed: &[Subject]) -> Option<Home> {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let needed: Vec<_> = needed.iter().copied().map(Requirement::Works).collect();
        if let Err(unmet) = require(&bench::doctor::probe(), &needed) {
            eprintln!("SKIPPED deadlines::{test}: {}", unmet.to_string().replace('\n', " "));
            return None;
        }
        fs::write(folder.path().join("tiny.toml"), format!("{SCENARIO}{design}")).unwrap();
        Some(Home(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, program: &Path) -> Command {
        let (scenario, results) = (self.path("tiny.toml"), self.path("results"));
        command(program, &["run".as_ref(), &scenario, "--results".as_ref(), &results])
    }

    fn results(&self) -> PathBuf {
        fs::read_dir(self.path("results/tiny")).unwrap().next().unwrap().unwrap().path()
    }

    /// The outcomes of its trials and their reasons.
    fn ended(&self) -> Vec<(String, String)> {
        let stored = StoredRun::read(&self.results()).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let ended = stored.events.iter().filter(|event| event.kind == bench::store::kind::TRIAL_ENDED);
        ended.map(|event| (text(&event.payload["outcome"]), text(&event.payload["reason"]))).collect()
    }
}

fn command(program: &Path, words: &[&Path]) -> Command {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn bench() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bench"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_trial_that_passes_its_deadline_has_failed_and_the_next_one_begins() {
    let design = "arms = [\"native\"]\nblocks = 2\ntrial_deadline = \"1 s\"\n";
    let test = "a_trial_that_passes_its_deadline_has_failed_and_the_next_one_begins";
    let Some(home) = Home::new(test, design, &[Subject::Namespaces]) else { return };
    let output = home.run(bench()).output().unwrap();
    // Done, with invalid samples.
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    let reason = "the trial did not end within 1 s, its deadline ([design] trial_deadline)";
    assert_eq!(home.ended(), vec![("failed".to_owned(), reason.to_owned()); 2]);
    let stored = StoredRun::read(&home.results()).unwrap();
    let failed = |sample: &&bench::model::Sample| sample.metric == bench::metric::TRIAL_FAILED;
    assert_eq!(stored.samples.iter().filter(failed).filter(|s| !s.valid && s.reason == reason).count(), 2);
    assert!(stored.is_finished());
}

#[test]
fn a_run_that_passes_its_deadline_begins_no_other_trial_and_says_how_to_go_on() {
    let design = "arms = [\"native\"]\nblocks = 3\nrun_deadline = \"1 s\"\n";
    let test = "a_run_that_passes_its_deadline_begins_no_other_trial_and_says_how_to_go_on";
    let Some(home) = Home::new(test, design, &[Subject::Namespaces]) else { return };
    let first = home.run(bench()).output().unwrap();
    assert_eq!(first.status.code(), Some(1), "{}", said(&first));
    let told = said(&first);
    assert!(told.contains("the run has passed its deadline of 1 s ([design] run_deadline) with "), "{told}");
    let resume =
        format!("what was measured is kept: `bench resume {}` goes on from there", home.results().display());
    assert!(told.contains(&resume), "{told}");
    let done = home.ended().len();
    // On a busy machine the deadline may pass before the first trial; the second cannot begin, since one takes two seconds.
    assert!(done <= 1, "{done} trials were done");
    assert!(home.ended().iter().all(|(outcome, _)| outcome == "completed"), "{:?}", home.ended());
    // It goes on, with as much time again.
    let again = command(bench(), &["resume".as_ref(), &home.results()]).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    assert!(home.ended().len() <= done + 1, "{}", said(&again));
}

/// `ffs` is a program that never mounts anything and ignores SIGTERM: the trial waits in a call that blocks.
#[test]
fn a_run_that_is_stopped_while_a_program_does_not_answer_ends() {
    let test = "a_run_that_is_stopped_while_a_program_does_not_answer_ends";
    // To the process that the user started, which is `unshare`, and to the bench itself, its only child.
    for outside in [true, false] {
        let design = "arms = [\"ffs\"]\nblocks = 1\n";
        let Some(home) = Home::new(test, design, &[Subject::Namespaces, Subject::Fuse]) else { return };
        let (program, says) = deaf(&home);
        let run = Run(Some(home.run(&program).spawn().unwrap()));
        assert_eq!(says.recv_timeout(LIMIT).as_deref(), Ok("runs"));
        let mut process = run.0.as_ref().unwrap().id();
        if !outside {
            let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap();
            process = children.split_whitespace().next().unwrap().parse().unwrap();
        }
        kill(Pid::from_raw(process.try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(says.recv_timeout(LIMIT).as_deref(), Ok("gone"), "the program lives");
        let output = run.end();
        assert!(!output.status.success(), "{}", said(&output));
        let resume =
            format!("stopped; what was measured is kept: `bench resume {}`", home.results().display());
        assert!(said(&output).contains(&resume), "{}", said(&output));
        assert!(home.ended().is_empty(), "the trial is done again");
    }
}

/// A copy of the bench beside an `ffs` that does nothing, and what that says: that it runs, and then that it is gone.
fn deaf(home: &Home) -> (PathBuf, Receiver<String>) {
    let bin = home.path("bin");
    fs::create_dir(&bin).unwrap();
    let program = bin.join("bench");
    fs::copy(bench(), &program).unwrap();
    let alive = home.path("alive");
    mkfifo(&alive, Mode::S_IRWXU).unwrap();
    // It holds the pipe open for as long as it lives.
    let script = format!(
        "#!/bin/sh\ntest \"$1\" = --version && {{ echo 'ffs 1'; exit; }}\nexec 9>'{}'\ntrap '' TERM INT\n\
         echo runs >&9\nwhile :; do sleep 600 9>&-; done\n",
        alive.display()
    );
    fs::write(bin.join("ffs"), script).unwrap();
    fs::set_permissions(bin.join("ffs"), fs::Permissions::from_mode(0o755)).unwrap();
    let (sender, says) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(fs::File::open(alive).unwrap()).lines() {
            let _ = sender.send(line.unwrap());
        }
        let _ = sender.send("gone".into());
    });
    (program, says)
}

/// A run, which a failed test does not leave behind.
struct Run(Option<Child>);

impl Run {
    fn end(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
