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
    // The stored runs of versions that noted none of these are read, and written again as they are.
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
        let [old, new] = [path.as_path(), copy.path()].map(|f| fs::read_to_string(f.join(MANIFEST)).unwrap());
        assert_eq!(old.lines().count(), new.lines().count(), "{}", path.display());
        for (old, new) in old.lines().zip(new.lines()) {
            // Of a number with 16 digits, the last one is not read exactly.
            let number = |line: &str| line.trim_end_matches(',').rsplit(' ').next().unwrap().parse::<f64>();
            let near = match (number(old), number(new)) {
                (Ok(old), Ok(new)) => (old - new).abs() <= old.abs() * 1e-14,
                _ => false,
            };
            assert!(old == new || near, "{}: {old} {new}", path.display());
        }
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
        assert!(log.torn.is_none() && log.events.len() > 10);
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
        let rest = length as u64 - log.whole_bytes;
        let torn = (rest > 0).then(|| Torn { path: cut.clone(), line: lines + 1, bytes: rest });
        assert_eq!((log.events.len(), log.torn), (lines, torn), "cut at {length}");
    }
}

#[test]
fn any_changed_byte_of_a_whole_line_is_damage() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    go_on(&run);
    let mut bytes = fs::read(run.path().join(EVENTS)).unwrap();
    let changed = root.path().join("changed.jsonl");
    let newline = bytes.len() - 1;
    for at in 0..newline {
        bytes[at] ^= 1;
        fs::write(&changed, &bytes).unwrap();
        assert!(matches!(read_log(&changed), Err(StoreError::Damaged { .. })), "byte {at}");
        bytes[at] ^= 1;
    }
    // Without its newline the last line is torn.
    bytes[newline] ^= 1;
    fs::write(&changed, &bytes).unwrap();
    assert!(read_log(&changed).unwrap().torn.is_some());
}

/// A run that was cut off, and its log.
fn cut_off(root: &Path) -> (PathBuf, PathBuf) {
    let run = new(root);
    go_on(&run);
    (run.path().to_owned(), run.path().join(EVENTS))
}

#[test]
fn a_whole_last_line_with_a_wrong_checksum_is_refused_and_kept() {
    let root = tempfile::tempdir().unwrap();
    let (run, log) = cut_off(root.path());
    let text = fs::read_to_string(&log)
        .unwrap()
        .replace("\"order\":3,\"outcome\":\"completed\"", "\"order\":2,\"outcome\":\"completed\"");
    fs::write(&log, &text).unwrap();
    // run_started and three lines a trial.
    let place = format!("{}:13: its checksum is ", log.display());
    for error in [StoredRun::read(&run).unwrap_err(), RunFolder::open(&run).unwrap_err()] {
        let error = error.to_string();
        assert!(error.starts_with(&place) && error.contains("restore it from a copy"), "{error}");
    }
    assert_eq!(fs::read_to_string(&log).unwrap(), text);
}

#[test]
fn a_torn_last_line_is_told_by_whoever_reads_it_and_cut_off_by_who_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (run, log) = cut_off(root.path());
    let whole = fs::read(&log).unwrap();
    let (torn, bytes) = (
        whole.len() - 5,
        whole.len() - 5 - whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() - 1,
    );
    fs::write(&log, &whole[..torn]).unwrap();
    let told =
        format!("{}:13: the run was cut off in the middle of this line ({bytes} bytes)", log.display());
    assert_eq!(StoredRun::read(&run).unwrap().torn.unwrap().to_string(), told);
    let folder = RunFolder::open(&run).unwrap();
    assert_eq!(folder.torn().unwrap().to_string(), told);
    drop(folder);
    let stored = StoredRun::read(&run).unwrap();
    let last = stored.events.last().unwrap();
    assert_eq!(
        (last.kind.as_str(), last.payload["torn_bytes"].as_u64()),
        (kind::RUN_RESUMED, Some(bytes as u64))
    );
    assert_eq!(stored.torn, None);
    assert!(RunFolder::open(&run).unwrap().torn().is_none());
}

#[test]
fn a_boot_adds_an_event_and_replaces_nothing_in_the_manifest() {
    use serde_json::json;

    use crate::workload::layers::peer::{Note, Notes};
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    let environment = |name: &str| Environment {
        accelerator: Some(name.into()),
        dilation: Some(name.len() as f64),
        hosts: json!({ "a": name }),
        guests: json!({ "guest": name }),
        tools: json!({ "kernel": name }),
        images: json!({ "host": name }),
        peers: Notes::from([("ffs".into(), Note { version: name.into(), ..Note::default() })]),
    };
    // What was found while trials ran.
    run.environment(environment("tcg")).unwrap();
    run.update_manifest(|manifest| {
        manifest.peers.get_mut("ffs").unwrap().cannot.insert("swap_event".into(), "no event came".into());
    })
    .unwrap();
    let path = run.path().to_owned();
    drop(run);
    let before = fs::read(path.join(MANIFEST)).unwrap();
    let run = RunFolder::open(&path).unwrap();
    run.environment(environment("other")).unwrap();
    assert_eq!(fs::read(path.join(MANIFEST)).unwrap(), before);
    let stored = StoredRun::read(&path).unwrap();
    let boots: Vec<_> = stored.events.iter().filter(|event| event.kind == kind::ENVIRONMENT).collect();
    let told: Vec<_> =
        boots.iter().map(|boot| (&boot.payload["accelerator"], &boot.payload["peers"])).collect();
    assert_eq!(told, [(&json!("tcg"), &json!({"ffs": "tcg"})), (&json!("other"), &json!({"ffs": "other"}))]);
    // What a manifest does not say yet is filled in: the run was stopped before its first boot.
    let run = new(root.path());
    run.environment(environment("kvm")).unwrap();
    assert_eq!(run.manifest().accelerator.as_deref(), Some("kvm"));
}

#[test]
fn a_scenario_that_was_changed_in_the_manifest_is_damage() {
    let root = tempfile::tempdir().unwrap();
    let run = new(root.path());
    let path = run.path().join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("blocks = 2", "blocks = 3")).unwrap();
    let error = StoredRun::read(run.path()).unwrap_err().to_string();
    assert!(error.contains("its scenario has the SHA-256"), "{error}");
}

/// Also those whose scenarios an earlier version took and this one refuses.
#[test]
fn the_reference_runs_are_read() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/reference");
    let mut read = 0;
    for entry in fs::read_dir(reference).unwrap() {
        let run = entry.unwrap().path();
        if run.join(MANIFEST).exists() {
            StoredRun::read(&run).unwrap();
            read += 1;
        }
    }
    assert!(read >= 5, "{read}");
}
