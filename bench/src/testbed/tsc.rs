//! The frequency of this processor's time-stamp counter, which emulated machines see as theirs.
//!
//! A kernel calibrates its counter against a timer while it boots. On a busy runner an emulated
//! machine gets that wrong now and then (a factor of two was seen), and from then on all its times
//! are wrong. QEMU's emulation passes the runner's own counter through, so the bench measures it
//! once and tells the kernels with `tsc_early_khz=` (kernel-parameters.txt).

// Reading the counter is the one thing here that Rust has no safe call for.
#![allow(unsafe_code)]

use std::time::{Duration, Instant};

/// How long is measured: the clock's own error is then below 10 parts in a million.
const SPAN: Duration = Duration::from_millis(50);

/// The counter's frequency in kHz.
#[cfg(target_arch = "x86_64")]
pub fn kilohertz() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    let read = || unsafe { core::arch::x86_64::_rdtsc() };
    // The least of three: a thread that is suspended between the two readings of a pair would
    // spoil one, and does not spoil all.
    (0..3)
        .filter_map(|_| {
            let (start, ticks) = (Instant::now(), read());
            std::thread::sleep(SPAN);
            let ticks = read().checked_sub(ticks)?;
            let nanoseconds = u64::try_from(start.elapsed().as_nanos()).ok()?;
            ticks.checked_mul(1_000_000)?.checked_div(nanoseconds)
        })
        .min()
}

/// The counter's frequency in kHz: unknown here, where hosts are not emulated with a counter.
#[cfg(not(target_arch = "x86_64"))]
pub fn kilohertz() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    #[test]
    fn the_counter_has_a_frequency_of_some_gigahertz() {
        let khz = super::kilohertz().unwrap();
        assert!((500_000..8_000_000).contains(&khz), "{khz}");
    }
}
