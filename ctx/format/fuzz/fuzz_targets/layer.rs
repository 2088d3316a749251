//! From an image to what programs read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libfuzzer_sys::{fuzz_mutator, fuzzer_mutate};

fuzz_target!(|input: &[u8]| ctx_format_fuzz::targets::layer(input));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let structured = !seed.is_multiple_of(3)
        && ctx_format_fuzz::mutate::structure(&mut data[..size], ctx_format_fuzz::targets::SKIPPED, seed)
            .is_some();
    if structured { size } else { fuzzer_mutate(data, size, max_size) }
});
