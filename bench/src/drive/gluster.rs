//! One trial of the GlusterFS experiment: a file-system client migrates away from its server.
//!
//! A link depends on where the client is. At home (site `remote`) the client is near the remote
//! server and has the scenario's `local` link to it; once it has migrated, that server is far
//! away, behind the `remote` link, and the local server is near. So a trial reads, from top to
//! bottom: Bonnie++ at home; migrate; the link to the remote server becomes the long one; Bonnie++
//! *before* recontextualization; recontextualize, and the guest's own hook re-attaches to the local
//! server; Bonnie++ *after*.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use super::lab::{DriveError, Lab, VISIBLE};
use super::links;
use super::setup::{CONTEXT_MOUNT, SERVER_FILE};
use crate::derive::measure::Measures;
use crate::exec::Exec as _;
use crate::image::seed::{Content, Seed};
use crate::metric;
use crate::observe::clock;
use crate::observe::trace::{Recorder, What};
use crate::plan::Trial;
use crate::scenario::{self, Scenario};
use crate::shape::{self, Asked, Calibration, Counters, Link, Shape, Tolerance};
use crate::store::RunFolder;
use crate::testbed::address::Network;
use crate::testbed::site::Site;
use crate::testbed::ssh::Ssh;
use crate::workload::bonnie::{self, Run, Throughput, Value};
use crate::workload::gluster::{self, Client, Volume, hook};

/// The guest's program that re-attaches the volume through the server that the context names.
pub const HOOK: &str = "/usr/lib/bench/gluster-attach";

/// How long the client may take to re-attach after its context has changed.
const ATTACH: Duration = Duration::from_secs(180);
/// The longest that one run of Bonnie++ may take.
const BONNIE: Duration = Duration::from_secs(1800);

fn volume() -> Volume {
    let servers = Site::ALL.map(Site::server_address);
    Volume::new(0x6265_6e63_682d_766f_6c75_6d65_0000_0001, servers)
}

fn client() -> Client {
    Client { context: format!("{CONTEXT_MOUNT}/{SERVER_FILE}"), script: HOOK.to_owned(), ..Client::default() }
}

/// What the guest's seed has for this experiment.
pub(super) fn in_guest(seed: &mut Seed) {
    seed.put(HOOK, 0o755, Content::Bytes(hook::hook(&volume(), &client()).into_bytes()));
}

/// A link of the scenario as the shaping takes it.
fn link(link: &scenario::Link) -> Link {
    Link {
        rate: link.rate.bits_per_second(),
        delay: link.delay.duration(),
        variation: link.jitter.fraction(),
        correlation: link.correlation.fraction(),
        distribution: match link.distribution {
            scenario::Distribution::Normal => shape::Distribution::Normal,
            scenario::Distribution::Uniform => shape::Distribution::Uniform,
            scenario::Distribution::Pareto => shape::Distribution::Pareto,
            scenario::Distribution::Paretonormal => shape::Distribution::ParetoNormal,
        },
    }
}

/// Both links of a scenario under a dilation.
#[derive(Debug, Clone, Copy)]
struct Links {
    far: Link,
    near: Link,
    dilation: f64,
}

impl Links {
    fn of(scenario: &Scenario, dilation: f64) -> Result<Links, DriveError> {
        let network = scenario.network.as_ref().ok_or_else(|| {
            DriveError::Workload(
                "the scenario has no [network]: the gluster experiment needs its links".into(),
            )
        })?;
        let dilated = |asked: &scenario::Link| {
            link(asked).dilated(dilation).map_err(|e| DriveError::Workload(format!("network: {e}")))
        };
        Ok(Links { far: dilated(&network.remote)?, near: dilated(&network.local)?, dilation })
    }

    /// The link between the client and a site's server while the client is at another or the same.
    fn between(&self, client: Site, server: Site) -> Link {
        if client == server { self.near } else { self.far }
    }
}

/// Servers with a volume, links that were measured, and a client that is attached.
pub struct GlusterLab {
    guest: Ssh,
    devices: [String; 2],
    block: Links,
    files: Links,
}

impl GlusterLab {
    /// Starts the servers, makes both links, and measures every path before anything counts.
    ///
    /// # Errors
    /// When a server does not start, or a link is not as asked.
    pub async fn up(lab: &Lab, folder: &RunFolder) -> Result<GlusterLab, DriveError> {
        let scenario = &lab.scenario;
        let emulated = lab.testbed.accelerator == crate::doctor::Accelerator::Tcg;
        let block = Links::of(scenario, scenario.testbed.dilation_on(emulated))?;
        let files = Links::of(scenario, scenario.testbed.file_dilation_on(emulated))?;
        let guest = lab.guest_ssh().await?;
        let servers = Site::ALL.map(|site| &lab.testbed.server(site).ssh);
        start(servers).await?;
        let mut devices = Vec::new();
        for site in Site::ALL {
            devices.push(shape::device_of(servers[site as usize], site.server_address()).await?);
        }
        let devices: [String; 2] =
            devices.try_into().map_err(|_| DriveError::Workload("a testbed has two servers".into()))?;
        let this = GlusterLab { guest, devices, block, files };
        this.calibrate(lab, folder).await?;
        Ok(this)
    }

