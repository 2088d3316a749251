//! From a scenario to the testbed that it needs: which machines, how large, and what is on them.
//!
//! All of it is a function of values. The hosts of the two sites differ in one thing alone: the
//! infrastructure data under `/etc/ctx/infrastructure`, which is what recontextualization brings
//! to the guest.

use std::path::{Path, PathBuf};

use ctx_format::{
    ClassName, ContextData, File, ImageOptions, InstanceId, Label, Priority, RelPath, write_iso,
};

use crate::doctor::Accelerator;
use crate::image::seed::{Content, Seed};
use crate::observe::beats;
use crate::scenario::{Experiment, Scenario, Strategy, TestbedKind};
use crate::testbed::address::{Member, Network, Role};
use crate::testbed::domain::Guest;
use crate::testbed::hypervisor::{Hypervisor, Slots};
use crate::testbed::seed::{text, unit};
use crate::testbed::site::Site;
use crate::testbed::up::Spec;

/// Memory of a file server: GlusterFS, and the files of the test, which stay in memory.
const SERVER_MIB: u32 = 448;
/// Where a guest shows its context (paper; the authors' toolkit mounted its union there, too).
pub const CONTEXT_MOUNT: &str = "/mnt/context";
/// The file that names the site, which the probe reads.
pub const SITE_FILE: &str = "site";
/// The file that names the site's file server.
pub const SERVER_FILE: &str = "gluster/server";
/// Where a host keeps the image of the service class.
pub const SERVICE_IMAGE: &str = "/usr/lib/bench/service.iso";

/// Our own programs, which go into seeds.
#[derive(Debug, Clone)]
pub struct Programs {
    ctx: PathBuf,
    ffs: PathBuf,
    probe: PathBuf,
}

/// A program that is not there.
#[derive(Debug, thiserror::Error)]
#[error("{} is missing: `ci/build` builds all programs into one folder, run `bench` from there", path.display())]
pub struct NotBuilt {
    path: PathBuf,
}

impl Programs {
    /// The programs in a folder.
    ///
    /// # Errors
    /// [`NotBuilt`].
    pub fn beside(folder: &Path) -> Result<Programs, NotBuilt> {
        let program = |name: &str| {
            let path = folder.join(name);
            if path.is_file() { Ok(path) } else { Err(NotBuilt { path }) }
        };
        Ok(Programs { ctx: program("ctx")?, ffs: program("ffs")?, probe: program("bench-probe")? })
    }

