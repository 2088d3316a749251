//! Bringing a testbed up: networks, keys, seeds, then all machines side by side.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinSet;

use super::address::{Member, Network, Role};
use super::domain::{GUEST_FOLDER, Guest};
use super::hypervisor::Hypervisor;
use super::machine::{Accelerator, Disk, Machine};
use super::namespace::NamespaceError;
use super::network::{self, NetworkError};
use super::node::{BootError, Node};
use super::plain::{PlainPath, Private};
use super::seed;
use super::site::Site;
use super::ssh::{Keys, SshError};
use super::tsc;
use crate::image::seed::Seed;
use crate::image::{Image, KERNEL_ARGUMENTS};

/// What shall be up.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What runs guests on the hosts.
    pub hypervisor: Hypervisor,
    /// What runs the hosts, as the probe found it.
    pub accelerator: Accelerator,
    /// How many hosts, at most as many as there are sites.
    pub hosts: usize,
    /// How many file servers beside them.
    pub servers: usize,
    /// The guest that the hosts run.
    pub guest: Guest,
    /// Memory of a host, in MiB, the guest's included.
    pub host_memory_mib: u32,
    /// Virtual processors of a host.
    pub host_vcpus: u32,
    /// Memory of a file server, in MiB.
    pub server_memory_mib: u32,
    /// Words that the guest's kernel command line ends with.
    pub guest_append: String,
    /// What a host has beyond the common files.
    pub host_extra: Vec<Seed>,
    /// What the guest has beyond the common files.
    pub guest_extra: Seed,
}

/// The images that machines boot from.
#[derive(Debug, Clone)]
pub struct Images {
    /// Of hosts.
    pub host: Image,
    /// Of guests and file servers.
    pub guest: Image,
}

impl Images {
    /// What is known of them, for a run's manifest.
    pub fn describe(&self) -> serde_json::Value {
        serde_json::json!({ "host": self.host.manifest, "guest": self.guest.manifest })
    }
}