    /// Gives the servers empty bricks again, after a client that was ended while it wrote.
    ///
    /// # Errors
    /// When a server does not start.
    pub async fn restore(&self, lab: &Lab) -> Result<(), DriveError> {
        start(Site::ALL.map(|site| &lab.testbed.server(site).ssh)).await
    }

    fn shape(&self, lab: &Lab, site: Site, link: Link) -> Shape {
        let client = lab.testbed.guest.member.address(Network::Data);
        Shape { device: self.devices[site as usize].clone(), client, link }
    }

    /// Makes the links that a client at `client` has to both servers, and reads them back.
    async fn place(&self, lab: &Lab, client: Site, links: &Links) -> Result<(), DriveError> {
        for site in Site::ALL {
            let shape = self.shape(lab, site, links.between(client, site));
            shape::apply(&lab.testbed.server(site).ssh, &shape).await?;
        }
        Ok(())
    }

    /// Measures all paths without and with shaping, writes both down, and refuses what is not as asked.
    async fn calibrate(&self, lab: &Lab, folder: &RunFolder) -> Result<(), DriveError> {
        let servers = Site::ALL.map(|site| &lab.testbed.server(site).ssh);
        let mut unshaped = Vec::new();
        for site in Site::ALL {
            unshaped
                .push(shape::measure_path(&self.guest, servers[site as usize], site.server_address()).await?);
        }
        let between = shape::measure_path(servers[0], servers[1], Site::Local.server_address()).await?;
        // As it will be after the migration: one server far, one near.
        self.place(lab, Site::Local, &self.block).await?;
        let mut shaped = Vec::new();
        for site in Site::ALL {
            shaped
                .push(shape::measure_path(&self.guest, servers[site as usize], site.server_address()).await?);
        }
        let asked: Vec<Asked> = Site::ALL
            .iter()
            .map(|&site| Asked {
                name: match site {
                    Site::Remote => "client ↔ remote server",
                    Site::Local => "client ↔ local server",
                },
                link: self.block.between(Site::Local, site),
                before: &unshaped[site as usize],
                after: &shaped[site as usize],
                judge_rate: true,
            })
            .collect();
        let share = lab.scenario.network.as_ref().map_or(0.3, |network| network.tolerance.fraction());
        let tolerance = Tolerance { round_trip: share, rate: share, ..Tolerance::default() };
        let calibration = Calibration::of(&asked, &between, tolerance);
        let verdict = calibration.verdict();
        let measured = links::Measured {
            paths: [("remote", &shaped[0]), ("local", &shaped[1]), ("server-server", &between)],
            links: json!({
                "asked": { "remote": self.block.far, "local": self.block.near, "dilation": self.block.dilation },
                "unshaped": { "remote": unshaped[0], "local": unshaped[1], "server-server": between },
                "shaped": { "remote": shaped[0], "local": shaped[1] },
                "checks": calibration,
            }),
            qdiscs: self.qdiscs(lab).await?,
            refused: verdict.as_ref().err().map(ToString::to_string),
        };
        links::write(folder, &lab.conditions, measured)?;
        verdict.map_err(|refusal| {
            let undilated = lab.scenario.network.iter().flat_map(|n| [link(&n.remote), link(&n.local)]);
            let links: Vec<Link> = undilated.collect();
            let fits = shape::choose_dilation(&unshaped[Site::Local as usize], &links).ok();
            let hint = fits.filter(|&d| d > self.block.dilation).map_or_else(String::new, |d| {
                format!("; now it carries these links with testbed.dilation = {d}")
            });
            DriveError::Workload(format!("{refusal}{hint}"))
        })
    }

    /// The kernel's own words about the shaping, for the manifest.
    async fn qdiscs(&self, lab: &Lab) -> Result<serde_json::Value, DriveError> {
        let mut all = serde_json::Map::new();
        for site in Site::ALL {
            let server = &lab.testbed.server(site).ssh;
            let text = server.demand("read the qdiscs", "tc -j qdisc show", Duration::from_secs(60)).await?;
            all.insert(server.name().to_owned(), serde_json::from_str(&text).unwrap_or(json!(text)));
        }
        Ok(serde_json::Value::Object(all))
    }

