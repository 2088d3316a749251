//! `bench run` and `bench resume`: from a scenario to a report.

use anyhow::Context as _;

use super::{image_progress, programs};
use crate::image::seed::Seed;
use crate::image::{Cache, Recipe, build_all};

use crate::testbed::address::{Member, Role};
use crate::testbed::domain::Guest;
use crate::testbed::hypervisor::Hypervisor;
use crate::testbed::machine::Accelerator;
use crate::testbed::up::{Images, Spec};

/// The images of a testbed, built when they are not in the cache.
pub(super) fn images(hypervisor: Hypervisor) -> anyhow::Result<Images> {
    let cache = Cache::open()?;
    let mut images = build_all(
        &[Recipe::built_in(hypervisor.host_recipe())?, Recipe::built_in("guest")?],
        &cache,
        false,
        &image_progress,
    )?
    .into_iter();
    let (host, guest) = images.next().zip(images.next()).context("two recipes give two images")?;
    Ok(Images { host, guest })
}

pub(super) struct Setup {
    pub(super) spec: Spec,
    pub(super) images: Images,
}

/// A testbed without an experiment on it.
pub(super) fn plain_testbed(hosts: usize, servers: usize) -> anyhow::Result<Setup> {
    let _ = programs()?;
    let guest = Guest {
        name: "guest".into(),
        member: Member { role: Role::Guest, index: 0 },
        memory_mib: 256,
        vcpus: 1,
    };
    let spec = Spec {
        hypervisor: Hypervisor::Kvm,
        accelerator: Accelerator::Tcg,
        hosts,
        servers,
        guest,
        host_memory_mib: 1536,
        server_memory_mib: 320,
        guest_append: String::new(),
        host_extra: vec![],
        guest_extra: Seed::new(),
    };
    Ok(Setup { spec, images: images(Hypervisor::Kvm)? })
}
