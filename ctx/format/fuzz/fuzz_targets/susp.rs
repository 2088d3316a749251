//! System use entries: Rock Ridge and what carries it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| ctx_format_fuzz::targets::susp(input));