    /// A whole trial. What Bonnie++ gives goes to `measures`, what else is seen to `recorder`.
    ///
    /// # Errors
    /// When the client could not be brought home, or the migration or a run of Bonnie++ failed.
    pub async fn trial(
        &self,
        lab: &Lab,
        trial: &Trial,
        folder: &RunFolder,
        recorder: &Recorder<'_>,
        measures: &mut Measures,
    ) -> Result<(), DriveError> {
        // A client on its way is not slowed down by links of the trial before.
        self.place(lab, Site::Remote, &self.block).await?;
        lab.prepare(trial.arm, recorder).await?;
        self.guest.ensure().await?;
        self.attached(Site::Remote).await?;
        self.bonnie(lab, trial, folder, measures, metric::PHASE_HOME, Site::Remote).await?;

        lab.recontextualizer.start(Site::Local).await?;
        lab.read_clocks(recorder).await?;
        let moved =
            lab.guest.migrate(Site::Remote, Site::Local, &|at, what| recorder.note_at(at, what)).await?;
        lab.wait_for_life(moved.arrived).await;
        lab.read_clocks(recorder).await?;
        self.bonnie(lab, trial, folder, measures, metric::PHASE_BEFORE, Site::Local).await?;

        let from = Instant::now();
        recorder.note_at(from, What::Requested { host: Site::Local.host_name().to_owned() });
        lab.recontextualizer.trigger(Site::Local, &lab.testbed.guest.name).await?;
        lab.wait_for_record(Site::Local, from, recorder).await?;
        lab.visible(Site::Local, from, VISIBLE).await?;
        lab.read_clocks(recorder).await?;
        self.attached(Site::Local).await?;
        self.bonnie(lab, trial, folder, measures, metric::PHASE_AFTER, Site::Local).await?;
        self.same(lab).await
    }

    /// Waits until the guest's own hook has attached the volume through a site's server.
    async fn attached(&self, site: Site) -> Result<(), DriveError> {
        let server = IpAddr::V4(site.server_address());
        gluster::drive::await_attached(&self.guest, server, ATTACH).await.map(drop).map_err(workload)
    }

    /// Both bricks hold the same, and nothing waits for healing.
    async fn same(&self, lab: &Lab) -> Result<(), DriveError> {
        let [remote, local] = Site::ALL.map(|site| &lab.testbed.server(site).ssh);
        let volume = volume();
        for server in [remote, local] {
            gluster::drive::await_clean(server, &volume, Duration::from_secs(60)).await.map_err(workload)?;
        }
        gluster::verify_bricks(remote, local, &volume).await.map(drop).map_err(workload)
    }

    /// Bonnie++ at one point of a trial: throughput, and file operations where the plan has them.
    async fn bonnie(
        &self,
        lab: &Lab,
        trial: &Trial,
        folder: &RunFolder,
        measures: &mut Measures,
        phase: &str,
        client_at: Site,
    ) -> Result<(), DriveError> {
        let Some(asked) = &lab.scenario.bonnie else {
            return Err(DriveError::Workload("the scenario has no [bonnie]".into()));
        };
        let name = format!("block{}-{phase}", trial.block);
        let run = |throughput, files| Run {
            directory: format!("{}/bonnie", client().mount),
            name: name.clone(),
            throughput,
            files,
            seed: u32::try_from(lab.scenario.design.seed & 0x7fff_ffff).unwrap_or(1).max(1),
        };
        let mut runs = vec![(run(Some(throughput(asked)), None), &self.block, "throughput")];
        // Figure 7 compares before with after; at home nothing is compared, and each takes minutes.
        if trial.file_operations && phase != metric::PHASE_HOME {
            runs.push((run(None, Some(asked.files)), &self.files, "files"));
        }
        for (run, links, kind) in runs {
            // Made anew for each run, so that its counters are this run's alone.
            self.place(lab, client_at, links).await?;
            let first = measures.len();
            let began = Instant::now();
            let result = bonnie::run(&self.guest, &run, &client().mount, BONNIE).await.map_err(workload)?;
            let raw = folder.raw_file(&format!("bonnie/{name}-{kind}.csv"))?;
            std::fs::write(&raw, format!("{}\n", result.raw))
                .map_err(|e| DriveError::Workload(format!("cannot write {}: {e}", raw.display())))?;
            for row in result.rows() {
                match row.value {
                    Value::Measured(value) => measures.add(row.metric, phase, value, row.unit),
                    // Bonnie++ prints `+++++`.
                    Value::TooFast => measures.censored(row.metric, phase, row.unit),
                }
            }
            // Bonnie++ divides by times of the guest's clock.
            if let Err(reason) = clock::judge_beats(&lab.beats.since(began)) {
                measures.invalidate(first, &[], &reason);
            }
            if kind == "throughput" {
                self.server_bytes(lab, measures, phase, client_at, links).await?;
            }
            if (links.dilation - lab.conditions.dilation).abs() > f64::EPSILON {
                measures.dilated(first, links.dilation);
            }
        }
        Ok(())
    }

