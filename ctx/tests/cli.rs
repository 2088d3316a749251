//! The program: exit codes, messages, one image, and the life of the daemon.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};
use std::time::Duration;

use assert_cmd::Command;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn ctx() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("ctx"))
}

#[test]
fn wrong_usage_is_64() {
    ctx().assert().code(64);
    ctx().args(["build", "--class", "No Class"]).assert().code(64);
    let build = ["build", "--class", "a", "--priority", "1", "--generation", "1", "--instance", "i"];
    for mode in ["rw", "", "07777777", "Keep"] {
        let wrong = ctx().args(build).args(["--mode", mode, "/", "/nonexistent/out.iso"]).assert().code(64);
        let stderr = String::from_utf8(wrong.get_output().stderr.clone()).unwrap();
        assert!(stderr.contains("--mode"), "{mode}: {stderr}");
    }
    ctx().arg("--version").assert().success();
}

#[test]
fn build_makes_the_same_image_every_time() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("data/endpoints")).unwrap();
    std::fs::write(dir.path().join("data/endpoints/storage"), "198.18.2.10\n").unwrap();
    let build = |out: &str, generation: &str| {
        let arguments =
            ["build", "--class", "service", "--priority", "100", "--instance", "i", "--generation"];
        let mut command = ctx();
        command.args(arguments).arg(generation).arg(dir.path().join("data")).arg(dir.path().join(out));
        command.assert().success();
        std::fs::read(dir.path().join(out)).unwrap()
    };
    assert_eq!(build("1.iso", "1"), build("2.iso", "1"));
    assert_ne!(build("1.iso", "1"), build("3.iso", "2"));
    let missing = ctx()
        .args(["build", "--class", "a", "--priority", "1", "--generation", "1", "--instance", "i"])
        .args(["/nonexistent/dir", "/nonexistent/out.iso"])
        .assert()
        .code(1);
    let stderr = String::from_utf8(missing.get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("/nonexistent/dir"), "{stderr}");
}

#[test]
fn an_image_is_signed_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("data")).unwrap();
    std::fs::write(at("data/site"), "local\n").unwrap();
    ctx().arg("keygen").arg(at("keys")).args(["--classes", "infrastructure"]).assert().success();
    ctx().arg("keygen").arg(at("keys")).assert().code(1);
    ctx().arg("keygen").arg(at("other")).assert().success();
    let build = |class: &str, out: &str, key: Option<&str>| {
        let mut command = ctx();
        command.args(["build", "--class", class, "--priority", "1", "--generation", "7", "--instance", "i"]);
        if let Some(key) = key {
            command.arg("--key").arg(at(key));
        }
        command.arg(at("data")).arg(at(out)).assert().success();
        std::fs::read(at(out)).unwrap()
    };
    let check = |image: &str, key: &str| {
        let assert = ctx().arg("check").arg(at(image)).arg("--key").arg(at(key)).assert();
        let output = assert.get_output();
        (
            output.status.code(),
            String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned(),
        )
    };
    let signed = build("infrastructure", "1.iso", Some("keys/ctx.key"));
    assert_eq!(signed, build("infrastructure", "2.iso", Some("keys/ctx.key")));
    let (code, said) = check("1.iso", "keys/ctx.pub");
    assert!(code == Some(0) && said.contains("generation 7") && said.contains("signed by"), "{said}");
    assert!(check("1.iso", "other/ctx.pub").1.contains("not trusted here"));
    build("service", "3.iso", Some("keys/ctx.key"));
    assert_eq!(check("3.iso", "keys/ctx.pub").0, Some(1));
    build("infrastructure", "4.iso", None);
    assert!(check("4.iso", "keys/ctx.pub").1.contains("not signed"));
    ctx().arg("check").arg(at("4.iso")).assert().success();
    // The key of others is no key.
    let assert = ctx()
        .args(["build", "--class", "a", "--priority", "1", "--generation", "1", "--instance", "i", "--key"])
        .arg(at("keys/ctx.pub"))
        .arg(at("data"))
        .arg(at("5.iso"))
        .assert()
        .code(1);
    assert!(String::from_utf8_lossy(&assert.get_output().stderr).contains("chmod 600"));
}

#[test]
fn check_points_into_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ctx.toml");
    std::fs::write(&path, "[[class]]\nname = \"a\"\npriority = 1\ndirectory = \"files\"\n").unwrap();
    ctx().arg("check").arg(&path).assert().code(1);
    std::fs::create_dir(dir.path().join("files")).unwrap();
    ctx().arg("check").arg(&path).assert().success();
    std::fs::write(&path, "uri = 3\n").unwrap();
    let assert = ctx().arg("check").arg(&path).assert().code(1);
    let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("ctx.toml:1:7"), "{stderr}");
}

