//! Shaping of links with tc, and the proof that they are as asked.
//!
//! A [`Link`] says what a client shall see on its way to a server; it becomes two netem qdiscs in
//! the server's machine, one for each direction ([`tc`]), only for that client's address, so
//! that the servers reach each other unshaped wherever the client is. A setting proves nothing: the
//! kernel's qdiscs are [read back](readback), the links are [measured](measure) with ping and iperf3,
//! and a run goes on only when both are as asked ([`calibrate`]).
//!
//! ```text
//! Link × dilation → Shape → script → server           (drive::apply)
//!                     └────→ expected = tc -j          (drive::read_back)
//! measured before + Link ≈ measured after              (drive::measure, calibrate)
//! ```

pub mod calibrate;
pub mod drive;
pub mod link;
pub mod measure;
pub mod readback;
pub mod tc;

pub use calibrate::{Asked, Calibration, Refusal, Tolerance, choose_dilation};
pub use drive::{ShapeError, apply, clear, counters, device_of, measure as measure_path, read_back};
pub use link::{Distribution, Link, LinkError, Netem};
pub use measure::{Iperf, Path, Ping};
pub use readback::{Counters, Mismatch};
pub use tc::Shape;