    /// Which server carried the data: what each exchanged with the client since the links were made.
    async fn server_bytes(
        &self,
        lab: &Lab,
        measures: &mut Measures,
        phase: &str,
        client_at: Site,
        links: &Links,
    ) -> Result<(), DriveError> {
        for site in Site::ALL {
            let shape = self.shape(lab, site, links.between(client_at, site));
            let Counters { to_client, from_client, .. } =
                shape::counters(&lab.testbed.server(site).ssh, &shape).await?;
            let bytes = (to_client + from_client) as f64;
            measures.add(metric::SERVER_BYTES, &format!("{phase}:{}", site.name()), bytes, "B");
        }
        Ok(())
    }
}

/// Starts both servers with empty bricks.
async fn start(servers: [&Ssh; 2]) -> Result<(), DriveError> {
    let volume = volume();
    for (own, server) in servers.iter().enumerate() {
        gluster::prepare_server(*server, &volume).await.map_err(workload)?;
        gluster::start_server(*server, &volume, own).await.map_err(workload)?;
    }
    for server in servers {
        gluster::await_peer(server).await.map_err(workload)?;
    }
    Ok(())
}

/// What Bonnie++ is told. Nothing is rounded: the scenario's check takes whole units only.
fn throughput(asked: &scenario::Bonnie) -> Throughput {
    let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    Throughput {
        file_mib: number(asked.size.mib()),
        chunk_kib: number(asked.chunk.kib()),
        seeks: asked.seeks,
        per_char_mib: (asked.per_char.bytes() > 0).then(|| number(asked.per_char.mib())),
    }
}

fn workload(error: impl std::fmt::Display) -> DriveError {
    DriveError::Workload(error.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scenario::Size;

    const TEXT: &str = "title = \"t\"\nexperiment = \"gluster\"\n\
        [design]\narms = [\"recontext\"]\nblocks = 1\nseed = 1\n\
        [network.remote]\nrate = \"25 Mbit/s\"\ndelay = \"10 ms\"\n\
        [network.local]\nrate = \"500 Mbit/s\"\ndelay = \"1.02 ms\"\n";

    proptest! {
        /// Any size, whole or not: what is not refused is told to Bonnie++ as it is.
        #[test]
        fn bonnie_is_told_what_the_scenario_says(
            size in (1_u64..64, 0..4_u64), per_char in (0_u64..4, 0..4_u64), chunk in 6_u32..22,
        ) {
            let bytes = |(mib, quarters): (u64, u64)| Size::from_bytes((mib << 20) + quarters * (256 << 10));
            let (size, per_char, chunk) = (bytes(size), bytes(per_char), Size::from_bytes(1 << chunk));
            let text = format!(
                "{TEXT}[bonnie]\nsize = \"{size}\"\nper_char = \"{per_char}\"\nchunk = \"{chunk}\"\n"
            );
            let mib = 1 << 20;
            let good = size.bytes() % mib == 0 && per_char.bytes() % mib == 0 && per_char <= size
                && (1 << 10..=mib).contains(&chunk.bytes());
            let read = Scenario::parse("t.toml", &text, None);
            prop_assert_eq!(read.is_ok(), good, "{}", text);
            if let Ok(scenario) = read {
                let told = throughput(&scenario.bonnie.unwrap());
                prop_assert_eq!(u64::from(told.file_mib) * mib, size.bytes());
                prop_assert_eq!(u64::from(told.chunk_kib) << 10, chunk.bytes());
                prop_assert_eq!(u64::from(told.per_char_mib.unwrap_or(0)) * mib, per_char.bytes());
                prop_assert_ne!(told.per_char_mib, Some(0));
            }
        }
    }

    #[test]
    fn the_paper_s_scenarios_say_what_bonnie_is_told() {
        for text in [
            include_str!("../../../scenarios/paper/gluster-kvm.toml"),
            include_str!("../../../scenarios/paper/gluster-xen.toml"),
        ] {
            for (profile, words) in [(None, "-s 8:64k:100 -r 4 -f1"), (Some("quick"), "-s 6:64k:30 -r 3 -f")]
            {
                let scenario = Scenario::parse("t.toml", text, profile).unwrap();
                let run = Run {
                    directory: "/d".into(),
                    name: "n".into(),
                    throughput: Some(throughput(&scenario.bonnie.unwrap())),
                    files: None,
                    seed: 1,
                };
                let command = run.command().unwrap();
                assert!(command.contains(&format!(" {words} -n ")), "{command}");
            }
        }
    }
}