#[test]
fn check_parses_templates_and_runs_no_program() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("templates/sub")).unwrap();
    let text = "[[class]]\nname = \"a\"\npriority = 1\ntemplate = \"templates\"\n\
                [[class]]\nname = \"b\"\npriority = 2\ncommand = [\"touch\", \"ran\"]\n";
    std::fs::write(at("ctx.toml"), text).unwrap();
    // What a template needs is known for a domain only.
    std::fs::write(at("templates/sub/f"), "{{ no_such_fact }}\n").unwrap();
    let check = |code: i32| {
        let assert = ctx().args(["check", "ctx.toml"]).current_dir(&dir).assert().code(code);
        let output = assert.get_output();
        String::from_utf8([&output.stdout[..], &output.stderr[..]].concat()).unwrap()
    };
    let output = check(0);
    assert!(
        output.contains("class a: 1 templates") && output.contains("class b: `touch ran`, not run"),
        "{output}"
    );
    assert!(!at("ran").exists());
    std::fs::write(at("templates/sub/f"), "\n{% for %}\n").unwrap();
    let output = check(1);
    assert!(output.contains("templates/sub/f:2: "), "{output}");
}

#[test]
fn without_a_daemon_the_clients_say_so() {
    for arguments in [&["status"][..], &["trigger", "g1"]] {
        let assert = ctx().args(arguments).args(["--socket", "/nonexistent/ctx.sock"]).assert().code(1);
        let stderr = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(stderr.contains("ctx daemon"), "{stderr}");
    }
}

/// A child that does not outlive its test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_daemon_tells_when_it_is_ready_answers_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ctx.toml");
    let text = "uri = \"test:///default\"\nstate = \"state\"\nsocket = \"ctx.sock\"\n\
                [[class]]\nname = \"a\"\npriority = 1\ndirectory = \".\"\n";
    std::fs::write(&path, text).unwrap();
    let notify = dir.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("ctx"))
        .args(["daemon", "--config"])
        .arg(&path)
        .env("NOTIFY_SOCKET", &notify)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut daemon = Daemon(child);
    let mut message = [0; 256];
    let length = socket.recv(&mut message).unwrap();
    assert!(message[..length].starts_with(b"READY=1"));

    let control = dir.path().join("ctx.sock");
    let status = ctx().arg("status").arg("--json").arg("--socket").arg(&control).assert().success();
    let status: serde_json::Value = serde_json::from_slice(&status.get_output().stdout).unwrap();
    assert_eq!(status["uri"], "test:///default");
    assert_eq!(status["connected"], true);
    // A domain that does not ask for anything: nothing done.
    ctx().args(["trigger", "test", "--socket"]).arg(&control).assert().code(2);
    ctx().args(["trigger", "nobody", "--socket"]).arg(&control).assert().code(1);
    let second = ctx().args(["daemon", "--config"]).arg(&path).assert().code(1);
    let stderr = String::from_utf8(second.get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("another daemon"), "{stderr}");
    let mut broken = std::os::unix::net::UnixStream::connect(&control).unwrap();
    broken.write_all(b"what\n").unwrap();
    let mut answer = vec![0; 13];
    broken.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"{\"ok\":false,"));

    kill(Pid::from_raw(daemon.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(daemon.0.wait().unwrap().success());
    assert!(!control.exists());
}

/// Runs the hook as libvirt does; what it printed.
fn hook(dir: &std::path::Path, arguments: &[&str], xml: &str) -> assert_cmd::assert::Assert {
    let config = dir.join("ctx.toml");
    std::fs::write(&config, "state = \"state\"\n[[class]]\nname = \"a\"\npriority = 1\ndirectory = \"a\"\n")
        .unwrap();
    ctx().args(["hook", "--config"]).arg(config).arg("libxl").args(arguments).write_stdin(xml).assert()
}

fn arriving(image: &std::path::Path) -> String {
    format!(
        "<domain type='xen'>\n  <name>g</name><!-- as it was -->\n  <metadata><ctx:context xmlns:ctx=\"urn:ctx:context:1\">\
         <ctx:device class=\"a\" target=\"xvdc\" bus=\"xen\"/></ctx:context></metadata>\n  <devices>\
         <disk type=\"file\" device='disk'><source file='{}'/><target dev='xvdc' bus='xen'/><readonly/></disk></devices>\n</domain>\n",
        image.display()
    )
}

#[test]
fn the_hook_gives_an_image_to_a_device_that_arrives_without_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let begin = ["g", "migrate", "begin", "-"];
    let (missing, placeholder) = (dir.path().join("elsewhere.iso"), dir.path().join("state/empty.iso"));
    let xml = arriving(&missing);
    hook(dir.path(), &begin, &xml).success().stdout(arriving(&placeholder));
    let image = std::fs::read(&placeholder).unwrap();
    assert!(image.len() > 16 * 2048 && &image[16 * 2048 + 1..16 * 2048 + 6] == b"CD001");
    hook(dir.path(), &begin, &xml).success().stdout(arriving(&placeholder));
    assert_eq!(std::fs::read_dir(dir.path().join("state")).unwrap().count(), 1, "one image, no leftovers");
    // Nothing to change, nothing printed.
    hook(dir.path(), &begin, &arriving(&placeholder)).success().stdout("");
    hook(dir.path(), &["g", "started", "begin", "-"], &xml).success().stdout("");
    hook(dir.path(), &begin, "<domain/>").success().stdout("");
    hook(dir.path(), &begin, "not XML").success().stdout("");
}

