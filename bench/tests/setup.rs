//! `ci/setup` on machines that this one is not: programs of the system are replaced by scripts that note what they were asked.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

/// What a fresh machine has.
const BASE: [&str; 20] = [
    "bash", "awk", "cat", "dirname", "sed", "sort", "head", "env", "grep", "tee", "uname", "ls", "tr", "cut",
    "paste", "mktemp", "id", "mkdir", "rm", "true",
];

/// A machine that is nothing but a path: scripts instead of apt, dpkg, sudo, rustup and cargo.
struct Machine {
    folder: tempfile::TempDir,
}

/// What `ci/setup` did there.
struct Done {
    success: bool,
    /// All that it said.
    said: String,
    /// The programs of the system that it ran, a line each.
    ran: String,
}

impl Machine {
    /// Everything is installed but what `absent` names; apt can install all but what `unknown` names.
    fn new(absent: &[&str], unknown: &[&str]) -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        for program in BASE {
            let real = bench::doctor::which(program).unwrap();
            symlink(real, machine.folder.path().join(program)).unwrap();
        }
        let any = |packages: &[&str]| {
            format!("none{}", packages.iter().map(|p| format!("|{p}")).collect::<String>())
        };
        machine.script(
            "dpkg-query",
            &format!("if [[ $* == *Version* ]]; then echo ${{KEYRING:-2025.1}}; exit; fi; case ${{*: -1}} in {}) ;; *) printf installed ;; esac", any(absent)),
        );
        // Fails for what it does not know, and for whatever else is asked with it. What it shall fail at doing, it can simulate.
        machine.script(
            "apt-get",
            &format!(
                "[[ $1 != indextargets ]] || {{ echo a list; exit; }}\n\
                 [[ $* == *--simulate* || ! $* =~ ${{FAILS:-^$}} ]] || exit 100\n\
                 for word in \"$@\"; do case $word in {}) exit 100 ;; esac; done\n\
                 if [[ $1 == install && ${{*: -1}} == rustup && \" $* \" != *simulate* ]]; then /bin/mv \"$HERE/later/rustup\" \"$HERE/\"; fi",
                any(unknown)
            ),
        );
        machine.script(
            "dpkg",
            "[[ $1 != --compare-versions ]] || exec /usr/bin/dpkg \"$@\"\n[[ $1 != --verify ]] || echo -n \"${RENEWED:-}\"",
        );
        machine.script("sudo", "exec \"$@\"");
        machine.script("sysctl", "exit 1");
        machine
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("#!/bin/bash\necho \"${{0##*/}} $*\" >>\"$HERE/ran\"\n{body}\n");
        // A new file: through a link from `new`, it would be this machine's own program that is written.
        let file = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o755))
            .tempfile_in(path.parent().unwrap())
            .unwrap();
        fs::write(file.path(), text).unwrap();
        file.persist(&path).unwrap();
    }

    /// cargo of that version, with nextest.
    fn cargo(&self, version: &str) {
        self.script("cargo", &format!("echo cargo {version}"));
    }

    fn setup(&self, variables: &[(&str, &str)]) -> Done {
        let here = self.folder.path();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("ci/setup");
        let output = Command::new("/bin/bash")
            .arg(script)
            .arg("--tests")
            .env_clear()
            .env("PATH", here)
            .env("HERE", here)
            .env("HOME", here.join("home"))
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        Done {
            success: output.status.success(),
            said: String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            ran: fs::read_to_string(here.join("ran")).unwrap_or_default(),
        }
    }
}

/// The version of Rust that the project is checked with.
fn pinned() -> &'static str {
    let line =
        include_str!("../../rust-toolchain.toml").lines().find_map(|line| line.strip_prefix("channel = "));
    line.unwrap().trim_matches('"')
}

/// Whether this machine is one that `ci/setup` installs packages on.
fn has_apt() -> bool {
    Path::new("/etc/debian_version").exists()
}

