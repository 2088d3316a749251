//! Any image, by the index that programs are shown.

#![no_main]

use libfuzzer_sys::fuzz_target;
use libfuzzer_sys::{fuzz_mutator, fuzzer_mutate};

fuzz_target!(
    init: if let Some(out) = std::env::var_os("FUZZ_SEEDS") {
        // Only an instrumented program links here, and this is one of them.
        let written = ctx_format_fuzz::seeds::write(std::path::Path::new(&out));
        std::process::exit(written.map_or_else(|error| { eprintln!("{error}"); 1 }, |()| 0));
    },
    |input: &[u8]| ctx_format_fuzz::targets::image(input)
);

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let structured = !seed.is_multiple_of(3)
        && ctx_format_fuzz::mutate::structure(&mut data[..size], ctx_format_fuzz::targets::SKIPPED, seed)
            .is_some();
    if structured { size } else { fuzzer_mutate(data, size, max_size) }
});
