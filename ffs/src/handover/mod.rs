//! Another program takes over a mount that is in use.
//!
//! The process stays and becomes another program (execve(2)): its number, its parent and children, its
//! control group, its pending signals, and every descriptor go on, so that a service manager, a
//! container whose first process this is, and whoever sends signals have nothing to learn. What lives in
//! memory is written down before ([`state`]) and read again after. Programs notice nothing: what they
//! ask meanwhile waits in the kernel's queue.
//!
//! 1. *Rehearsal.* The successor is started as a child, with the state and all descriptors. It builds
//!    everything that it will need, and says so. If it cannot, it says why, and nothing has happened.
//! 2. *Drain.* The threads that answer the kernel are stopped between two requests ([`drain`]).
//! 3. *Commitment.* The state is written again, for what the kernel knows has changed since, and the
//!    process becomes the successor.
//! 4. A successor that fails nevertheless, before it has read the first request, becomes the program
//!    before it again: that lives in a descriptor as long, whatever has happened to its file.
//!
//! | module | one idea |
//! |---|---|
//! | [`state`] | what is handed over, and its format |
//! | `pack`, `unpack` | live objects to lists and back |
//! | [`drain`] | no request is lost |
//! | `greet` | a session that begins in the middle |
//! | [`program`] | who is to take over, and whether it can |

pub(crate) mod drain;
mod greet;
mod pack;
pub(crate) mod program;
pub(crate) mod state;
mod unpack;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::announced::Cover;
use crate::edit::Desired;
use crate::fs::Shared;
use crate::generation::Generation;
use crate::merge::{Inodes, Node};
use crate::mount::{Mount, Resumed};
use crate::table::{Handles, Table};
use crate::watch::PrivateMount;
use state::{Connection, Fd, Kernel, StateError, Tree};

pub(crate) use greet::session;

/// A mount, ready to be taken up.
pub(crate) struct Resumable {
    pub(crate) shared: Shared,
    pub(crate) inodes: Inodes,
    pub(crate) connection: Resumed,
    pub(crate) before: Option<(Arc<Generation>, Desired)>,
}

/// Writes down a mount and the generation kept for a rollback. `fuse` and `device` are a descriptor of
/// the connection and the number of the mounted device. What is returned besides are descriptors that are
/// named and nobody else keeps open.
pub(crate) fn pack(
    mount: &Mount,
    before: Option<(&Generation, &Desired)>,
    fuse: Fd,
    device: u64,
) -> (Connection, Tree, Kernel, Vec<OwnedFd>) {
    let (shared, inodes) = mount.parts();
    let private = mount.with_private(|private| match private {
        Ok(private) => Ok(state::PrivateMount {
            root: private.root().upgrade().map_or(-1, |root| root.as_raw_fd()),
            stand_in: private.stand_in(),
        }),
        Err(reason) => Err(reason.clone()),
    });
    let connection = Connection {
        fuse,
        device,
        agreed: shared.agreed.get().copied().unwrap_or_default(),
        private,
        users_mount: shared.users_mount,
        refused_writes: shared.refused.count(),
    };
    // Held until the end: addresses stand for objects as long as these live.
    let (shown, known, (next_handle, open)) = (mount.current(), shared.table.known(), shared.dirs.all());
    let open: Vec<_> = open
        .iter()
        .map(|(handle, dir)| (*handle, dir.lock().unwrap_or_else(PoisonError::into_inner).clone()))
        .collect();
    let covered = shared.announced.all_covered();
    let mut packer = pack::Packer::default();
    let shown = packer.generation(&shown);
    let before = before.map(|(generation, desired)| (packer.generation(generation), desired.into()));
    let kernel = Kernel {
        known: known.iter().map(|(node, references)| (packer.node(node), *references)).collect(),
        ways: shared.table.ways(),
        next_handle,
        open_dirs: open.iter().map(|(handle, dir)| (*handle, packer.dir(dir))).collect(),
        covered: covered
            .iter()
            .map(|((parent, name), cover)| {
                let node = packer.node(&cover.node);
                (*parent, state::Bytes(name.clone()), state::Bytes(cover.path.clone()), node)
            })
            .collect(),
        stale: shared.stale.load(std::sync::atomic::Ordering::Relaxed),
    };
    let (tree, files) = packer.finish(shown, before, inodes);
    (connection, tree, kernel, files)
}