#[test]
fn a_script_takes_the_place_of_a_link_and_leaves_alone_what_it_led_to() {
    let machine = Machine { folder: tempfile::tempdir().unwrap() };
    let here = machine.folder.path();
    fs::write(here.join("real"), "program").unwrap();
    symlink(here.join("real"), here.join("id")).unwrap();
    machine.script("id", "echo 1000");
    assert_eq!(fs::read_to_string(here.join("real")).unwrap(), "program");
    assert!(fs::read_to_string(here.join("id")).unwrap().ends_with("echo 1000\n"));
}

#[test]
fn a_package_that_a_release_lacks_is_told_and_stops_nobody() {
    if !has_apt() {
        eprintln!(
            "SKIPPED setup::a_package_that_a_release_lacks_is_told_and_stops_nobody: needs Debian or Ubuntu"
        );
        return;
    }
    let machine = Machine::new(&["mergerfs", "unionfs-fuse", "acl"], &["unionfs-fuse"]);
    machine.cargo("1.95.0");
    let done = machine.setup(&[]);
    assert!(done.success, "{}", done.said);
    assert!(done.said.contains("left out: unionfs-fuse\n"), "{}", done.said);
    let installs: Vec<&str> =
        done.ran.lines().filter(|line| line.contains("apt-get install --yes")).collect();
    assert!(installs[0].ends_with(" acl") && installs[1].ends_with(" mergerfs"), "{installs:?}");

    // A fresh Ubuntu may be upgrading itself meanwhile, and holds dpkg's lock.
    assert!(installs.iter().all(|line| line.contains("--option DPkg::Lock::Timeout=")), "{installs:?}");

    // It is no reason to ask a user for a password each time.
    let machine = Machine::new(&["unionfs-fuse"], &["unionfs-fuse"]);
    machine.cargo("1.95.0");
    machine.script("id", "echo 1000");
    let done = machine.setup(&[]);
    assert!(done.success && !done.ran.contains("sudo "), "{} {}", done.said, done.ran);

    // One that is required stops it.
    let machine = Machine::new(&["acl"], &["acl"]);
    machine.cargo("1.95.0");
    let done = machine.setup(&[]);
    assert!(!done.success, "{}", done.said);
}

#[test]
fn an_optional_package_that_cannot_be_installed_stops_nobody() {
    if !has_apt() {
        eprintln!(
            "SKIPPED setup::an_optional_package_that_cannot_be_installed_stops_nobody: needs Debian or Ubuntu"
        );
        return;
    }
    let machine = || {
        let machine = Machine::new(&["mergerfs", "unionfs-fuse"], &[]);
        machine.cargo("1.95.0");
        machine
    };
    // Offline, with lists from before.
    let done = machine().setup(&[("FAILS", "^(update|install) ")]);
    assert!(done.success, "{}", done.said);
    assert!(
        done.said.contains("not installable here, and left out: mergerfs unionfs-fuse\n"),
        "{}",
        done.said
    );

    // A mirror has no longer what the lists name: they are renewed, and one package does not take another with it.
    let done = machine().setup(&[("FAILS", "mergerfs")]);
    assert!(done.success, "{}", done.said);
    assert!(done.said.contains("not installable here, and left out: mergerfs\n"), "{}", done.said);
    let tried: Vec<&str> = done
        .ran
        .lines()
        .filter(|line| line.starts_with("apt-get update") || line.starts_with("apt-get install --yes"))
        .collect();
    assert!(tried[1].contains("update") && tried[3].ends_with("force-confold unionfs-fuse"), "{tried:?}");

    // Nobody here may install anything.
    let machine = machine();
    machine.script("id", "echo 1000");
    fs::remove_file(machine.folder.path().join("sudo")).unwrap();
    let done = machine.setup(&[]);
    assert!(done.success, "{}", done.said);
    assert!(
        done.said.contains("not installable here, and left out: mergerfs unionfs-fuse\n"),
        "{}",
        done.said
    );
}

#[test]
fn who_may_not_install_is_told_what_root_has_to() {
    if !has_apt() {
        eprintln!("SKIPPED setup::who_may_not_install_is_told_what_root_has_to: needs Debian or Ubuntu");
        return;
    }
    let machine = Machine::new(&["acl", "cpio"], &[]);
    machine.cargo("1.95.0");
    machine.script("id", "echo 1000");
    fs::remove_file(machine.folder.path().join("sudo")).unwrap();
    let done = machine.setup(&[]);
    assert!(!done.success && !done.ran.contains("apt-get update"), "{}", done.ran);
    assert!(done.said.contains("apt-get install --no-install-recommends cpio acl\n"), "{}", done.said);
}

