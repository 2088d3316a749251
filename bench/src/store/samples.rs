//! Samples as a function of events, and as `samples.csv`.

use std::path::Path;

use super::{
    EVENTS, SAMPLES,
    error::{Doing as _, StoreError},
    event::{Event, kind},
    file::write_whole,
};
use crate::model::Sample;

/// The reason that samples of a trial get which did not end.
pub(crate) const CUT_OFF: &str = "the run was cut off during this trial";

/// A sample whose value is a number or none: JSON has no others.
pub(super) fn finite(mut sample: Sample) -> Sample {
    if sample.value.is_some_and(|value| !value.is_finite()) {
        sample.value = None;
        sample.valid = false;
        if sample.reason.is_empty() {
            sample.reason = "the value is not a finite number".into();
        }
    }
    sample
}

/// All samples of a log, in order; those of trials that did not end are invalid.
///
/// # Errors
/// An event of kind `samples` holds something else.
pub fn samples_of(events: &[Event]) -> Result<Vec<Sample>, StoreError> {
    let mut samples: Vec<Sample> = Vec::new();
    // Where the samples of the trial begin that has started and not ended.
    let mut open = None;
    for event in events {
        match event.kind.as_str() {
            kind::TRIAL_STARTED | kind::RUN_RESUMED => {
                cut_off(&mut samples, open.take());
                if event.kind == kind::TRIAL_STARTED {
                    open = Some(samples.len());
                }
            }
            kind::TRIAL_ENDED => open = None,
            kind::SAMPLES => {
                let some: Vec<Sample> =
                    serde_json::from_value(event.payload.clone()).map_err(|error| StoreError::Damaged {
                        path: EVENTS.into(),
                        line: usize::try_from(event.seq).unwrap_or(usize::MAX).saturating_add(1),
                        what: format!("its samples cannot be read: {error}"),
                    })?;
                samples.extend(some);
            }
            _ => {}
        }
    }
    cut_off(&mut samples, open);
    Ok(samples)
}

fn cut_off(samples: &mut [Sample], from: Option<usize>) {
    let from = from.unwrap_or(samples.len());
    for sample in &mut samples[from..] {
        sample.valid = false;
        if sample.reason.is_empty() {
            CUT_OFF.clone_into(&mut sample.reason);
        }
    }
}

pub(crate) fn write(folder: &Path, samples: &[Sample]) -> Result<(), StoreError> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    let path = folder.join(SAMPLES);
    // The header by hand: with no sample there would be none.
    let header = [
        "block",
        "arm",
        "order",
        "metric",
        "phase",
        "value",
        "unit",
        "valid",
        "reason",
        "accelerator",
        "hypervisor",
        "dilation",
    ];
    let io = |error: csv::Error| std::io::Error::other(error);
    writer.write_record(header).map_err(io).doing("write", &path)?;
    for sample in samples {
        writer.serialize(sample).map_err(io).doing("write", &path)?;
    }
    let bytes = writer.into_inner().map_err(csv::IntoInnerError::into_error).doing("write", &path)?;
    write_whole(&path, &bytes)
}

/// Reads a `samples.csv`.
///
/// # Errors
/// It cannot be read, or a row is not a sample: then with its line.
pub fn read_samples(path: &Path) -> Result<Vec<Sample>, StoreError> {
    let bytes = ctx_io::bounded::read(path, ctx_io::bounded::LOG).doing("read", path)?;
    csv::Reader::from_reader(bytes.as_slice())
        .into_deserialize()
        .map(|row: Result<Sample, csv::Error>| {
            row.map_err(|error| StoreError::Damaged {
                path: path.to_owned(),
                line: error.position().map_or(1, |at| usize::try_from(at.line()).unwrap_or(1)),
                what: error.to_string(),
            })
        })
        .collect()
}
