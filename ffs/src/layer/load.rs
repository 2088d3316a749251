//! From a device, or a file, to a layer.
//!
//! Of a device only the volume is read, as long as its descriptor says: a disc may have much more, and a drive's
//! size lags behind after a change. A descriptor may also say less than the volume uses, which Linux never notices;
//! when that is seen, all of the device is read.

use std::path::Path;

use ctx_format::check::Claim;
use ctx_format::read::ReadError;

use super::Layer;
use super::device::{self, DeviceError};
use super::image::{self, ImageError};
use crate::memory::{Limit, TooMuch};
use crate::sealed::Sealed;
use crate::trust::Trust;

/// What is asked of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Its name; `None` leaves it to the manifest.
    pub name: Option<&'a str>,
    /// Its priority; `None` leaves it to the manifest.
    pub priority: Option<u16>,
    /// Where it comes from, for people.
    pub origin: &'a str,
    /// Who is trusted.
    pub trust: &'a Trust,
}

/// Why there is no layer.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The device gave no image.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The image cannot be a layer.
    #[error(transparent)]
    Image(#[from] ImageError),
}

impl LoadError {
    /// The reason, if it is that images hold too much together: then less elsewhere would help.
    pub fn no_room(&self, limit: &Limit) -> Option<String> {
        match self {
            Self::Device(error) => limit.refuses(error),
            Self::Image(ImageError::TooMuch(error @ TooMuch::Total { .. })) => Some(error.to_string()),
            Self::Image(_) => None,
        }
    }
}

/// Reads the image on a device or in a file, and makes a layer of it; `read` is told what was read.
///
/// # Errors
/// [`LoadError`].
pub fn load(
    path: &Path,
    asked: &Asked,
    limit: &Limit,
    read: impl Fn(&Sealed),
) -> Result<(Layer, Option<Claim>), LoadError> {
    let layer = |image: Sealed| {
        read(&image);
        image::layer_within(image, asked.name, asked.priority, asked.origin, asked.trust, limit)
    };
    match layer(device::read(path, limit.now())?) {
        Err(ImageError::Read(ReadError::OutOfRange { end, len, .. }))
            if device::len(path).is_some_and(|device| len < device && end <= device) =>
        {
            Ok(layer(device::read_whole(path, limit.now())?)?)
        }
        made => Ok(made?),
    }
}