#[test]
fn a_machine_without_rust_gets_it_or_is_told_how() {
    if !has_apt() {
        eprintln!("SKIPPED setup::a_machine_without_rust_gets_it_or_is_told_how: needs Debian or Ubuntu");
        return;
    }
    let pinned = pinned();
    let fresh = || {
        let machine = Machine::new(&["rustup"], &[]);
        // Appears with the package; cargo appears with the toolchain.
        machine.script(
            "later/rustup",
            &format!("if [[ $2 == install ]]; then printf '#!/bin/bash\\necho cargo {pinned}' >\"$HERE/cargo\"; /bin/chmod +x \"$HERE/cargo\"; fi"),
        );
        machine
    };
    let done = fresh().setup(&[]);
    assert!(done.success, "{}", done.said);
    assert!(done.ran.contains(&format!("rustup toolchain install {pinned} ")), "{}", done.ran);

    // One of the distribution's own that is too old is no Rust.
    let machine = fresh();
    machine.cargo("1.85.1");
    let done = machine.setup(&[]);
    assert!(done.success && done.ran.contains("rustup toolchain install"), "{} {}", done.said, done.ran);

    // What cannot be fetched, or installed by this user, is no Rust: they are told the other way.
    let done = fresh().setup(&[("FAILS", "^(update|install) ")]);
    assert!(!done.success && done.said.contains("https://sh.rustup.rs | sh -s -- -y"), "{}", done.said);
    let machine = fresh();
    machine.script("id", "echo 1000");
    fs::remove_file(machine.folder.path().join("sudo")).unwrap();
    let done = machine.setup(&[]);
    assert!(!done.success && done.said.contains("https://sh.rustup.rs | sh -s -- -y"), "{}", done.said);

    // Debian 12 has no rustup.
    let done = Machine::new(&["rustup"], &["rustup"]).setup(&[]);
    assert!(!done.success);
    assert!(
        done.said.contains("https://sh.rustup.rs | sh -s -- -y") && done.said.contains(".cargo/env"),
        "{}",
        done.said
    );
}

#[test]
fn rustup_s_cargo_is_taken_before_an_old_one_of_the_distribution() {
    if !has_apt() {
        eprintln!(
            "SKIPPED setup::rustup_s_cargo_is_taken_before_an_old_one_of_the_distribution: needs Debian or Ubuntu"
        );
        return;
    }
    let pinned = pinned();
    let machine = || {
        let machine = Machine::new(&[], &[]);
        machine.cargo("1.63.0");
        for folder in ["home/.cargo/bin", "elsewhere/bin"] {
            machine.script(&format!("{folder}/rustup"), &format!("echo {pinned}-x86_64-unknown-linux-gnu"));
            machine.script(&format!("{folder}/cargo"), &format!("echo cargo {pinned}"));
        }
        machine
    };
    let done = machine().setup(&[]);
    assert!(done.success, "{}", done.said);
    let machine = machine();
    let elsewhere = machine.folder.path().join("elsewhere");
    let done = machine.setup(&[("HOME", ""), ("CARGO_HOME", elsewhere.to_str().unwrap())]);
    assert!(done.success, "{}", done.said);
}

#[test]
fn without_home_the_user_s_own_is_taken() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = |home: Option<&str>| {
        let mut bash = Command::new("/bin/bash");
        bash.args(["-euc", ". ci/common; echo \"$PATH\""])
            .current_dir(root)
            .env_clear()
            .env("PATH", "/usr/bin");
        if let Some(home) = home {
            bash.env("HOME", home);
        }
        let output = bash.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
    assert_eq!(path(None), format!("{}/.cargo/bin:/usr/bin\n", user.dir.display()));
    assert_eq!(path(Some("/a home")), "/a home/.cargo/bin:/usr/bin\n");
}

