use std::{collections::BTreeMap, env};

use super::*;
#[allow(clippy::pedantic, unreachable_pub, clippy::print_stderr)] // Shared with other crates.
#[path = "../../../ctx/io/tests/support/nosync.rs"]
mod nosync;
use crate::synthetic::{Machine, scenario};

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            all.extend(files(&entry.path()));
        } else {
            all.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    all
}

/// Where the page goes to be looked at, when `BENCH_FIGURES` names a folder.
fn keep(name: &str, html: &Path) {
    if let Some(folder) = env::var_os("BENCH_FIGURES").map(PathBuf::from) {
        fs::create_dir_all(&folder).unwrap();
        fs::copy(html, folder.join(name)).unwrap();
    }
}

#[test]
fn everything_derived_is_made_again_byte_for_byte() {
    for (file, pictures) in
        [("paper/migration-kvm.toml", 2), ("paper/gluster-kvm.toml", 2), ("beyond/ffs-peers.toml", 1)]
    {
        let root = tempfile::tempdir().unwrap();
        let path = Machine::new("kvm", "tcg", 2.0).run(root.path(), &scenario(file, Some("quick")));
        let first = report(&[&path], None).unwrap();
        let before = files(&path);
        assert!(
            before.keys().filter(|name| name.extension().is_some_and(|e| e == "png")).count() == pictures
        );
        for derived in [store::SAMPLES, store::REPORT] {
            fs::remove_file(path.join(derived)).unwrap();
        }
        fs::remove_dir_all(path.join(store::FIGURES)).unwrap();
        assert_eq!(report(&[&path], None).unwrap(), first);
        let after = files(&path);
        assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
        for (name, bytes) in &before {
            assert!(after[name] == *bytes, "{} differs", name.display());
        }
        assert_eq!(store::verify(&path).unwrap(), []);
        assert_eq!(first.changed, Vec::<String>::new());
        assert!(first.invalid > 0);
        keep(&format!("report-{}.html", file.replace('/', "-")), &first.html);
    }
}

#[test]
fn a_run_is_stored_and_reported_where_a_directory_cannot_be_synced() {
    let Some(mounted) =
        nosync::Mounted::new("a_run_is_stored_and_reported_where_a_directory_cannot_be_synced")
    else {
        return;
    };
    let path = Machine::new("kvm", "tcg", 2.0)
        .run(&mounted.path(), &scenario("paper/migration-kvm.toml", Some("quick")));
    let made = report(&[&path], None).unwrap();
    assert!(made.html.is_file());
    assert_eq!(store::verify(&path).unwrap(), []);
    let left =
        files(&path).into_keys().filter(|path| path.file_name().is_some_and(ctx_io::durable::is_leftover));
    assert_eq!(left.count(), 0);
}