    /// All of them, with their names.
    pub fn named(&self) -> [(&'static str, &Path); 3] {
        [("ctx", self.ctx.as_path()), ("ffs", self.ffs.as_path()), ("bench-probe", self.probe.as_path())]
    }
}

/// What a scenario may ask for and this bench does not do yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// Given hosts.
    #[error("this bench drives no given hosts yet: set `testbed.kind = \"nested\"`")]
    Inventory,
    /// More hosts than sites.
    #[error("this bench boots two hosts, one a site, and {0} are asked for: set `testbed.hosts = 2`")]
    Hosts(u32),
    /// The strategy.
    #[error("the recontextualizer does not {0} yet: set `recontext.strategy = \"replace\"` or \"swap\"")]
    Strategy(&'static str),
}

/// Whether this bench can do what a scenario asks for, whatever the machine.
///
/// # Errors
/// [`NotYet`], with what to write instead.
pub fn supported(scenario: &Scenario) -> Result<(), NotYet> {
    // No hosts, so nothing that a hypervisor or a site would have to support.
    if scenario.testbed.kind == TestbedKind::Local {
        return Ok(());
    }
    if scenario.testbed.kind == TestbedKind::Inventory {
        return Err(NotYet::Inventory);
    }
    if scenario.testbed.hosts != 2 {
        return Err(NotYet::Hosts(scenario.testbed.hosts));
    }
    if scenario.recontext.strategy == Strategy::Prestage {
        return Err(NotYet::Strategy(scenario.recontext.strategy.name()));
    }
    Ok(())
}

/// Memory that the machines of a scenario's testbed take together, in MiB.
pub fn memory(scenario: &Scenario) -> u32 {
    let guest = guest(scenario).memory_mib;
    let hosts = scenario.testbed.hosts * (scenario.testbed.hypervisor.host().memory_mib + guest);
    // QEMU's own memory, translated code included, is about a quarter of a gibibyte a machine.
    let machines = scenario.testbed.hosts + u32::from(servers(scenario));
    hosts + u32::from(servers(scenario)) * SERVER_MIB + machines * 256
}

fn servers(scenario: &Scenario) -> u8 {
    match scenario.experiment {
        Experiment::Migration | Experiment::Layers => 0,
        Experiment::Gluster => 2,
    }
}

fn guest(scenario: &Scenario) -> Guest {
    Guest {
        name: "guest".into(),
        member: Member { role: Role::Guest, index: 0 },
        memory_mib: u32::try_from(scenario.guest.memory.mib()).unwrap_or(u32::MAX),
        vcpus: scenario.guest.vcpus,
        kind: scenario.guest.kind_on(scenario.testbed.hypervisor),
        drive: slots(scenario).drive(scenario.recontext.strategy),
        acknowledges: scenario.recontext.acknowledge,
    }
}

/// The devices that carry the context data of a scenario's guest.
pub fn slots(scenario: &Scenario) -> Slots {
    let hypervisor = scenario.testbed.hypervisor;
    hypervisor.slots(scenario.guest.kind_on(hypervisor), scenario.recontext.strategy)
}

/// Why the context data could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A name or path of the bench's own is not valid.
    #[error("the bench's own context data: {0}")]
    Invalid(String),
    /// The image.
    #[error("the image of the service class: {0}")]
    Write(#[from] ctx_format::write::WriteError),
}

/// The testbed of a scenario.
///
/// # Errors
/// When the context data cannot be made.
pub fn spec(scenario: &Scenario, accelerator: Accelerator, programs: &Programs) -> Result<Spec, SetupError> {
    let guest = guest(scenario);
    let service = service_image()?;
    let host_extra = Site::ALL.iter().map(|&site| host(scenario, site, programs, &service)).collect();
    Ok(Spec {
        hypervisor: scenario.testbed.hypervisor,
        accelerator,
        hosts: 2,
        servers: usize::from(servers(scenario)),
        host_memory_mib: scenario.testbed.hypervisor.host().memory_mib + guest.memory_mib,
        host_vcpus: scenario.testbed.host_vcpus,
        server_memory_mib: SERVER_MIB,
        guest_append: String::new(),
        host_extra,
        guest_extra: in_guest(scenario, programs),
        guest,
    })
}

/// A testbed without an experiment on it.
pub fn plain(hypervisor: Hypervisor, accelerator: Accelerator, hosts: usize, servers: usize) -> Spec {
    let guest = crate::scenario::Guest::default();
    let memory_mib = u32::try_from(guest.memory.mib()).unwrap_or(u32::MAX);
    Spec {
        hypervisor,
        accelerator,
        hosts,
        servers,
        guest: Guest {
            name: "guest".into(),
            member: Member { role: Role::Guest, index: 0 },
            memory_mib,
            vcpus: guest.vcpus,
            kind: guest.kind_on(hypervisor),
            drive: None,
            acknowledges: false,
        },
        host_memory_mib: hypervisor.host().memory_mib + memory_mib,
        host_vcpus: 1,
        server_memory_mib: SERVER_MIB,
        guest_append: String::new(),
        host_extra: vec![],
        guest_extra: Seed::new(),
    }
}

/// What the service's developer gives the guest wherever it runs: defaults that a site replaces.
fn service_image() -> Result<Vec<u8>, SetupError> {
    let invalid = |e: &dyn std::fmt::Display| SetupError::Invalid(e.to_string());
    let files = [(SITE_FILE, "nowhere\n"), ("service.json", "{\"name\":\"bench\"}\n")];
    let mut data = ContextData {
        class: ClassName::new("service").map_err(|e| invalid(&e))?,
        priority: Priority(100),
        generation: 1,
        instance_id: InstanceId::new("guest").map_err(|e| invalid(&e))?,
        files: std::collections::BTreeMap::new(),
    };
    for (path, content) in files {
        data.files.insert(RelPath::new(path).map_err(|e| invalid(&e))?, File::private(content));
    }
    Ok(write_iso(&data, &ImageOptions { label: Label::Ctx })?)
}

/// A host: the recontextualizer and what its site knows.
fn host(scenario: &Scenario, site: Site, programs: &Programs, service: &[u8]) -> Seed {
    let mut seed = Seed::new().program("/usr/bin/ctx", &programs.ctx);
    seed.put(SERVICE_IMAGE, 0o644, Content::Bytes(service.to_vec()));
    let folder = "/etc/ctx/infrastructure";
    text(&mut seed, format!("{folder}/{SITE_FILE}"), format!("{}\n", site.name()));
    text(&mut seed, format!("{folder}/{SERVER_FILE}"), format!("{}\n", site.server_address()));
    // The payload makes the image as large as the scenario asks for; its bytes differ between sites
    // and do not compress.
    let bytes = payload(site.name(), usize::try_from(scenario.recontext.payload.bytes()).unwrap_or(0));
    seed.put(format!("{folder}/payload"), 0o644, Content::Bytes(bytes));
    text(
        &mut seed,
        "/etc/ctx/ctx.toml",
        ctx_toml(&scenario.testbed.hypervisor.local_uri(), scenario.recontext.acknowledge),
    );
    unit(&mut seed, "ctx.service", include_str!("../../../ctx/units/ctx.service"), None);
    if let Some(path) = scenario.testbed.hypervisor.host().hook {
        let hook = include_bytes!("../../../ctx/hooks/50-ctx");
        seed.put(path, 0o755, Content::Bytes(hook.to_vec()));
    }
    seed
}

fn ctx_toml(uri: &str, acknowledge: bool) -> String {
    // Unless asked, the four phases of the paper, also where the guest could answer: on Xen it always can. An answer
    // takes emulated guests seconds; one that does not come is known before whoever waits for the run gives up.
    let ack = if acknowledge { "ack = \"auto\"\nack_timeout_s = 60" } else { "ack = \"off\"" };
    format!(
        "# Written by the bench.\nuri = \"{uri}\"\n{ack}\n\n[[class]]\nname = \"infrastructure\"\n\
         priority = 200\ndirectory = \"/etc/ctx/infrastructure\"\n"
    )
}

const FFS_UNIT: &str = include_str!("../../../ffs/units/ffs.service");

/// The guest: the file system that shows its context, and the probe that reads it.
fn in_guest(scenario: &Scenario, programs: &Programs) -> Seed {
    let mut seed =
        Seed::new().program("/usr/bin/ffs", &programs.ffs).program("/usr/bin/bench-probe", &programs.probe);
    seed.directories.insert(CONTEXT_MOUNT.into(), 0o755);
    let hook = match scenario.experiment {
        Experiment::Migration | Experiment::Layers => String::new(),
        Experiment::Gluster => format!(
            "\n[[hook]]\nname = \"gluster\"\npath = \"{SERVER_FILE}\"\nrun = [\"{}\"]\ntimeout_ms = 120000\n",
            super::gluster::HOOK
        ),
    };
    let ack = if scenario.recontext.acknowledge { "ack = \"auto\"\n" } else { "" };
    text(
        &mut seed,
        "/etc/ffs.toml",
        format!(
            "# Written by the bench.\nmount = \"{CONTEXT_MOUNT}\"\nauto = true\nauto_devices = {:?}\n{ack}{hook}",
            slots(scenario).in_guest
        ),
    );
    unit(&mut seed, "ffs.service", FFS_UNIT, Some("multi-user.target"));
    unit(
        &mut seed,
        "bench-probe.service",
        format!(
            "[Unit]\nDescription=Heartbeat for the bench\nAfter=systemd-networkd.service\n\n\
             [Service]\nExecStart=/usr/bin/bench-probe --file {CONTEXT_MOUNT}/{SITE_FILE} --to {}:{} --interval {}\n\
             Restart=always\nRestartSec=1\n",
            Network::bench_address(),
            beats::PORT,
            beats::INTERVAL.as_millis(),
        ),
        Some("multi-user.target"),
    );
    if scenario.experiment == Experiment::Gluster {
        super::gluster::in_guest(&mut seed);
    }
    seed
}

/// Bytes that follow from a name, for files that shall differ and not compress.
fn payload(name: &str, length: usize) -> Vec<u8> {
    use rand::{Rng as _, SeedableRng as _};
    use sha2::Digest as _;
    let mut bytes = vec![0; length];
    rand_chacha::ChaCha8Rng::from_seed(sha2::Sha256::digest(name).into()).fill_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smoke(change: impl Fn(&str) -> String) -> Scenario {
        let text = include_str!("../../../scenarios/smoke.toml");
        // Without its profiles, which a change need not fit.
        let text = text.split("[profile").next().unwrap();
        Scenario::parse("smoke.toml", &change(text), None).unwrap()
    }

    #[test]
    fn what_is_not_done_yet_is_refused_and_never_replaced_by_something_else() {
        assert_eq!(supported(&smoke(str::to_owned)), Ok(()));
        assert_eq!(supported(&smoke(|text| text.replace("\"replace\"", "\"swap\""))), Ok(()));
        let prestage = smoke(|text| text.replace("\"replace\"", "\"prestage\""));
        assert_eq!(supported(&prestage), Err(NotYet::Strategy("prestage")));
        assert_eq!(supported(&smoke(|text| text.replace("\"kvm\"", "\"xen\""))), Ok(()));
        let three = smoke(|text| text.replace("hosts = 2", "hosts = 3"));
        assert_eq!(supported(&three), Err(NotYet::Hosts(3)));
    }

    #[test]
    fn an_acknowledgement_is_asked_of_the_domain_the_daemon_and_the_file_system() {
        let quiet = smoke(str::to_owned);
        let asked = smoke(|text| text.replace("[recontext]", "[recontext]\nacknowledge = true"));
        let folder = tempfile::tempdir().unwrap();
        for name in ["ctx", "ffs", "bench-probe"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let programs = Programs::beside(folder.path()).unwrap();
        let read = |seed: &Seed, path: &str| match &seed.files.get(Path::new(path)).unwrap().content {
            Content::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            Content::Copy(_) => panic!("{path} is another program's file"),
        };
        for (scenario, acknowledges) in [(quiet, false), (asked, true)] {
            let spec = spec(&scenario, Accelerator::Tcg, &programs).unwrap();
            assert_eq!(spec.guest.acknowledges, acknowledges);
            let path = "/etc/ctx/ctx.toml";
            let config = ctx::config::Config::parse(Path::new(path), &read(&spec.host_extra[0], path));
            assert_eq!(config.unwrap().ack_timeout.is_some(), acknowledges);
            let config = read(&spec.guest_extra, "/etc/ffs.toml");
            assert_eq!(config.contains("ack = \"auto\""), acknowledges, "{config}");
        }
    }

    #[test]
    fn hosts_have_the_processors_that_are_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ctx", "ffs", "bench-probe"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let programs = Programs::beside(folder.path()).unwrap();
        let vcpus = |scenario: &Scenario| spec(scenario, Accelerator::Tcg, &programs).unwrap().host_vcpus;
        assert_eq!(vcpus(&smoke(str::to_owned)), 1);
        assert_eq!(vcpus(&smoke(|text| text.replace("hosts = 2", "hosts = 2\nhost_vcpus = 4"))), 4);
    }

    #[test]
    fn sites_differ_in_their_infrastructure_alone() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ctx", "ffs", "bench-probe"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let programs = Programs::beside(folder.path()).unwrap();
        let spec = spec(&smoke(str::to_owned), Accelerator::Tcg, &programs).unwrap();
        let [a, b] = <[Seed; 2]>::try_from(spec.host_extra).unwrap();
        let different: Vec<_> = a
            .files
            .iter()
            .filter(|(path, file)| b.files.get(*path) != Some(file))
            .map(|(path, _)| path)
            .collect();
        assert!(different.iter().all(|path| path.starts_with("/etc/ctx/infrastructure")), "{different:?}");
        assert_eq!(different.len(), 3);
        std::fs::remove_file(folder.path().join("ffs")).unwrap();
        assert!(Programs::beside(folder.path()).unwrap_err().to_string().contains("ci/build"));
    }
}
