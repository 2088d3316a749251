//! Doing the trials of a plan on a testbed.