/// Builds again what [`pack`] wrote down.
///
/// # Errors
/// [`StateError`]: it contradicts itself, or a descriptor is missing.
pub(crate) fn unpack(connection: &Connection, tree: &Tree, kernel: &Kernel) -> Result<Resumable, StateError> {
    let objects = unpack::Unpacked::new(tree)?;
    let known = kernel.known.iter().map(|(node, references)| Ok((objects.node(*node)?, *references)));
    let known = known.collect::<Result<Vec<_>, StateError>>()?;
    if !known.iter().any(|(node, _)| matches!(node, Node::Dir(dir) if dir.ino == crate::merge::ROOT)) {
        return Err(StateError::Wrong("the kernel does not know the root"));
    }
    let open = kernel.open_dirs.iter().map(|(handle, dir)| Ok((*handle, Mutex::new(objects.dir(*dir)?))));
    let open = open.collect::<Result<Vec<_>, StateError>>()?;
    let private = match &connection.private {
        Ok(private) => {
            let root = unpack::descriptor(private.root)?;
            Ok(PrivateMount::resume(root, connection.agreed.renames_over(), private.stand_in))
        }
        Err(reason) => Err(reason.clone()),
    };
    let table = Table::resume(known);
    for &(ino, way) in &kernel.ways {
        if table.settle(ino, way) != Some(way) {
            return Err(StateError::Wrong("a file is open that the kernel does not know, or in two ways"));
        }
    }
    let mut shared = Shared::with(
        objects.generation(&tree.shown)?,
        table,
        Handles::resume(kernel.next_handle, open),
        connection.users_mount,
    );
    let covered = kernel.covered.iter().map(|(parent, name, path, node)| {
        let cover = Cover { path: path.0.clone(), node: objects.node(*node)? };
        Ok(((*parent, name.0.clone()), cover))
    });
    shared.announced.cover(covered.collect::<Result<_, StateError>>()?);
    let _ = shared.agreed.set(connection.agreed);
    shared.passthrough = shared.passes();
    shared.refused.count_also(connection.refused_writes);
    shared.stale.store(kernel.stale, std::sync::atomic::Ordering::Relaxed);
    let before = match &tree.before {
        Some((generation, desired)) => Some((Arc::new(objects.generation(generation)?), desired.into())),
        None => None,
    };
    let connection = Resumed {
        fuse: unpack::descriptor(connection.fuse)?,
        agreed: connection.agreed,
        number: connection.device,
        private,
    };
    Ok(Resumable { shared, inodes: objects.inodes(tree)?, connection, before })
}

/// A descriptor of our own for one that is inherited.
///
/// # Errors
/// [`StateError::Io`] when there is none of that number.
pub(crate) fn descriptor(number: Fd) -> Result<OwnedFd, StateError> {
    unpack::descriptor(number)
}

impl From<&Desired> for state::Desired {
    fn from(desired: &Desired) -> Self {
        Self { layers: desired.layers.clone(), ranks: desired.ranks.clone() }
    }
}

impl From<&state::Desired> for Desired {
    fn from(desired: &state::Desired) -> Self {
        Self { layers: desired.layers.clone(), ranks: desired.ranks.clone() }
    }
}

impl From<&state::Bytes> for PathBuf {
    fn from(bytes: &state::Bytes) -> Self {
        use std::os::unix::ffi::OsStringExt;
        std::ffi::OsString::from_vec(bytes.0.to_vec()).into()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
