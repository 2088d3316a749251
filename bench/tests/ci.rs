//! `ci/test` counts what was skipped, and the workflows of hosted runners are checked.
//!
//! `ci/test` runs here in a folder of its own, where scripts stand for everything that builds and tests.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Whether the scripts' own Python is here, with this module.
fn python(module: &str) -> bool {
    Command::new("/usr/bin/python3")
        .args(["-c", &format!("import {module}")])
        .output()
        .is_ok_and(|o| o.status.success())
}

fn script(path: &Path, body: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/bash\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Results of nextest: one test that passed, one that may have been skipped, one that may have failed.
fn junit(skipped: Option<&str>, failed: bool) -> String {
    let said = skipped.map(|why| format!("<system-err>\nSKIPPED mount::it_is_shown: {why}\n</system-err>"));
    let failure = if failed { "<failure>no</failure>" } else { "" };
    format!(
        "<testsuites tests=\"3\"><testsuite name=\"a\">\n\
         <testcase name=\"fine\" classname=\"a\"/>\n\
         <testcase name=\"shown\" classname=\"a::mount\">{}</testcase>\n\
         <testcase name=\"third\" classname=\"a::mount\">{failure}</testcase>\n\
         </testsuite></testsuites>\n",
        said.unwrap_or_default()
    )
}

/// What `ci/test` says in the end when nextest has these results as a user, and those as root.
fn tested(user: u32, results: &str, as_root: Option<&str>, variables: &[(&str, &str)]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for name in ["ci/test", "ci/common", "ci/junit", "Cargo.toml", "rust-toolchain.toml"] {
        fs::create_dir_all(here.join("ci")).unwrap();
        fs::copy(root().join(name), here.join(name)).unwrap();
    }
    for name in ["ci/setup", "ci/build", "ci/fuzz", "target/dist/bench"] {
        script(&here.join(name), "");
    }
    fs::write(here.join("user.xml"), results).unwrap();
    fs::write(here.join("root.xml"), as_root.unwrap_or_default()).unwrap();
    let put = "mkdir -p target/nextest/default && cp $1.xml target/nextest/default/junit.xml";
    let bin = here.join("bin");
    script(
        &bin.join("cargo"),
        &format!("case \"$1 $2\" in --version*) echo cargo 1.95.0 ;; 'nextest run') set user; {put} ;; esac"),
    );
    // The filter names what was skipped, and nothing else.
    script(
        &bin.join("cargo-nextest"),
        &format!("[[ ${{*: -1}} == '(binary_id(=a::mount) & test(=shown))' ]] || exit 9; set root; {put}"),
    );
    script(&bin.join("rustup"), "");
    script(&bin.join("id"), &format!("echo {user}"));
    script(&bin.join("chown"), "");
    let sudo = if as_root.is_some() { "shift; exec \"$@\"" } else { "exit 1" };
    script(&bin.join("sudo"), sudo);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("/bin/bash")
        .arg(here.join("ci/test"))
        .env_remove("CI")
        .env_remove("CI_IMPOSSIBLE")
        .env("PATH", path)
        // rustup's folder goes before all others.
        .env("CARGO_HOME", here)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.success(), said)
}

#[test]
fn a_skipped_test_is_told_with_its_reason_and_fails_where_nothing_may_be_missing() {
    if !python("xml.etree") {
        eprintln!(
            "SKIPPED ci::a_skipped_test_is_told_with_its_reason_and_fails_where_nothing_may_be_missing: no python3"
        );
        return;
    }
    let skipped = junit(Some("needs root"), false);
    // Nine checks beside the tests.
    let (fine, said) = tested(0, &skipped, None, &[]);
    assert!(fine && said.ends_with("\n11 passed, 0 failed, 1 skipped\n"), "{said}");
    assert!(said.contains("1 skipped:\na::mount shown: needs root\n"), "{said}");
    let (fine, said) = tested(0, &skipped, None, &[("CI", "true")]);
    assert!(!fine && said.ends_with("\n11 passed, 0 failed, 1 skipped\n"), "{said}");
    let (fine, said) =
        tested(0, &skipped, None, &[("CI", "true"), ("CI_IMPOSSIBLE", "^a::mount .*: needs root$")]);
    assert!(fine && said.ends_with("\n11 passed, 0 failed, 1 skipped\n"), "{said}");
    assert!(said.contains("a::mount shown: needs root (impossible here)"), "{said}");
    let (fine, said) = tested(0, &skipped, None, &[("CI", "true"), ("CI_IMPOSSIBLE", "needs Linux")]);
    assert!(!fine, "{said}");
    let (fine, said) = tested(0, &junit(None, true), None, &[]);
    assert!(!fine && said.ends_with("\n11 passed, 1 failed, 0 skipped\n"), "{said}");
}

