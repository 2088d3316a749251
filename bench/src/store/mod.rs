//! The folder of a run: append-only events, samples, manifest.