#[test]
fn the_hook_stops_a_migration_only_when_it_cannot_write_the_image() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state"), "in the way").unwrap();
    let failed =
        hook(dir.path(), &["g", "migrate", "begin", "-"], &arriving(&dir.path().join("no.iso"))).code(1);
    let stderr = String::from_utf8(failed.get_output().stderr.clone()).unwrap();
    assert!(stderr.contains("empty.iso") && failed.get_output().stdout.is_empty(), "{stderr}");
}

#[test]
fn the_script_for_libvirt_tells_the_driver_by_its_folder_and_does_nothing_without_ctx() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/50-ctx");
    assert_eq!(script.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    for folder in ["libxl.d", "bin"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    let installed = dir.path().join("libxl.d/50-ctx");
    std::fs::copy(script, &installed).unwrap();
    let bin = dir.path().join("bin");
    let run = |path: &str| {
        let mut command = Command::new(&installed);
        command.env("PATH", path).args(["g", "migrate", "begin", "-"]).write_stdin("<x/>");
        command.assert().success()
    };
    let system = "/usr/bin:/bin";
    run(system).stdout("");
    let fake = bin.join("ctx");
    std::fs::write(&fake, "#!/bin/sh\necho \"$@\"\n").unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    run(&format!("{}:{system}", bin.display())).stdout("hook libxl g migrate begin -\n");
}

#[test]
fn a_number_out_of_its_range_is_refused_with_the_range() {
    const VALUES: [&str; 5] = ["NaN", "inf", "-1", "1e300", "99999999999999999999"];

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("src")).unwrap();
    let said =
        |assert: assert_cmd::assert::Assert| String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    for value in VALUES {
        for (name, range) in
            [("--priority", "from 0 to 65535"), ("--generation", "from 0 to 18446744073709551615")]
        {
            let mut words = vec!["build", "--class", "a", "--instance", "i"];
            for setting in ["--priority", "--generation"] {
                words.extend([setting, if setting == name { value } else { "1" }]);
            }
            let output = said(ctx().args(words).args(["src", "out.iso"]).current_dir(&dir).assert().code(64));
            assert!(output.contains(name) && output.contains(range), "{name} {value}: {output}");
        }
        let settings = [
            ("detach_timeout_s", "", "from 1 to 600"),
            ("ack_timeout_s", "", "from 1 to 600"),
            ("priority", "[[class]]\nname = 'a'\ndirectory = 'src'\n", "from 0 to 65535"),
        ];
        for (name, before, range) in settings {
            let value = value.to_lowercase();
            std::fs::write(dir.path().join("ctx.toml"), format!("{before}{name} = {value}\n")).unwrap();
            let output = said(ctx().args(["check", "ctx.toml"]).current_dir(&dir).assert().code(1));
            assert!(output.contains(name) && output.contains(range), "{name} = {value}: {output}");
        }
    }
    for name in ["detach_timeout_s", "ack_timeout_s"] {
        std::fs::write(dir.path().join("ctx.toml"), format!("{name} = 0\n")).unwrap();
        let output = said(ctx().args(["check", "ctx.toml"]).current_dir(&dir).assert().code(1));
        assert!(output.contains("from 1 to 600"), "{output}");
    }
}