#[test]
fn however_a_test_says_that_it_was_skipped_it_did_not_pass() {
    if !python("xml.etree") {
        eprintln!("SKIPPED ci::however_a_test_says_that_it_was_skipped_it_did_not_pass: no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("junit.xml");
    let asked = |verb: &str, said: &str| {
        let results = junit(Some("why"), false).replace("SKIPPED mount::it_is_shown: why", said);
        fs::write(&file, results).unwrap();
        let output = Command::new(root().join("ci/junit")).arg(verb).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for (said, reason) in [
        ("SKIPPED mount::it_is_shown: needs root: /dev/fuse", "needs root: /dev/fuse"),
        ("SKIPPED: needs root and /dev/fuse", "needs root and /dev/fuse"),
        ("SKIPPED : mount::it_is_shown: needs root", "needs root"),
        ("SKIPPED /dev/fuse is missing", "/dev/fuse is missing"),
        ("SKIPPED - needs root", "- needs root"),
        ("SKIPPED\nmore", "it does not say why"),
        ("SKIPPED mount::it_is_shown:\nmore", "mount::it_is_shown:"),
        ("test shown ... SKIPPED mount::it_is_shown: needs root", "needs root"),
        ("first\n  Skipped: needs root\nlast", "needs root"),
        ("SKIPED mount::it_is_shown: needs root", "needs root"),
        ("skipping mount::it_is_shown: needs root", "needs root"),
    ] {
        assert_eq!(asked("skipped", said), format!("a::mount shown: {reason}\n"), "{said:?}");
        assert_eq!(asked("count", said), "3 0 1\n", "{said:?}");
        assert_eq!(asked("filter", said), "(binary_id(=a::mount) & test(=shown))\n");
    }
    // Other words are no skip.
    for said in ["a skipper says", "no test was skipped", "UNSKIPPED: x", ""] {
        assert_eq!(asked("count", said), "3 0 0\n", "{said:?}");
    }
}

#[test]
fn an_ordinary_user_s_skipped_tests_run_as_root_by_sudo() {
    if !python("xml.etree") {
        eprintln!("SKIPPED ci::an_ordinary_user_s_skipped_tests_run_as_root_by_sudo: no python3");
        return;
    }
    let (skipped, ran) = (junit(Some("needs root"), false), junit(None, false));
    let ci = [("CI", "true")];
    let (fine, said) = tested(1000, &skipped, Some(&ran), &ci);
    assert!(fine && said.ends_with("\n12 passed, 0 failed, 0 skipped\n"), "{said}");
    // One that fails as root fails.
    let failing = ran.replace(
        "classname=\"a::mount\"></testcase>\n<testcase name=\"third\"",
        "classname=\"a::mount\"><failure/></testcase>\n<testcase name=\"third\"",
    );
    let (fine, said) = tested(1000, &skipped, Some(&failing), &ci);
    assert!(!fine && said.ends_with("\n11 passed, 1 failed, 0 skipped\n"), "{said}");
    // Still skipped: for another reason, which is the one to tell.
    let (fine, said) = tested(1000, &skipped, Some(&junit(Some("no loop device"), false)), &[]);
    assert!(fine && said.contains("a::mount shown: no loop device\n"), "{said}");
    // Without sudo they stay skipped, and that nothing was done is no success of the run as root.
    let (fine, said) = tested(1000, &skipped, None, &[]);
    assert!(fine && said.contains("sudo asks for a password") && said.ends_with("1 skipped\n"), "{said}");
    let (fine, said) = tested(1000, &skipped, Some(""), &[]);
    assert!(!fine && said.contains("FAILED tests as root"), "{said}");
}

#[test]
fn what_runners_cannot_have_is_declared_in_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    script(&here.join("ci/test"), "echo \"$CI_IMPOSSIBLE\"");
    fs::create_dir(here.join(".ci")).unwrap();
    fs::copy(root().join(".ci/run"), here.join(".ci/run")).unwrap();
    let declared = |value: Option<&str>| {
        let mut run = Command::new(here.join(".ci/run"));
        run.env_remove("CI_IMPOSSIBLE").envs(value.map(|value| ("CI_IMPOSSIBLE", value)));
        String::from_utf8(run.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    assert_eq!(declared(Some("needs Linux")), "needs Linux");
    // What is declared is what a test says.
    let sources = ["ctx/format/tests/isofs.rs", "bench/tests/packages.rs"]
        .map(|file| fs::read_to_string(root().join(file)).unwrap());
    for declared in declared(None).split('|') {
        let (_, why) = declared.split_once(": ").unwrap();
        let said = format!("\"{why}");
        assert!(sources.iter().any(|source| source.contains(&said)), "no test says {why:?}");
    }
}

fn check(file: &Path) -> Output {
    Command::new(root().join("ci/workflows")).arg(file).output().unwrap()
}

#[test]
fn workflows_are_valid_and_a_broken_one_is_found() {
    if !python("yaml") {
        eprintln!(
            "SKIPPED ci::workflows_are_valid_and_a_broken_one_is_found: no python3-yaml (ci/setup --tests)"
        );
        return;
    }
    let mut texts = Vec::new();
    for entry in fs::read_dir(root().join(".github/workflows")).unwrap() {
        let path = entry.unwrap().path();
        let output = check(&path);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        texts.push(fs::read_to_string(path).unwrap());
    }
    let good = texts.iter().find(|text| text.contains("- run: .ci/run")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.yml");
    for (from, to, why) in [
        ("runs-on: ubuntu", "runs-on ubuntu", "is no YAML"),
        ("- run: .ci/run", "- run: .ci/runs", "there is no program .ci/runs"),
        ("- run: ci/reproduce", "- run: ci/reproduced", "there is no program ci/reproduced"),
        ("- run: .ci/run", "- run: nice ci/test", ".ci/run calls it, and declares what runners cannot have"),
        ("- run: .ci/run", "- run: if true; then .ci/run", "syntax error"),
        ("- run: .ci/run", "- runs: .ci/run", "needs either `uses` or `run`"),
        ("timeout-minutes: 150", "timeout-minute: 150", "unknown key 'timeout-minute'"),
        ("actions/checkout@v4", "actions/checkout", "names no version"),
        ("pull_request:", "pull_requests:", "unknown event 'pull_requests'"),
        ("\njobs:", "\njob:", "has no jobs"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let output = check(&file);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{from} → {to}: {said}");
        assert!(said.contains(why), "{from} → {to}: {said}");
    }
}
