//! A real live migration between two libvirt daemons, and the recontextualizer at its end.
//!
//! Two `libvirtd` run on this machine, each in namespaces of its own so that it takes itself for a
//! host of its own; QEMU sends memory over loopback. Everything libvirt is real: the remote driver,
//! its events, keepalive, the loss of the connection.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod common;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{cdrom_xml, domain_xml, wait_for};
use ctx::config::Config;
use ctx::libvirt::{
    Connection, ErrorKind, Event, EventKind, JobKind, JobOperation, Lifecycle, MigrateOptions, Resumed,
    Running, State,
};
use ctx::recontext::control::{Ask, ask};
use ctx::recontext::daemon::daemon;
use ctx::recontext::domain::{NAMESPACE, View};
use ctx::recontext::{Outcome, Phase, Record, Trigger};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A `libvirtd` that takes itself for a host.
struct Host {
    dir: tempfile::TempDir,
    child: Child,
}

impl Host {
    fn start(name: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("ctx-").tempdir_in("/tmp").unwrap();
        let path = dir.path().display();
        let node = name.bytes().fold(0, |sum: u64, b| (sum * 31 + u64::from(b)) & 0xffff_ffff_ffff);
        let uuid = format!("00000000-0000-4000-8000-{node:012x}");
        let conf = format!(
            "unix_sock_dir = \"{path}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\nhost_uuid = \"{uuid}\"\n\
             log_outputs = \"3:file:{path}/log\"\n"
        );
        std::fs::write(dir.path().join("libvirtd.conf"), conf).unwrap();
        // libvirt would lift the limit of core files, which root may not do in a container after sudo has lowered it.
        let qemu = "stdio_handler = \"file\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
                    cgroup_controllers = []\nuser = \"root\"\ngroup = \"root\"\nmax_core = 0\n";
        std::fs::write(dir.path().join("qemu.conf"), qemu).unwrap();
        // Else every look-up of the hosts' names waits for a DNS server.
        std::fs::write(dir.path().join("hosts"), "127.0.0.1 localhost ctx-remote ctx-local\n").unwrap();
        let script = format!(
            "hostname {name} && mkdir -p /var/lib/libvirt /var/cache/libvirt && mount -t tmpfs none /run && mount -t tmpfs none /var/lib/libvirt && \
             mount -t tmpfs none /var/cache/libvirt && mount --bind {path}/hosts /etc/hosts && mkdir -p /etc/libvirt && touch /etc/libvirt/qemu.conf && \
             mount --bind {path}/qemu.conf /etc/libvirt/qemu.conf && \
             libvirtd --config {path}/libvirtd.conf --pid-file {path}/pid; exit $?"
        );
        let child = Command::new("setpriv")
            // A PID namespace, so that its QEMUs end with it (the shell in it reaps them); and it ends with the test, killed or not.
            .args(["--pdeathsig", "KILL", "unshare"])
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}/libvirt-sock", self.dir.path().display())
    }

    fn connect(&self) -> Connection {
        let deadline = Instant::now() + common::DEADLINE;
        loop {
            match Connection::open(&self.uri()) {
                Ok(connection) => return connection,
                Err(error) if Instant::now() > deadline => {
                    let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                    panic!("{error}\n{log}");
                }
                // The daemon tells nobody when it listens.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn kill(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A network of this thread's own, which has what it starts too: libvirt finds a port that is free for a migration, and QEMU
/// binds it later.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(
        up.is_ok_and(|status| status.success()),
        "`ip` of the package iproute2 sets up the network of the test"
    );
}

fn hosts(test: &str) -> Option<(Host, Host)> {
    let reason = if !nix::unistd::Uid::effective().is_root() {
        "needs root for namespaces"
    } else if Command::new("libvirtd").arg("--version").output().is_err() {
        "libvirtd is not installed"
    } else if Command::new("qemu-system-x86_64").arg("--version").output().is_err() {
        "qemu-system-x86_64 is not installed"
    } else if !Command::new("unshare")
        .args(["--mount", "--uts", "--pid", "--fork", "true"])
        .status()
        .is_ok_and(|s| s.success())
    {
        "namespaces cannot be made here"
    } else {
        own_network();
        return Some((Host::start("ctx-remote"), Host::start("ctx-local")));
    };
    eprintln!("SKIPPED {test}: {reason}");
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_migrated_gets_the_data_of_the_host_it_came_to() {
    let Some((mut source, destination)) = hosts("a_guest_that_migrated_gets_the_data_of_the_host_it_came_to")
    else {
        return;
    };
    let (from, to) = (source.connect(), destination.connect());
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("infrastructure")).unwrap();
    std::fs::write(dir.path().join("infrastructure/site"), "{{ site }}\n").unwrap();
    let text = format!(
        "uri = \"{}\"\nstate = \"state\"\nsocket = \"ctx.sock\"\nsite = \"local\"\n\
         [[class]]\nname = \"infrastructure\"\npriority = 200\ntemplate = \"infrastructure\"\n",
        destination.uri()
    );
    let config = Config::parse(&dir.path().join("ctx.toml"), &text).unwrap();
    let log: PathBuf = config.events.clone();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(async move {
        let stop = async {
            let _ = stopped.await;
        };
        daemon(config, || ready.send(()).unwrap(), stop).await.unwrap();
    });
    is_ready.await.unwrap();
    // It is ready before it has looked at the domains that are there, and answers after that: the one that is about to come is
    // none of those.
    let socket = dir.path().join("ctx.sock");
    let looked = ask(&socket, &Ask::Status);
    tokio::time::timeout(common::DEADLINE, looked).await.unwrap().unwrap();

    let first = dir.path().join("first.iso");
    std::fs::write(&first, vec![0; 4096]).unwrap();
    let metadata = format!(
        "<ctx:context xmlns:ctx='{NAMESPACE}'><ctx:device class='infrastructure' target='sdb'/></ctx:context>"
    );
    let domain = from.create(&domain_xml("moves", &metadata, &cdrom_xml("sdb", &first))).unwrap();
    let (mut source_events, mut destination_events) = (from.subscribe().unwrap(), to.subscribe().unwrap());

    let (moved, to_there) = (domain.clone(), to.clone());
    let options = MigrateOptions { uri: Some("tcp://127.0.0.1".into()), ..MigrateOptions::default() };
    let there =
        tokio::task::spawn_blocking(move || moved.migrate(&to_there, &options)).await.unwrap().unwrap();
    assert_eq!(there.state().unwrap(), State::Running(Running::Migrated));

    let record = async {
        loop {
            if let Ok(read) = Record::read_log(&log)
                && let Some(record) = read.records.into_iter().next()
            {
                return record;
            }
            // Another process's file has no event to wait for; the deadline is around it.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let record = tokio::time::timeout(common::DEADLINE, record).await.unwrap();
    assert_eq!((record.outcome, &record.trigger), (Outcome::Done, &Trigger::Migrated), "{record:?}");
    assert!(
        [Phase::Resolve, Phase::Detach, Phase::Build, Phase::Attach]
            .iter()
            .all(|p| record.phase_ns(*p).is_some())
    );
    let view = View::parse(&there.xml().unwrap()).unwrap();
    assert_eq!(view.disks.len(), 1);
    let image = view.disks["sdb"].source.clone().unwrap();
    assert!(std::path::Path::new(&image).starts_with(dir.path().join("state")), "{image}");
    assert_eq!(Some(view.wanted[0].generation), record.generation);

    tokio::task::spawn_blocking(move || {
        let statistics = wait_for(&mut source_events, "moves", |kind| match kind {
            EventKind::JobCompleted(statistics) => Some(statistics.clone()),
            _ => None,
        });
        assert_eq!(statistics.operation, Some(JobOperation::MigrationOut));
        assert!(statistics.memory_processed.is_some() && statistics.downtime_ms.is_some(), "{statistics:?}");
        wait_for(&mut destination_events, "moves", |kind| {
            (*kind == EventKind::Lifecycle(Lifecycle::Resumed(Resumed::Migrated))).then_some(())
        });
        let statistics = there.completed_job_stats(false).unwrap();
        assert_eq!(statistics.kind, JobKind::Completed);
        assert!(statistics.time_elapsed_ms.is_some() && statistics.memory_total.is_some(), "{statistics:?}");
        assert_eq!(there.completed_job_stats(false).unwrap_err().kind(), ErrorKind::NoJob);
        assert_eq!(domain.state().unwrap_err().kind(), ErrorKind::NoDomain);

        // The loss of a connection is an event too.
        source.kill();
        while !matches!(source_events.blocking_recv().expect("an event before the end"), Event::Closed { .. })
        {
        }
        assert!(!from.is_alive());
        there.destroy().unwrap();
    })
    .await
    .unwrap();
    stop.send(()).unwrap();
    running.await.unwrap();
}
