//! The manifest.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| ctx_format_fuzz::targets::manifest(input));
