//! One trial of the migration experiment: a live migration, with or without recontextualization.
//!
//! This is what happens when a guest has migrated, read from top to bottom: libvirt moves it; the
//! destination's recontextualizer sees it arrive, and resolves, detaches, builds and attaches; the
//! guest's file system shows the new content; a program reads it.

use super::lab::{DriveError, Lab};
use crate::observe::trace::Recorder;
use crate::plan::Trial;
use crate::scenario::Arm;
use crate::testbed::site::Site;

/// Migrates the guest from the remote site to the local one, and has everything written down.
///
/// # Errors
/// When the guest could not be prepared, or the migration failed.
pub async fn trial(lab: &Lab, trial: &Trial, recorder: &Recorder<'_>) -> Result<(), DriveError> {
    lab.prepare(trial.arm, recorder).await?;
    if trial.arm == Arm::Recontext {
        lab.recontextualizer.start(Site::Local).await?;
    }
    lab.read_clocks(recorder).await?;
    let moved = lab.guest.migrate(Site::Remote, Site::Local, &|at, what| recorder.note_at(at, what)).await?;
    if trial.arm == Arm::Recontext {
        // What went wrong is a reason on its samples; the migration is one all the same.
        let _ = lab.wait_for_record(Site::Local, moved.started, recorder).await;
        lab.wait_for_content(Site::Local, moved.started, recorder).await;
    }
    lab.wait_for_life(moved.arrived).await;
    lab.read_clocks(recorder).await
}
