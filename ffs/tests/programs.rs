//! Programs that people run notice a switch, as they notice a change on a local disk. Each is the real one,
//! from its Debian package, on a real mount.
//!
//! | program | how it notices |
//! |---|---|
//! | inotifywait | inotify |
//! | dnsmasq `--hostsdir` | inotify: `MOVED_TO` |
//! | Prometheus `file_sd` | fsnotify (inotify) |
//! | Python watchdog | inotify |
//! | fsnotifywait `--fanotify` | fanotify on a directory |
//! | nginx | does not: a hook reloads it |
//!
//! systemd's path units are in `systemd.rs`.
//!
//! fanotify on a whole mount or file system (fatrace) is refused by the kernel with `ENODEV`: it names what it
//! reports by file system id and file handle, and FUSE has no such id (`f_fsid` of statfs(2) is zero). Marks on
//! directories and files need none, since Linux 6.8.

#![allow(clippy::print_stderr)] // What was seen when a test fails.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::site::Site;
use common::{eventually, own_network};

/// A program that is killed when dropped, and what it prints.
struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Program {
    fn start(command: &mut Command) -> Option<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = match child {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            other => other.expect("it starts"),
        };
        let (to, lines) = channel();
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("a pipe")), Box::new(child.stderr.take().expect("a pipe"))];
        for pipe in pipes {
            let to = to.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let _ = to.send(line);
                }
            });
        }
        Some(Self { child, lines, seen: Vec::new() })
    }

    /// Waits until it has an inotify watch, which proc(5) tells.
    fn watches(&self) {
        let watch = |info: std::fs::DirEntry| {
            std::fs::read_to_string(info.path()).is_ok_and(|text| text.contains("inotify wd:"))
        };
        eventually("a watch", || {
            let infos = std::fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).ok()?;
            infos.flatten().any(watch).then_some(())
        });
    }

    /// Waits for a line with these words.
    fn says(&mut self, words: &str) {
        eventually(words, || {
            self.seen.extend(self.lines.try_iter());
            if let Ok(Some(status)) = self.child.try_wait() {
                self.seen.extend(self.lines.recv_timeout(Duration::from_millis(100)));
                let said = self.seen.iter().any(|line| line.contains(words));
                assert!(said, "ended, {status}: {:#?}", self.seen);
            }
            self.seen.iter().any(|line| line.contains(words)).then_some(())
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!("{:#?}", self.seen);
        }
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        for _ in 0..500 {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port of a server, in a network of the test's own.
const PORT: u16 = 4000;

/// The answer of an HTTP server on loopback.
fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

macro_rules! or_skip {
    ($name:literal, $program:expr, $package:literal) => {
        match $program {
            Some(program) => program,
            None => {
                eprintln!("SKIPPED {}: needs the package {}", $name, $package);
                return;
            }
        }
    };
}

#[test]
fn inotifywait_prints_the_change() {
    needs_mount!("inotifywait_prints_the_change");
    let mut site = Site::new(&[("d/site", "remote"), ("d/same", "")]);
    let mut command = Command::new("inotifywait");
    command.args(["--monitor", "--recursive", "--event", "moved_to,delete", "--format", "%w%f %e"]);
    let mut program = or_skip!(
        "inotifywait_prints_the_change",
        Program::start(command.arg(site.mounted.at(""))),
        "inotify-tools"
    );
    program.says("Watches established");
    site.switch(&[("d/site", "local"), ("d/same", "")]);
    program.says("/d/site MOVED_TO");
    site.switch(&[("d/same", "")]);
    program.says("/d/site DELETE");
    assert!(!program.seen.iter().any(|line| line.contains("same")), "{:#?}", program.seen);
}

/// Asks for the address of `name` (RFC 1035), and whether the answer holds `address`.
fn resolves(port: u16, name: &str, address: [u8; 4]) -> bool {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a short label"));
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time-out");
    let mut answer = [0; 512];
    let sent = socket.send_to(&query, ("127.0.0.1", port));
    sent.and_then(|_| socket.recv(&mut answer)).is_ok_and(|len| answer[..len].ends_with(&address))
}

#[test]
fn dnsmasq_answers_with_the_new_address() {
    needs_mount!("dnsmasq_answers_with_the_new_address");
    let mut site = Site::new(&[("hosts/site", "198.18.2.10 storage.site\n")]);
    let port = PORT;
    own_network();
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--log-facility=-", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--conf-file=/dev/null", "--pid-file=", "--listen-address=127.0.0.1", "--bind-interfaces"]);
    command.arg(format!("--port={port}")).arg(format!("--hostsdir={}", site.mounted.at("hosts").display()));
    let _program =
        or_skip!("dnsmasq_answers_with_the_new_address", Program::start(&mut command), "dnsmasq-base");
    eventually("the first address", || resolves(port, "storage.site", [198, 18, 2, 10]).then_some(()));
    site.switch(&[("hosts/site", "198.18.1.77 storage.site\n")]);
    eventually("the new address", || resolves(port, "storage.site", [198, 18, 1, 77]).then_some(()));
    site.switch(&[("hosts/site", "198.18.1.77 storage.site\n"), ("hosts/more", "198.18.1.78 more.site\n")]);
    eventually("the added file", || resolves(port, "more.site", [198, 18, 1, 78]).then_some(()));
}

#[test]
fn prometheus_has_the_new_targets() {
    needs_mount!("prometheus_has_the_new_targets");
    let targets = |address: &str| format!("[{{\"targets\": [\"{address}\"]}}]");
    let mut site = Site::new(&[("targets.json", &targets("127.0.0.1:1"))]);
    let config = site.work("prometheus.yml");
    // The files are read again every five minutes, too; the test does not wait so long.
    let text = format!(
        "scrape_configs:\n- job_name: site\n  scrape_interval: 1h\n  file_sd_configs:\n  - files: ['{}']\n    refresh_interval: 1h\n",
        site.mounted.at("targets.json").display()
    );
    std::fs::write(&config, text).expect("write");
    let port = PORT;
    own_network();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", site.work("tsdb").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let program = or_skip!("prometheus_has_the_new_targets", Program::start(&mut command), "prometheus");
    let has = |address: &str| {
        get(port, "/api/v1/targets").is_some_and(|answer| answer.contains(&format!("\"{address}\"")))
    };
    eventually("the first target", || has("127.0.0.1:1").then_some(()));
    // It reads the files first and watches them then.
    program.watches();
    site.switch(&[("targets.json", &targets("127.0.0.1:2"))]);
    eventually("the new target", || (has("127.0.0.1:2") && !has("127.0.0.1:1")).then_some(()));
}

#[test]
fn watchdog_calls_its_handler() {
    needs_mount!("watchdog_calls_its_handler");
    // The package is for Debian's interpreter, which need not be the first in the path.
    let has = Command::new("/usr/bin/python3").args(["-c", "import watchdog"]).stderr(Stdio::null()).status();
    let has = has.is_ok_and(|status| status.success()).then_some(());
    or_skip!("watchdog_calls_its_handler", has, "python3-watchdog");
    let mut site = Site::new(&[("d/site", "remote")]);
    let script = "
import sys, time
from watchdog.observers.inotify import InotifyObserver
from watchdog.events import FileSystemEventHandler
class Handler(FileSystemEventHandler):
    def on_any_event(self, event):
        if event.event_type in ('created', 'deleted', 'moved'):
            path = getattr(event, 'dest_path', '') or event.src_path
            text = open(path).read() if event.event_type != 'deleted' else ''
            print(event.event_type, path, text, flush=True)
observer = InotifyObserver()
observer.schedule(Handler(), sys.argv[1], recursive=True)
observer.start()
print('watching', flush=True)
while True: time.sleep(3600)
";
    let mut command = Command::new("/usr/bin/python3");
    let mut program =
        Program::start(command.args(["-c", script]).arg(site.mounted.at(""))).expect("it is there");
    program.says("watching");
    site.switch(&[("d/site", "local")]);
    // A rename whose source it did not see: something was created, and its content is there already.
    program.says("/d/site local");
    site.switch(&[("d/other", "")]);
    program.says("deleted");
}

#[test]
fn nginx_serves_the_new_configuration_after_its_hook() {
    needs_mount!("nginx_serves_the_new_configuration_after_its_hook");
    let port = PORT;
    own_network();
    let server = |text: &str| format!("server {{ listen 127.0.0.1:{port}; return 200 {text}; }}\n");
    let mut prefix = PathBuf::new();
    let mut site = Site::with_config(&[("nginx/site.conf", &server("remote"))], |dir| {
        dir.clone_into(&mut prefix);
        format!(
            "[[hook]]\npath = \"nginx/**\"\nrun = [\"nginx\", \"-p\", \"{0}\", \"-c\", \"{0}/nginx.conf\", \"-e\", \"stderr\", \"-s\", \"reload\"]\n",
            dir.display()
        )
    });
    let config = prefix.join("nginx.conf");
    let text = format!(
        "daemon off;\nmaster_process on;\nworker_processes 1;\nuser root;\npid {0}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n access_log off;\n client_body_temp_path {0}/a; proxy_temp_path {0}/b; fastcgi_temp_path {0}/c; uwsgi_temp_path {0}/d; scgi_temp_path {0}/e;\n include {1}/*.conf;\n}}\n",
        prefix.display(),
        site.mounted.at("nginx").display()
    );
    std::fs::write(&config, text).expect("write");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&prefix).arg("-c").arg(&config).args(["-e", "stderr"]);
    let _program = or_skip!(
        "nginx_serves_the_new_configuration_after_its_hook",
        Program::start(&mut command),
        "nginx-light"
    );
    let shows = |text: &str| get(port, "/").is_some_and(|answer| answer.ends_with(text));
    eventually("the first configuration", || shows("remote").then_some(()));
    site.switch(&[("nginx/site.conf", &server("local"))]);
    eventually("the new configuration", || shows("local").then_some(()));
    eventually("the outcome", || {
        site.mounted.status().hooks.iter().any(|hook| hook.result == "ok").then_some(())
    });
}

#[test]
fn fanotify_reports_to_who_marks_the_directory() {
    needs_mount!("fanotify_reports_to_who_marks_the_directory");
    if common::linux() < (6, 8) {
        eprintln!("SKIPPED fanotify_reports_to_who_marks_the_directory: needs Linux 6.8");
        return;
    }
    let mut site = Site::new(&[("d/site", "remote"), ("d/same", "")]);
    let mut command = Command::new("fsnotifywait");
    command.args(["--fanotify", "--monitor", "--event", "moved_to,delete", "--format", "%w%f %e"]);
    let mut program = or_skip!(
        "fanotify_reports_to_who_marks_the_directory",
        Program::start(command.arg(site.mounted.at("d"))),
        "inotify-tools"
    );
    program.says("Watches established");
    site.switch(&[("d/site", "local"), ("d/same", "")]);
    program.says("/d/site MOVED_TO");
    site.switch(&[("d/same", "")]);
    program.says("/d/site DELETE");
}
