//! What the fuzz targets share. Each target is a few lines that call one function of [`targets`].
//!
//! | module | one idea |
//! |---|---|
//! | [`targets`] | what must hold for any input |
//! | [`forge`] | images that no honest program writes |
//! | [`mutate`] | changes that keep an image an image |
//! | [`seeds`] | what fuzzing starts from |
//! | [`cost`] | how much memory and time a piece of work took |

pub mod cost;
pub mod forge;
pub mod mutate;
pub mod seeds;
pub mod targets;
