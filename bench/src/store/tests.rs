use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::metric;

const TEXT: &str = "title = \"t\"\nexperiment = \"migration\"\n\
    [design]\narms = [\"plain\", \"recontext\"]\nblocks = 2\nwarmup = 0\nseed = 7\n";

fn scenario() -> Scenario {
    Scenario::parse("dir/store-test.toml", TEXT, None).unwrap()
}

fn sample(trial: &Trial, value: f64) -> Sample {
    Sample {
        block: trial.block,
        arm: trial.arm.to_string(),
        order: trial.order,
        metric: metric::MIGRATION_TOTAL.into(),
        phase: String::new(),
        value: Some(value),
        unit: metric::unit(metric::MIGRATION_TOTAL).into(),
        valid: true,
        reason: String::new(),
        accelerator: "tcg".into(),
        hypervisor: "kvm".into(),
        dilation: 1.0,
    }
}

fn new(root: &Path) -> RunFolder {
    let scenario = scenario();
    let about = About { git_revision: Some("abc".into()), ..About::default() };
    RunFolder::create(root, &scenario, &Plan::new(&scenario), about).unwrap()
}

/// Every trial of the plan that is still to do, one sample each.
fn go_on(run: &RunFolder) {
    let done = run.completed_trials();
    for trial in run.manifest().plan.trials.iter().filter(|trial| !done.contains(&trial.order)) {
        run.trial_started(trial).unwrap();
        run.samples(&[sample(trial, f64::from(trial.order) + 0.1)]).unwrap();
        run.trial_ended(trial, &Outcome::Completed).unwrap();
    }
}

#[test]
fn a_run_is_stored_and_read_back() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    run.update_manifest(|manifest| {
        manifest.accelerator = Some("tcg".into());
        manifest.hosts = serde_json::json!([{"name": "a"}]);
    })
    .unwrap();
    fs::write(run.raw_file("block-1/tool.txt").unwrap(), "raw").unwrap();
    go_on(&run);
    let path = run.finish().unwrap();
    assert!(path.starts_with(root.path().join("store-test")));

    let stored = StoredRun::read(&path).unwrap();
    assert_eq!(stored.scenario, scenario());
    assert_eq!(stored.samples.len(), 4);
    assert_eq!(stored.samples, read_samples(&path.join(SAMPLES)).unwrap());
    assert_eq!(stored.manifest.accelerator.as_deref(), Some("tcg"));
    assert!(stored.manifest.ended_utc.is_some());
    assert_eq!(verify(&path).unwrap(), []);
    let sums = std::process::Command::new("sha256sum")
        .args(["-c", "--quiet", CHECKSUMS])
        .current_dir(&path)
        .status();
    assert!(sums.unwrap().success());

    fs::write(path.join("raw/block-1/tool.txt"), "other").unwrap();
    fs::write(path.join("raw/more.txt"), "").unwrap();
    fs::remove_file(path.join(SAMPLES)).unwrap();
    let mismatches: Vec<_> = verify(&path).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(
        mismatches,
        [
            "raw/block-1/tool.txt was changed",
            "raw/more.txt is not in the list of checksums",
            "samples.csv is missing"
        ]
    );
    assert!(matches!(RunFolder::open(&path), Err(StoreError::Finished { .. })));
}

#[test]
fn packages_of_images_are_kept_with_the_run_and_never_replaced() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    let list = root.path().join("list");
    let keep = |text: &str| {
        fs::write(&list, text).unwrap();
        run.packages("guest", &list).unwrap();
    };
    keep("bash\t5.2\tamd64\n");
    keep("bash\t5.2\tamd64\n");
    // Resumed with an image that was built again.
    keep("bash\t5.3\tamd64\n");
    keep("bash\t5.2\tamd64\n");
    assert!(run.packages("host", &root.path().join("none")).is_err());
    go_on(&run);
    let path = run.finish().unwrap();
    let read = |name: &str| fs::read_to_string(path.join("packages").join(name)).unwrap();
    assert_eq!(
        (read("guest.tsv"), read("guest.2.tsv")),
        ("bash\t5.2\tamd64\n".into(), "bash\t5.3\tamd64\n".into())
    );
    assert_eq!(fs::read_dir(path.join("packages")).unwrap().count(), 2);
    assert_eq!(verify(&path).unwrap(), []);
    fs::write(path.join("packages/guest.tsv"), "").unwrap();
    assert_eq!(verify(&path).unwrap(), [Mismatch::Changed("packages/guest.tsv".into())]);
}

