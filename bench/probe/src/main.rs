//! `bench-probe`: reads a file at a steady rate, as any program would, and tells a UDP port.

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bench_probe::schedule::Schedule;
use bench_probe::{Beat, Seen};
use clap::Parser;
use ctx_io::{errln, output};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// The most that is read of the file, in bytes: it is read at every beat.
const LONGEST: u64 = 16 << 20;

/// Reads a file every so often and sends what it saw, and when, to a UDP port.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The file to read.
    #[arg(long)]
    file: PathBuf,
    /// Where to send: an address and a port, no name (names would need a resolver).
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// Milliseconds between beats.
    #[arg(long, default_value_t = 50, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    interval: u64,
    /// Stop after so many beats.
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage("bench-probe", &error),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln!("bench-probe: {}", output::reason(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let any: SocketAddr = if cli.to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).context("cannot open a UDP socket")?;
    // A full queue loses the beat; it must not hold up the next.
    socket.set_nonblocking(true)?;
    let mut schedule = Schedule::new(now(ClockId::CLOCK_MONOTONIC)?, cli.interval * 1_000_000);
    let mut content = Vec::new();
    for seq in 0..cli.count.unwrap_or(u64::MAX) {
        sleep_until(schedule.next(now(ClockId::CLOCK_MONOTONIC)?))?;
        let started = now(ClockId::CLOCK_MONOTONIC)?;
        let seen = read(&cli.file, &mut content);
        let mono_ns = now(ClockId::CLOCK_MONOTONIC)?;
        let real_ns = now(ClockId::CLOCK_REALTIME)?;
        let took = mono_ns.saturating_sub(started);
        let beat = Beat { seq, skipped: schedule.skipped(), mono_ns, real_ns, read_ns: took, seen };
        // Unreachable while the network moves with the machine: the gap is the measurement.
        let _ = socket.send_to(&beat.encode(), cli.to);
    }
    Ok(())
}

fn read(path: &Path, content: &mut Vec<u8>) -> Seen {
    content.clear();
    match File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(content)) {
        Ok(length) if length as u64 > LONGEST => Seen::Error("EFBIG".to_owned()),
        Ok(_) => Seen::content(content),
        Err(error) => Seen::Error(name(&error)),
    }
}

/// The name of an error, like `ENOENT`.
fn name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", nix::errno::Errno::from_raw(number)),
        None => error.kind().to_string(),
    }
}

fn now(clock: ClockId) -> io::Result<u64> {
    let time = clock_gettime(clock)?;
    // Both clocks are positive on any machine that runs.
    let (secs, nanos) = (time.tv_sec().unsigned_abs(), time.tv_nsec().unsigned_abs());
    Ok(secs * 1_000_000_000 + nanos)
}

fn sleep_until(deadline: u64) -> io::Result<()> {
    let until =
        TimeSpec::new((deadline / 1_000_000_000).cast_signed(), (deadline % 1_000_000_000).cast_signed());
    loop {
        match clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &until) {
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
