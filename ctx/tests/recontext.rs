//! The daemon against a real QEMU: it replaces a CD-ROM, once asked, and after what a crash left.
//!
//! The guests have no system in them, so they let go of a SCSI device at once. Everything else is
//! what runs in production: `recontext::daemon` with libvirt's QEMU driver inside this process.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{Guest, cdrom_xml, domain_xml, embed};
use ctx::config::Config;
use ctx::libvirt::{Connection, DomainId, Scope};
use ctx::recontext::control::{Answer, Ask, ask};
use ctx::recontext::daemon::daemon;
use ctx::recontext::domain::{NAMESPACE, View};
use ctx::recontext::run::{Recontextualizer, Request};
use ctx::recontext::state::StateDir;
use ctx::recontext::{Outcome, Phase, Record, Trigger};
use ctx_format::manifest::Sha256;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// All tests share one libvirt, and every daemon follows all domains there: one test at a time, as
/// there is one daemon a host.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A daemon with a state directory of its own.
struct Host {
    dir: tempfile::TempDir,
    uri: String,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Host {
    fn new(connection: &Connection) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("infrastructure/endpoints")).unwrap();
        std::fs::write(dir.path().join("infrastructure/endpoints/storage"), "{{ site }} {{ domain.name }}\n")
            .unwrap();
        Self { dir, uri: connection.uri().to_owned(), running: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn start(&mut self) {
        self.start_with("").await;
    }

    fn config(&self, more: &str) -> Config {
        let text = format!(
            "{more}uri = \"{}\"\nstate = \"state\"\nsocket = \"ctx.sock\"\nsite = \"local\"\n\
             [[class]]\nname = \"infrastructure\"\npriority = 200\ntemplate = \"infrastructure\"\n",
            self.uri
        );
        Config::parse(&self.path("ctx.toml"), &text).unwrap()
    }

    async fn start_with(&mut self, more: &str) {
        let config = self.config(more);
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stop = async {
                let _ = stopped.await;
            };
            daemon(config, || ready.send(()).unwrap(), stop).await.unwrap();
        });
        is_ready.await.unwrap();
        self.running = Some((stop, task));
        // It is ready before it has looked at the domains that are there, and answers after that: a domain
        // that a test creates from now on is none of those.
        self.ask(Ask::Status).await;
    }

    async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.send(()).unwrap();
        timeout(common::DEADLINE, task).await.unwrap().unwrap();
    }

    async fn ask(&self, question: Ask) -> Answer {
        timeout(common::DEADLINE, ask(&self.path("ctx.sock"), &question)).await.unwrap().unwrap()
    }

    async fn trigger(&self, domain: &str) -> Vec<Record> {
        let answer = self.ask(Ask::Trigger { domain: domain.into(), reason: Some("test".into()) }).await;
        assert_eq!(answer.error, None);
        answer.records.unwrap()
    }

    /// The log, when it holds a record that `wanted` accepts.
    async fn logged(&self, wanted: impl Fn(&Record) -> bool) -> Record {
        let look = async {
            loop {
                if let Ok(log) = Record::read_log(&self.path("state/events.jsonl"))
                    && let Some(record) = log.records.into_iter().find(|record| wanted(record))
                {
                    return record;
                }
                // Another process's file has no event to wait for; the deadline is around it.
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(common::DEADLINE, look).await.unwrap()
    }
}

fn metadata(attributes: &str) -> String {
    format!(
        "<ctx:context xmlns:ctx='{NAMESPACE}'>\
         <ctx:device class='infrastructure' target='sdb' {attributes}/></ctx:context>"
    )
}

/// The image in the guest's only context device.
fn image(guest: &Guest) -> PathBuf {
    let view = View::parse(&guest.0.xml().unwrap()).unwrap();
    assert_eq!(view.disks.len(), 1, "exactly one device");
    view.disks["sdb"].source.clone().unwrap().into()
}

fn content(iso: &Path, path: &str) -> Option<String> {
    let run = Command::new("isoinfo").arg("-i").arg(iso).args(["-R", "-x", path]).output().ok()?;
    Some(String::from_utf8(run.stdout).unwrap())
}

fn is(record: &Record, id: &DomainId, trigger: &Trigger) -> bool {
    record.uuid == id.uuid && record.trigger == *trigger
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_device_is_replaced_on_request() {
    let Some(connection) = embed("a_context_device_is_replaced_on_request") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let first = host.path("first.iso");
    std::fs::write(&first, vec![0; 4096]).unwrap();
    let xml = domain_xml("replaced", &metadata("on='restored' generation='5'"), &cdrom_xml("sdb", &first));
    let guest = Guest::create(&connection, &xml);
    host.start().await;
    let records = host.trigger("replaced").await;
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(record.outcome, Outcome::Done, "{record:?}");
    assert!(record.generation > Some(5));
    assert_eq!(record.attempt, 1);
    let names: Vec<Phase> = record.phases.iter().map(|phase| phase.name).collect();
    assert_eq!(names, [Phase::Resolve, Phase::Detach, Phase::Build, Phase::Attach]);
    let mut end = record.received.monotonic_ns;
    for phase in &record.phases {
        assert!(end <= phase.start_ns && phase.start_ns <= phase.end_ns, "{record:?}");
        end = phase.end_ns;
    }
    assert_eq!(record.total_ns, end - record.received.monotonic_ns);

    let attached = image(&guest);
    let bytes = std::fs::read(&attached).unwrap();
    let iso = record.iso.as_ref().unwrap();
    assert_eq!((iso.bytes, iso.sha256), (bytes.len() as u64, Sha256::of(&bytes)));
    if let Some(text) = content(&attached, "/data/endpoints/storage") {
        assert_eq!(text, "local replaced\n");
    }
    let images = std::fs::read_dir(attached.parent().unwrap()).unwrap().count();
    assert_eq!(images, 1, "older images are removed");
    let brought = View::parse(&guest.0.xml().unwrap()).unwrap().wanted;
    assert_eq!(Some(brought[0].generation), record.generation, "it travels with the domain");
    assert!(brought[0].on.restored && !brought[0].on.migrated, "the rest is as it was");

    let status = host.ask(Ask::Status).await.status.unwrap();
    assert!(status.connected && status.done == 1 && status.failed == 0, "{status:?}");
    host.stop().await;
    assert!(!host.path("ctx.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_is_acted_on_only_where_the_domain_asks() {
    let Some(connection) = embed("a_boot_is_acted_on_only_where_the_domain_asks") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    host.start().await;
    let quiet = Guest::create(&connection, &domain_xml("quiet", &metadata(""), ""));
    let asks = Guest::create(&connection, &domain_xml("asks", &metadata("on='booted'"), ""));
    let record = host.logged(|record| is(record, asks.0.id(), &Trigger::Booted)).await;
    assert_eq!(record.outcome, Outcome::Done, "{record:?}");
    assert!(image(&asks).exists());
    assert!(View::parse(&quiet.0.xml().unwrap()).unwrap().disks.is_empty());

    // What the daemon put in is removed with the domain: it may hold secrets.
    let attached = image(&asks);
    drop(asks);
    let gone = async {
        while attached.exists() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(common::DEADLINE, gone).await.unwrap();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_completes_what_was_cut_off_and_leaves_alone_what_is_right() {
    let Some(connection) = embed("a_start_completes_what_was_cut_off_and_leaves_alone_what_is_right") else {
        return;
    };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let guest = Guest::create(&connection, &domain_xml("cutoff", &metadata(""), ""));
    host.start().await;
    let first = host.logged(|record| is(record, guest.0.id(), &Trigger::Reconcile)).await;
    host.stop().await;

    host.start().await;
    let kept = image(&guest);
    host.stop().await;
    assert_eq!(image(&guest), kept, "nothing to do, nothing done");

    // As after a crash between detach and attach.
    let view = View::parse(&guest.0.xml().unwrap()).unwrap();
    guest.0.detach_device(&ctx::recontext::device::detach_xml(&view.disks["sdb"]), Scope::Live).unwrap();
    host.start().await;
    let second =
        host.logged(|record| record.uuid == guest.0.uuid() && record.generation > first.generation).await;
    assert_eq!(second.outcome, Outcome::Done, "{second:?}");
    assert_ne!(image(&guest), kept);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_burst_share_runs_and_all_get_an_answer() {
    let Some(connection) = embed("requests_of_a_burst_share_runs_and_all_get_an_answer") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let guest = Guest::create(&connection, &domain_xml("burst", &metadata(""), ""));
    host.start().await;
    host.logged(|record| is(record, guest.0.id(), &Trigger::Reconcile)).await;
    let all = async {
        tokio::join!(
            host.trigger("burst"),
            host.trigger("burst"),
            host.trigger("burst"),
            host.trigger("burst")
        )
    };
    let (a, b, c, d) = all.await;
    let mut runs: Vec<Record> = [a, b, c, d].concat();
    assert!(runs.iter().all(|record| record.outcome == Outcome::Done), "{runs:?}");
    runs.sort_by_key(|record| record.generation);
    runs.dedup();
    let answered: u32 = runs.iter().map(|record| 1 + record.coalesced).sum();
    assert_eq!(answered, 4, "{runs:?}");
    assert!(image(&guest).exists());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_to_do_and_are_tried_again() {
    let Some(connection) = embed("failures_say_what_to_do_and_are_tried_again") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let guest = Guest::create(&connection, &domain_xml("fails", &metadata(""), ""));
    let source = host.path("infrastructure/endpoints/storage");
    std::fs::write(&source, "{{ sight }}\n").unwrap();
    host.start().await;
    let failed = host.logged(|record| record.uuid == guest.0.uuid()).await;
    assert_eq!(failed.outcome, Outcome::Failed);
    let error = failed.error.unwrap();
    assert!(error.contains("endpoints/storage:1") && error.contains("infrastructure"), "{error}");
    assert_eq!(failed.phases.last().unwrap().name, Phase::Build);

    std::fs::write(&source, "right\n").unwrap();
    let again = host.logged(|record| record.uuid == guest.0.uuid() && record.outcome == Outcome::Done).await;
    assert!(again.attempt > 1, "{again:?}");

    let unknown = host.ask(Ask::Trigger { domain: "nobody".into(), reason: None }).await;
    assert!(unknown.error.unwrap().contains("`nobody`"));
    let plain = Guest::create(&connection, &domain_xml("plain", "", ""));
    let records = host.trigger("plain").await;
    assert_eq!(records[0].outcome, Outcome::Skipped);
    assert!(records[0].error.as_ref().unwrap().contains(NAMESPACE));
    drop(plain);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_medium_is_swapped_in_the_drive_that_is_there() {
    let Some(connection) = embed("a_medium_is_swapped_in_the_drive_that_is_there") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let empty = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>\
                 <target dev='sdb' bus='scsi'/><readonly/></disk>";
    let guest = Guest::create(&connection, &domain_xml("swaps", &metadata("strategy='swap'"), empty));
    let drive = |guest: &Guest| View::parse(&guest.0.xml().unwrap()).unwrap().disks["sdb"].alias.clone();
    let alias = drive(&guest);
    host.start().await;
    // The drive is empty: a run was missed.
    let first = host.logged(|record| is(record, guest.0.id(), &Trigger::Reconcile)).await;
    assert_eq!(first.outcome, Outcome::Done, "{first:?}");
    let inserted = image(&guest);
    let records = host.trigger("swaps").await;
    assert_eq!(records[0].outcome, Outcome::Done, "{records:?}");
    let names: Vec<Phase> = records[0].phases.iter().map(|phase| phase.name).collect();
    assert_eq!(names, [Phase::Resolve, Phase::Detach, Phase::Build, Phase::Attach]);
    assert_ne!(image(&guest), inserted);
    assert!(!inserted.exists(), "older images are removed");
    assert_eq!(drive(&guest), alias, "the drive stays");
    let xml = guest.0.xml().unwrap();
    assert!(xml.contains("startupPolicy='optional'") && xml.contains("strategy=\"swap\""), "{xml}");
    host.stop().await;
}

/// The drive as QEMU has it: whether its tray is open, and the file in it.
fn drive_in_qemu(guest: &Guest) -> (bool, Option<PathBuf>) {
    let answer = guest.qmp("query-block", &serde_json::json!({}));
    let drives = answer["return"].as_array().unwrap();
    let drive = drives.iter().find(|drive| drive["tray_open"].is_boolean()).unwrap();
    let file = drive["inserted"]["file"].as_str().map(PathBuf::from);
    (drive["tray_open"].as_bool().unwrap(), file)
}

/// What firmware or a driver of the guest does at any time, here at chosen ones: it resets the bus, and QEMU closes the tray
/// without a word to libvirt, which takes it to be open from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_medium_is_swapped_wherever_a_reset_of_the_bus_has_left_the_drive() {
    let Some(connection) = embed("a_medium_is_swapped_wherever_a_reset_of_the_bus_has_left_the_drive") else {
        return;
    };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let empty = "<disk type='file' device='cdrom'><driver name='qemu' type='raw'/>\
                 <target dev='sdb' bus='scsi'/><readonly/></disk>";
    let guest = Guest::paused(&connection, &domain_xml("resets", &metadata("strategy='swap'"), empty));
    let id = View::parse(&guest.0.xml().unwrap()).unwrap().disks["sdb"].alias.clone().unwrap();
    host.start().await;
    host.logged(|record| is(record, guest.0.id(), &Trigger::Reconcile)).await;
    // Between the opening of the tray and the removal, between that and the insertion, before the tray is closed.
    let after_each_command = [
        &["blockdev-open-tray"][..],
        &["blockdev-open-tray", "blockdev-remove-medium"],
        &["blockdev-open-tray", "blockdev-remove-medium", "blockdev-insert-medium"],
    ];
    for commands in after_each_command {
        for command in commands {
            let mut arguments = serde_json::json!({"id": id});
            if *command == "blockdev-insert-medium" {
                guest.qmp(
                    "blockdev-add",
                    &serde_json::json!({"driver": "null-co", "node-name": "other", "read-only": true}),
                );
                arguments["node-name"] = "other".into();
            }
            let answer = guest.qmp(command, &arguments);
            assert!(answer["error"].is_null(), "{command}: {answer}");
        }
        assert!(drive_in_qemu(&guest).0, "{commands:?}");
        guest.qmp("system_reset", &serde_json::json!({}));
        let closed = async {
            while drive_in_qemu(&guest).0 {
                // The reset comes after the answer, and this libvirt's events do not have it.
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(common::DEADLINE, closed).await.unwrap();

        let records = host.trigger("resets").await;
        assert_eq!(records[0].outcome, Outcome::Done, "{commands:?}: {records:?}");
        assert_eq!(drive_in_qemu(&guest), (false, Some(image(&guest))), "{commands:?}");
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_domain_cannot_have_fails_once_and_touches_nothing() {
    let Some(connection) = embed("what_a_domain_cannot_have_fails_once_and_touches_nothing") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let guest = Guest::create(&connection, &domain_xml("cannot", &metadata("strategy='swap'"), ""));
    let before = guest.0.xml().unwrap();
    host.start().await;
    let failed = host.logged(|record| record.uuid == guest.0.uuid()).await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:?}");
    let error = failed.error.unwrap();
    assert!(error.contains("`sdb`") && error.contains("no such CD-ROM drive"), "{error}");
    let status = host.ask(Ask::Status).await.status.unwrap();
    assert_eq!((status.failed, status.running.len()), (1, 0), "{status:?}");
    assert_eq!(guest.0.xml().unwrap(), before);
    host.stop().await;
    // Whether it tries again goes by this, which is not in the log.
    let config = host.config("");
    let state = StateDir::open(&config.state).unwrap();
    let run = Arc::new(Recontextualizer { config, state, connection });
    let records = run.run(&Request::new(guest.0.id().clone(), Trigger::Reconcile)).await;
    assert_eq!(records[0].outcome, Outcome::Failed, "{records:?}");
    assert!(!records[0].is_worth_another_try(), "{records:?}");
}

/// The socket is QEMU's own; nobody is in the guest to answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_could_answer_and_does_not_is_said_to() {
    let Some(connection) = embed("a_guest_that_could_answer_and_does_not_is_said_to") else { return };
    let _alone = ALONE.lock().await;
    let mut host = Host::new(&connection);
    let socket = host.path("ack.sock");
    let channel = format!(
        "<controller type='virtio-serial'/><channel type='unix'><source mode='bind' path='{}'/>\
         <target type='virtio' name='org.ctx.ack.0'/></channel>",
        socket.display()
    );
    let guest = Guest::create(&connection, &domain_xml("silent", &metadata("on='restored'"), &channel));
    host.start_with("ack_timeout_s = 1\n").await;
    let records = host.trigger("silent").await;
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!(record.outcome, Outcome::Degraded, "{record:?}");
    assert!(image(&guest).exists() && record.generation.is_some(), "it is attached all the same");
    let names: Vec<Phase> = record.phases.iter().map(|phase| phase.name).collect();
    assert_eq!(names, [Phase::Resolve, Phase::Detach, Phase::Build, Phase::Attach, Phase::Acknowledge]);
    let waited = record.phase_ns(Phase::Acknowledge).unwrap();
    assert!(
        waited >= 1_000_000_000
            && record.phases[4].start_ns >= record.received.monotonic_ns + record.total_ns
    );
    let error = record.error.as_ref().unwrap();
    assert!(error.contains("not acknowledged: the guest said nothing"), "{error}");
    let status = host.ask(Ask::Status).await.status.unwrap();
    assert!(status.last.iter().any(|last| last.acknowledgement.is_some()), "{status:?}");
    host.stop().await;
    // Who does not want to wait does not.
    host.start_with("ack = \"off\"\n").await;
    let records = host.trigger("silent").await;
    assert_eq!((records[0].outcome, records[0].phases.len()), (Outcome::Done, 4), "{records:?}");
    host.stop().await;
}