#[test]
fn a_manifest_says_which_programs_measured_and_an_older_one_says_what_it_said() {
    let root = tempfile::tempdir().unwrap();
    let scenario = scenario();
    let about = About {
        git_revision: Some("abc".into()),
        scenario_revision: Some("def-dirty".into()),
        cargo_lock: Some("l".into()),
        programs: [("bench".to_owned(), "b".to_owned())].into(),
        accelerator: Some(crate::scenario::AcceleratorChoice::Tcg),
    };
    let run = RunFolder::create(root.path(), &scenario, &Plan::new(&scenario), about).unwrap();
    let read = Manifest::read(run.path()).unwrap();
    assert_eq!(read, run.manifest());
    let value = serde_json::to_value(&read).unwrap();
    for (at, expected) in [
        ("/git_revision", "abc"),
        ("/scenario/git_revision", "def-dirty"),
        ("/cargo_lock", "l"),
        ("/programs/bench", "b"),
        ("/accelerator_asked", "tcg"),
    ] {
        assert_eq!(value.pointer(at).unwrap(), expected, "{at}");
    }
    // The stored runs of versions that noted none of these are read, and written again with the same bytes.
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/reference");
    let runs = fs::read_dir(reference).unwrap().map(|entry| entry.unwrap().path());
    let runs: Vec<_> = runs.filter(|path| path.join(MANIFEST).is_file()).collect();
    assert!(runs.len() >= 6, "{runs:?}");
    for path in runs {
        let manifest = Manifest::read(&path).unwrap();
        if !manifest.programs.is_empty() {
            continue;
        }
        let copy = tempfile::tempdir().unwrap();
        manifest.write(copy.path()).unwrap();
        let (old, new) =
            (fs::read(path.join(MANIFEST)).unwrap(), fs::read(copy.path().join(MANIFEST)).unwrap());
        assert!(old == new, "{}", path.display());
    }
}

#[test]
fn two_runs_of_one_second_have_two_folders() {
    let root = tempfile::tempdir().unwrap();
    let runs: Vec<_> = (0..3).map(|_| new(root.path())).collect();
    let ids: BTreeSet<_> = runs.iter().map(RunFolder::id).collect();
    assert_eq!(ids.len(), 3, "{ids:?}");
}

#[test]
fn a_run_that_was_cut_off_goes_on_where_it_stopped() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    let plan = run.manifest().plan;
    run.trial_started(&plan.trials[0]).unwrap();
    run.samples(&[sample(&plan.trials[0], 1.0)]).unwrap();
    run.trial_ended(&plan.trials[0], &Outcome::Failed { reason: "it did".into() }).unwrap();
    run.trial_started(&plan.trials[1]).unwrap();
    run.samples(&[sample(&plan.trials[1], 2.0)]).unwrap();
    fs::write(run.raw_file("a").unwrap(), "").unwrap();
    let path = run.path().to_owned();
    drop(run);
    // Killed in the middle of a line.
    let mut log = OpenOptions::new().append(true).open(path.join(EVENTS)).unwrap();
    log.write_all(b"{\"seq\":6,\"t_utc\":\"2026").unwrap();
    drop(log);
    assert_eq!(StoredRun::read(&path).unwrap().samples[1].reason, samples::CUT_OFF);

    let run = RunFolder::open(&path).unwrap();
    assert_eq!(run.completed_trials(), BTreeSet::from([0]));
    assert!(run.raw_file("a").unwrap().ends_with("raw/a.2"));
    go_on(&run);
    let stored = StoredRun::read(&run.finish().unwrap()).unwrap();
    let seen: Vec<_> = stored.samples.iter().map(|s| (s.order, s.valid, s.reason.as_str())).collect();
    assert_eq!(
        seen,
        [(0, true, ""), (1, false, samples::CUT_OFF), (1, true, ""), (2, true, ""), (3, true, "")]
    );
    assert!(stored.events.iter().any(|event| event.kind == kind::RUN_RESUMED));
}

#[test]
fn a_changed_line_is_named() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    go_on(&run);
    let path = run.finish().unwrap();
    let log = path.join(EVENTS);
    let text = fs::read_to_string(&log).unwrap();
    fs::write(&log, text.replace("\"value\":1.1", "\"value\":0.1")).unwrap();
    let error = StoredRun::read(&path).unwrap_err().to_string();
    // run_started, then started, samples, ended of each trial: the second's samples are line 6.
    assert!(error.contains("events.jsonl:6: its checksum is"), "{error}");
    let lines: Vec<_> =
        text.lines().enumerate().filter(|(i, _)| *i != 2).map(|(_, l)| format!("{l}\n")).collect();
    fs::write(&log, lines.concat()).unwrap();
    let error = StoredRun::read(&path).unwrap_err().to_string();
    assert!(error.contains("events.jsonl:3: event 3 stands where 2 should"), "{error}");
}

