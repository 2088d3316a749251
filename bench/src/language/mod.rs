//! A scenario file as a person writes it: includes, profiles and parameters, each value with its place.
//!
//! * `text`: the files as one virtual text; `tree`: their values, merged; `document`: reading them.
//! * `parameter`: values that stand in other values.
//! * `typed` and `read`: from values to the types of [`crate::model`], with errors in the words of their documentation.
//!
//! What it means is for [`crate::compile`] to say.

pub(crate) mod document;
mod error;
pub(crate) mod parameter;
pub(crate) mod read;
pub(crate) mod text;
pub(crate) mod tree;
pub(crate) mod typed;

pub use error::ScenarioError;