#[test]
fn nextest_is_not_built_where_programs_may_not_run() {
    if !has_apt() {
        eprintln!("SKIPPED setup::nextest_is_not_built_where_programs_may_not_run: needs Debian or Ubuntu");
        return;
    }
    // By default cargo builds what it installs in TMPDIR, and runs there what the build needs.
    let machine = Machine::new(&[], &[]);
    machine.script("cargo", "[[ $1 != nextest ]] || exit 1\necho cargo 1.95.0");
    let done = machine.setup(&[("TMPDIR", "/nowhere")]);
    assert!(done.success, "{}", done.said);
    assert!(
        done.ran.contains("cargo install cargo-nextest@") && done.ran.contains(" --target-dir target/"),
        "{}",
        done.ran
    );
}

#[test]
fn without_internet_a_toolchain_that_is_there_will_do() {
    if !has_apt() {
        eprintln!(
            "SKIPPED setup::without_internet_a_toolchain_that_is_there_will_do: needs Debian or Ubuntu"
        );
        return;
    }
    let machine = |version: &str| {
        let machine = Machine::new(&[], &[]);
        machine.script(
            "rustup",
            "case \"$*\" in *install*) exit 1 ;; *list*) echo stable-x86_64-unknown-linux-gnu ;; esac",
        );
        // Without a toolchain chosen, rustup's cargo looks for the pinned one.
        machine.script(
            "cargo",
            &format!("[[ ${{RUSTUP_TOOLCHAIN:-}} == stable-* ]] || exit 1\necho cargo {version}"),
        );
        machine
    };
    let done = machine("1.90.0").setup(&[]);
    assert!(done.success && done.said.contains("using the toolchain stable-"), "{}", done.said);
    let done = machine("1.80.0").setup(&[]);
    assert!(!done.success && done.said.contains("rustup toolchain install"), "{}", done.said);
}

#[test]
fn apparmor_s_restriction_is_lifted_on_a_runner_and_told_to_a_person() {
    if !has_apt() {
        eprintln!(
            "SKIPPED setup::apparmor_s_restriction_is_lifted_on_a_runner_and_told_to_a_person: needs Debian or Ubuntu"
        );
        return;
    }
    let setting = "kernel.apparmor_restrict_unprivileged_userns=0";
    let done = |user: &str, ci: &str| {
        let machine = Machine::new(&[], &[]);
        machine.cargo("1.95.0");
        machine.script("sysctl", "echo 1");
        machine.script("id", &format!("echo {user}"));
        machine.setup(&[("CI", ci)])
    };
    let runner = done("1000", "true");
    assert!(
        runner.success && runner.ran.contains(&format!("sysctl --quiet --write {setting}")),
        "{}",
        runner.ran
    );
    let person = done("1000", "");
    assert!(
        person.success && person.said.contains(&format!("sudo sysctl --write {setting}")),
        "{}",
        person.said
    );
    assert!(!person.ran.contains("--write"), "{}", person.ran);
    // Root has namespaces anyway.
    assert!(!done("0", "true").ran.contains("--write"));
}

#[test]
fn keys_that_are_too_old_for_debian_13_are_renewed() {
    if !has_apt() {
        eprintln!("SKIPPED setup::keys_that_are_too_old_for_debian_13_are_renewed: needs Debian or Ubuntu");
        return;
    }
    let done = |version: &str, renewed: &str| {
        let machine = Machine::new(&[], &[]);
        machine.cargo("1.95.0");
        machine.script("mmdebstrap", "");
        machine.script("install", "");
        let done = machine.setup(&[("KEYRING", version), ("RENEWED", renewed)]);
        assert!(done.success, "{}", done.said);
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        done.ran.lines().any(|line| line.starts_with("install ") && line.ends_with(keys))
    };
    assert!(done("2021.1.1ubuntu2", ""), "Ubuntu 22.04");
    assert!(
        !done("2021.1.1ubuntu2", "??5?????? c /usr/share/keyrings/debian-archive-keyring.gpg"),
        "renewed before"
    );
    assert!(!done("2023.4ubuntu1", ""), "Ubuntu 24.04");
    assert!(!done("2023.3+deb12u2", ""), "Debian 12");
}