#[test]
fn a_run_is_open_once() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    let error = RunFolder::open(run.path()).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
}

#[test]
fn what_is_not_a_number_is_kept_as_invalid() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    let trial = run.manifest().plan.trials[0].clone();
    run.samples(&[sample(&trial, f64::NAN)]).unwrap();
    let stored = StoredRun::read(run.path()).unwrap();
    assert_eq!((stored.samples[0].value, stored.samples[0].valid), (None, false));
}

#[test]
fn bad_places_are_said_in_one_sentence() {
    let root = tempfile::tempdir().unwrap();
    let scenario = scenario();
    let create = |place: &Path| {
        RunFolder::create(place, &scenario, &Plan::new(&scenario), About::default()).unwrap_err().to_string()
    };
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(create(&file).contains("a file is in the way"), "{}", create(&file));

    let error = RunFolder::open(root.path()).unwrap_err().to_string();
    assert!(error.contains("is not the folder of a run"), "{error}");

    let run = new(root.path());
    for name in ["../x", "/etc/x", "", "a/../../x"] {
        assert!(matches!(run.raw_file(name), Err(StoreError::Name { .. })), "{name}");
    }

    // Root may write anywhere; `a_read_only_file_system_is_said` has the same sentence for root.
    if nix::unistd::geteuid().is_root() {
        return;
    }
    let closed = root.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    assert!(create(&closed).contains("choose a results folder that you can write to"));
}

/// A file system of 64 KiB, so that full is really full.
#[test]
fn a_full_disk_leaves_whole_lines() {
    use nix::mount::{MsFlags, mount, umount};
    let root = tempfile::tempdir().unwrap();
    let mounted = mount(Some("tmpfs"), root.path(), Some("tmpfs"), MsFlags::empty(), Some("size=128k"));
    if let Err(error) = mounted {
        eprintln!("SKIPPED a_full_disk_leaves_whole_lines: cannot mount a tmpfs: {error}");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let run = new(root.path());
        let big = "x".repeat(3000);
        let error = (0..100).find_map(|_| run.event("note", &big).err()).expect("a full disk").to_string();
        assert!(error.contains("free some space, then go on with `bench resume RUN`"), "{error}");
        let log = read_log(&run.path().join(EVENTS)).unwrap();
        assert!(!log.torn && log.events.len() > 10);
        // And it goes on when there is space again.
        mount(None::<&str>, root.path(), None::<&str>, MsFlags::MS_REMOUNT, Some("size=4m")).unwrap();
        go_on(&run);
        run.finish().unwrap();
    });
    umount(root.path()).unwrap();
    outcome.unwrap();
}

#[test]
fn a_read_only_file_system_is_said() {
    use nix::mount::{MsFlags, mount, umount};
    let root = tempfile::tempdir().unwrap();
    let mounted = mount(Some("tmpfs"), root.path(), Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>);
    if let Err(error) = mounted {
        eprintln!("SKIPPED a_read_only_file_system_is_said: cannot mount a tmpfs: {error}");
        return;
    }
    let scenario = scenario();
    let outcome = RunFolder::create(root.path(), &scenario, &Plan::new(&scenario), About::default());
    umount(root.path()).unwrap();
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("choose a results folder that you can write to"), "{error}");
}

#[test]
fn a_log_cut_at_any_byte_is_read_up_to_its_last_whole_line() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    go_on(&run);
    let whole = fs::read(run.path().join(EVENTS)).unwrap();
    let events = read_log(&run.path().join(EVENTS)).unwrap().events;
    let cut = root.path().join("cut.jsonl");
    for length in 0..=whole.len() {
        fs::write(&cut, &whole[..length]).unwrap();
        let log = read_log(&cut).unwrap();
        assert_eq!(log.events, events[..log.events.len()]);
        let lines = whole[..length].split(|byte| *byte == b'\n').count() - 1;
        assert_eq!((log.events.len(), log.torn), (lines, log.whole_bytes < length as u64), "cut at {length}");
    }
}

#[test]
fn any_changed_byte_before_the_last_line_is_found() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    go_on(&run);
    let mut bytes = fs::read(run.path().join(EVENTS)).unwrap();
    let last = bytes[..bytes.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
    let changed = root.path().join("changed.jsonl");
    for at in 0..last {
        bytes[at] ^= 1;
        fs::write(&changed, &bytes).unwrap();
        assert!(matches!(read_log(&changed), Err(StoreError::Damaged { .. })), "byte {at}");
        bytes[at] ^= 1;
    }
}