#[test]
fn the_page_stands_alone_and_says_what_matters() {
    let root = tempfile::tempdir().unwrap();
    let path = Machine::new("kvm", "tcg", 2.0)
        .run(root.path(), &scenario("paper/migration-kvm.toml", Some("quick")));
    let made = report(&[&path], None).unwrap();
    let html = fs::read_to_string(&made.html).unwrap();
    for outside in ["src=", "href=", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    for needed in [
        "KVM, emulated (TCG)",
        "about 18 %, ten runs (Fig. 1)",
        "as a share of the total",
        "the migration was given up after 5 min",
        "quick profile",
        "seed = 20150417",
        "Detectable",
        "6.12.0",
    ] {
        assert!(html.contains(needed), "{needed}");
    }
    assert_eq!(html.matches("<svg").count(), 2);
    assert_eq!(made.summary.len(), 1);
    let start = "KVM, emulated (TCG): recontextualization added 2.";
    assert!(made.summary[0].starts_with(start), "{}", made.summary[0]);
}

#[test]
fn which_programs_measured_is_said_of_runs_that_noted_it() {
    let root = tempfile::tempdir().unwrap();
    let what = scenario("smoke.toml", None);
    let plan = crate::plan::Plan::new(&what);
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let about = store::About {
        git_revision: Some("0123456789ab-dirty".into()),
        scenario_revision: Some("ba9876543210".into()),
        cargo_lock: Some("c0ffee".into()),
        programs: ["bench", "ffs"].map(|name| (name.to_owned(), digest.to_owned())).into(),
        accelerator: Some(crate::scenario::AcceleratorChoice::Kvm),
    };
    let environment = |about| {
        let run = store::RunFolder::create(root.path(), &what, &plan, about).unwrap();
        let html = fs::read_to_string(report(&[run.path()], None).unwrap().html).unwrap();
        html[html.find("<h2>Environment</h2>").unwrap()..].to_owned()
    };
    let html = environment(about);
    for needed in [
        "revision 0123456789ab-dirty<",
        &format!("bench {digest}, ffs {digest}"),
        "Cargo.lock (SHA-256)</dt><dd>c0ffee<",
        "repository</dt><dd>revision ba9876543210<",
        "Accelerator asked for</dt><dd>kvm<",
    ] {
        assert!(html.contains(needed), "{needed}: {html}");
    }
    let html = environment(store::About::default());
    assert!(html.contains("revision unknown<"), "{html}");
    for absent in ["Cargo.lock", "Programs", "repository", "asked for"] {
        assert!(!html.contains(absent), "{absent}: {html}");
    }
}

#[test]
fn the_environment_of_a_reference_run_is_reported_with_the_same_bytes() {
    let reference = Path::new(env!("CARGO_MANIFEST_DIR")).join("../results/reference");
    let all = fs::read_dir(reference).unwrap().map(|entry| entry.unwrap().path());
    let runs: Vec<PathBuf> = all.filter(|path| path.join(store::MANIFEST).is_file()).collect();
    assert!(runs.len() >= 6, "{runs:?}");
    let environment = |html: &str| html[html.find("<h2>Environment</h2>").unwrap()..].to_owned();
    // What is computed from samples is not looked at: it takes its time.
    let nothing = analyse(&[]);
    for path in runs {
        let before = fs::read_to_string(path.join(store::REPORT)).unwrap();
        let stored = [StoredRun::read(&path).unwrap()];
        let html = render(&view::View::new(&stored, &nothing, &[], &[], &[], &[], &[])).unwrap();
        assert!(environment(&html) == environment(&before), "{}", path.display());
    }
}

#[test]
fn a_gain_is_said_with_its_blocks() {
    let root = tempfile::tempdir().unwrap();
    let path = Machine::new("kvm", "kvm", 1.0).run(root.path(), &scenario("paper/gluster-kvm.toml", None));
    let made = report(&[&path], None).unwrap();
    // One of the ten trials failed.
    assert!(made.summary[0].contains("(faster in 9 of 9 blocks)"), "{}", made.summary[0]);
    let html = fs::read_to_string(&made.html).unwrap();
    for needed in ["gain shown", "25 Mbit&#x2f;s, 10 ms ± 2 %", "52.0 ms", "before</td><td>remote"] {
        assert!(html.contains(needed), "{needed}");
    }
}

#[test]
fn kvm_and_xen_side_by_side() {
    let root = tempfile::tempdir().unwrap();
    let what = scenario("paper/migration-kvm.toml", Some("quick"));
    let kvm = Machine::new("kvm", "tcg", 2.0).run(root.path(), &what);
    let xen = Machine::new("xen", "tcg", 3.0).run(root.path(), &what);
    assert!(matches!(report(&[&kvm, &xen], None), Err(ReportError::NoFolder)));
    assert!(matches!(report(&[&kvm, &xen], Some(&kvm)), Err(ReportError::NoFolder)));
    let both = root.path().join("both");
    let made = report(&[&kvm, &xen], Some(&both)).unwrap();
    assert_eq!(made.summary.len(), 2);
    assert!(both.join("figures/fig1.png").exists() && !both.join(store::SAMPLES).exists());
    keep("report-both.html", &made.html);

    // Two runs of one kind of machine are told apart by their names.
    let again = Machine::new("kvm", "tcg", 2.0).run(root.path(), &what);
    let made = report(&[&kvm, &again], Some(&root.path().join("twice"))).unwrap();
    assert!(made.summary[1].contains(&again.file_name().unwrap().to_string_lossy().into_owned()));

    let other =
        Machine::new("kvm", "tcg", 2.0).run(root.path(), &scenario("paper/gluster-kvm.toml", Some("quick")));
    assert!(matches!(report(&[&kvm, &other], Some(&both)), Err(ReportError::Experiments { .. })));
    assert!(matches!(report(&[], None), Err(ReportError::Nothing)));
}

#[test]
fn a_run_without_a_comparison_or_a_sample() {
    let root = tempfile::tempdir().unwrap();
    let smoke = scenario("smoke.toml", None);
    let path = Machine::new("kvm", "tcg", 2.0).run(root.path(), &smoke);
    let made = report(&[&path], None).unwrap();
    assert!(made.summary[0].contains("the guest migrated in"), "{}", made.summary[0]);

    let plan = crate::plan::Plan::new(&smoke);
    let run = store::RunFolder::create(root.path(), &smoke, &plan, store::About::default()).unwrap();
    let made = report(&[run.path()], None).unwrap();
    assert_eq!(made.summary, ["There is no pair of valid samples to compare."]);
}

#[test]
fn raw_files_that_were_changed_are_said() {
    let root = tempfile::tempdir().unwrap();
    let path = Machine::new("kvm", "tcg", 2.0).run(root.path(), &scenario("smoke.toml", None));
    let manifest = path.join(store::MANIFEST);
    fs::write(&manifest, fs::read_to_string(&manifest).unwrap().replace("6.12.0", "6.13.0")).unwrap();
    fs::write(path.join(store::SAMPLES), "nonsense").unwrap();
    let made = report(&[&path], None).unwrap();
    assert_eq!(made.changed.len(), 1);
    assert!(made.changed[0].ends_with("manifest.json was changed"), "{:?}", made.changed);
    // And it stays so: a report does not make it right.
    assert_eq!(report(&[&path], None).unwrap().changed, made.changed);
}

#[test]
fn file_systems_stand_side_by_side_and_beside_the_goals() {
    let root = tempfile::tempdir().unwrap();
    let what = scenario("beyond/ffs-peers.toml", Some("quick"));
    let path = Machine::new("none", "none", 1.0).run(root.path(), &what);
    let made = report(&[&path], None).unwrap();
    assert!(made.summary[0].starts_with("this machine's own kernel: ffs "), "{}", made.summary[0]);
    let html = fs::read_to_string(&made.html).unwrap();
    for needed in [
        "File systems side by side",
        "absent: mergerfs 1.0 has no passthrough",
        "its layers are fixed when it is mounted",
        "cannot",
        "ffs beside its goals",
        "missed",
        "native → ffs",
        "none: this machine",
    ] {
        assert!(html.contains(needed), "{needed}");
    }
    keep("report-peers.html", &made.html);
}

#[test]
fn of_what_was_not_measured_nobody_says_that_it_cannot() {
    let root = tempfile::tempdir().unwrap();
    let what = scenario("beyond/ffs-peers.toml", Some("quick"));
    let path = Machine::new("none", "none", 1.0).run(root.path(), &what);
    let mut stored = StoredRun::read(&path).unwrap();
    // No other program can swap a layer than mergerfs, and it is not installed.
    let peers = &mut stored.manifest.peers;
    for arm in ["mergerfs", "mergerfs-passthrough"] {
        stored.samples.retain(|sample| sample.arm != arm);
        peers.get_mut(arm).unwrap().absent = Some("the program mergerfs is not installed".into());
    }
    let said = |runs: &[StoredRun]| {
        let analysis = analyse(&[("", &runs[0].samples)]);
        let summary = peers::summary(runs, &analysis).join("\n");
        let goals = serde_json::to_string(&peers::goals(runs, &analysis)).unwrap();
        (summary, goals)
    };
    let absent = said(std::slice::from_ref(&stored));
    assert!(!absent.0.contains("alone does"), "{}", absent.0);
    assert!(absent.1.contains("none was measured") && !absent.1.contains("nobody can"), "{}", absent.1);
    // Where it was measured and had no value, it cannot.
    for arm in ["mergerfs", "mergerfs-passthrough"] {
        stored.manifest.peers.get_mut(arm).unwrap().absent = None;
    }
    let measured = said(std::slice::from_ref(&stored));
    assert!(measured.0.contains("ffs alone does: swap →"), "{}", measured.0);
    assert!(measured.1.contains("nobody can"), "{}", measured.1);
}