/// Why a testbed did not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The state folder.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The keys.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// A seed disk.
    #[error("seed of {machine}: {source}")]
    Seed {
        /// Name of the machine.
        machine: String,
        /// The error.
        #[source]
        source: crate::image::Error,
    },
    /// An image could not be linked into the private folder.
    #[error("cannot link the image's files into {folder}: {source}")]
    Link {
        /// The private folder.
        folder: PlainPath,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A machine.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A task ended abnormally.
    #[error("booting stopped: {0}")]
    Join(#[from] tokio::task::JoinError),
}

/// Machines that are up.
pub struct Testbed {
    /// Hosts, by site.
    pub hosts: Vec<Node>,
    /// File servers, by site.
    pub servers: Vec<Node>,
    /// The guest that the hosts can run.
    pub guest: Guest,
    /// Words of the guest's kernel command line.
    pub guest_append: String,
    /// Keys of this run.
    pub keys: Keys,
    /// What runs the hosts, as QMP reported it.
    pub accelerator: Accelerator,
    /// What runs guests on the hosts.
    pub hypervisor: Hypervisor,
}

/// What all machines have on their kernel command line beside the image's own. Interfaces keep the
/// kernel's names, which follow the order in which they are given.
const APPEND: &str = "net.ifnames=0 systemd.show_status=no random.trust_cpu=on";

/// The kernel command line of a machine that this runner runs itself.
fn machine_append(accelerator: Accelerator, console: &str) -> String {
    let append = format!("console={console} {APPEND} {KERNEL_ARGUMENTS}");
    match tsc::kilohertz().filter(|_| accelerator == Accelerator::Tcg) {
        Some(khz) => format!("{append} tsc_early_khz={khz}"),
        None => append,
    }
}

/// The kernel command line of the guest.
fn guest_append(spec: &Spec) -> String {
    let console = spec.hypervisor.guest_console(spec.guest.kind);
    let disks = spec.hypervisor.guest_disks(spec.guest.kind);
    format!("console={console} {APPEND} {KERNEL_ARGUMENTS} {disks} {}", spec.guest_append).trim().to_owned()
}

/// The emulated processor of a machine that runs no guests.
const EMULATED_CPU: &str = "max,-la57";

/// How long a machine may take to boot, emulated on a busy runner.
const BOOT_DEADLINE: Duration = Duration::from_secs(240);

/// A file server's name.
pub fn server_name(site: Site) -> String {
    format!("server-{}", site.name())
}

fn names(spec: &Spec) -> Vec<(String, Ipv4Addr)> {
    let mut names = Vec::new();
    for site in Site::ALL {
        names.push((site.host_name().to_owned(), site.host().address(Network::Management)));
        names.push((server_name(site), site.server().address(Network::Management)));
    }
    names.push((spec.guest.name.clone(), spec.guest.member.address(Network::Management)));
    names
}

/// What a machine boots from, as QEMU is given it.
struct Boot {
    kernel: PlainPath,
    initrd: PlainPath,
    root: PlainPath,
    /// What is started before the kernel, in images that have it.
    hypervisor: Option<PlainPath>,
}

impl Boot {
    /// Links the files of an image into the private folder.
    fn link(state: &Private, name: &str, image: &Image) -> std::io::Result<Boot> {
        let link = |what: &str, file: &Path| state.link(&format!("{name}.{what}"), file);
        Ok(Boot {
            kernel: link("vmlinuz", &image.kernel())?,
            initrd: link("initrd", &image.initrd())?,
            root: link("root", &image.root())?,
            hypervisor: image.hypervisor().map(|file| link("hypervisor", &file)).transpose()?,
        })
    }
}

/// Brings a testbed up in the bench's namespace.
///
/// `state` is the folder in memory that goes with the namespace, `logs` keeps the machines' consoles.
///
/// # Errors
/// The first machine that does not come up, with its console's last lines; the others are stopped.
pub async fn up(spec: &Spec, images: &Images, state: &Private, logs: &Path) -> Result<Testbed, UpError> {
    let sites = &Site::ALL[..];
    let hosts: Vec<Site> = sites.iter().copied().take(spec.hosts).collect();
    let servers: Vec<Site> = sites.iter().copied().take(spec.servers).collect();
    let members: Vec<Member> =
        hosts.iter().map(|s| s.host()).chain(servers.iter().map(|s| s.server())).collect();
    network::up(&members).await?;
    let names = names(spec);
    let keys = Keys::make(state.path(), &names).await?;

    let write = |machine: &str, content: &Seed| -> Result<PlainPath, UpError> {
        let path = state.join(format!("{machine}.seed"));
        crate::image::seed::write(content, path.as_ref())
            .map_err(|source| UpError::Seed { machine: machine.to_owned(), source })?;
        Ok(path)
    };
    let mut guest_seed = seed::common(&spec.guest.name, spec.guest.member, &keys, &names, &[]);
    seed::add(&mut guest_seed, &spec.guest_extra);
    let guest_seed = write(&spec.guest.name, &guest_seed)?;

    let link = |source| UpError::Link { folder: state.path().clone(), source };
    let of_host = Boot::link(state, "host-image", &images.host).map_err(link)?;
    let of_guest = Boot::link(state, "guest-image", &images.guest).map_err(link)?;

    let host = spec.hypervisor.host();
    let mut machines = Vec::new();
    for (i, &site) in hosts.iter().enumerate() {
        let name = site.host_name();
        let mut content = seed::common(name, site.host(), &keys, &names, host.units);
        content = content
            .program(format!("{GUEST_FOLDER}/vmlinuz"), images.guest.kernel())
            .program(format!("{GUEST_FOLDER}/initrd"), images.guest.initrd());
        seed::add(&mut content, &spec.hypervisor.seed(spec.accelerator));
        if let Some(extra) = spec.host_extra.get(i) {
            seed::add(&mut content, extra);
        }
        machines.push(Machine {
            name: name.to_owned(),
            member: site.host(),
            memory_mib: spec.host_memory_mib,
            vcpus: spec.host_vcpus,
            multiboot: spec.hypervisor.multiboot(
                of_host.hypervisor.clone(),
                spec.host_memory_mib,
                spec.guest.memory_mib,
            ),
            emulated_cpu: host.emulated_cpu,
            kernel: of_host.kernel.clone(),
            initrd: of_host.initrd.clone(),
            append: machine_append(spec.accelerator, host.console),
            disks: vec![
                Disk { serial: "root".into(), path: of_host.root.clone() },
                Disk { serial: "seed".into(), path: write(name, &content)? },
                Disk { serial: "guest-root".into(), path: of_guest.root.clone() },
                Disk { serial: "guest-seed".into(), path: guest_seed.clone() },
            ],
            qmp: state.join(format!("{name}.qmp")),
        });
    }
    for &site in &servers {
        let name = server_name(site);
        let content = seed::common(&name, site.server(), &keys, &names, &[]);
        machines.push(Machine {
            name: name.clone(),
            member: site.server(),
            memory_mib: spec.server_memory_mib,
            vcpus: 1,
            multiboot: None,
            emulated_cpu: EMULATED_CPU,
            kernel: of_guest.kernel.clone(),
            initrd: of_guest.initrd.clone(),
            append: machine_append(spec.accelerator, "ttyS0"),
            disks: vec![
                Disk { serial: "root".into(), path: of_guest.root.clone() },
                Disk { serial: "seed".into(), path: write(&name, &content)? },
            ],
            qmp: state.join(format!("{name}.qmp")),
        });
    }

    let mut tasks = JoinSet::new();
    for machine in machines {
        let (keys, logs, accelerator) = (keys.clone(), logs.to_owned(), spec.accelerator);
        tasks.spawn(async move { Node::boot(machine, accelerator, &keys, &logs, BOOT_DEADLINE).await });
    }
    let mut nodes = Vec::new();
    // Dropping the set on an error drops the other machines, and with them their processes.
    while let Some(node) = tasks.join_next().await {
        nodes.push(node??);
    }
    nodes.sort_by_key(|node| node.machine.member);
    let (hosts, servers): (Vec<Node>, Vec<Node>) =
        nodes.into_iter().partition(|node| node.machine.member.role == Role::Host);
    Ok(Testbed {
        hosts,
        servers,
        guest: spec.guest.clone(),
        guest_append: guest_append(spec),
        keys,
        accelerator: spec.accelerator,
        hypervisor: spec.hypervisor,
    })
}

impl Testbed {
    /// The host of a site.
    pub fn host(&self, site: Site) -> &Node {
        &self.hosts[site as usize]
    }

    /// The file server of a site.
    pub fn server(&self, site: Site) -> &Node {
        &self.servers[site as usize]
    }

    /// Stops all machines.
    pub async fn down(self) {
        let mut tasks = JoinSet::new();
        for node in self.hosts.into_iter().chain(self.servers) {
            tasks.spawn(node.stop());
        }
        while tasks.join_next().await.is_some() {}
    }
}
