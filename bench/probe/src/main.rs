//! Runs in a guest: reads a file as any program would, many times a second, and tells the bench
//! what it read.
//!
//! Beats are due at multiples of the interval on the monotonic clock, so they do not drift; after a
//! pause of the guest the missed ones are left out instead of sent in a burst.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bench_probe::{Beat, CONTENT};
use clap::Parser;
use nix::time::{ClockId, clock_gettime};

/// Tell the bench, many times a second, what a program in this guest reads.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// The file to read
    #[arg(long)]
    file: PathBuf,
    /// Where the bench listens, ADDRESS:PORT
    #[arg(long)]
    to: SocketAddr,
    /// Milliseconds between beats
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    interval: u64,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let socket = UdpSocket::bind("0.0.0.0:0").context("cannot make a UDP socket")?;
    let interval = Duration::from_millis(cli.interval);
    let start = Instant::now();
    let mut due = Duration::ZERO;
    for seq in 0.. {
        let (content, error) = read(&cli.file);
        let beat = Beat {
            seq,
            mono_ns: nanoseconds(ClockId::CLOCK_MONOTONIC),
            real_ns: nanoseconds(ClockId::CLOCK_REALTIME),
            content,
            error,
        };
        // A network that is away for a moment is what the bench wants to see: a missing beat.
        let _ = socket.send_to(&beat.encode(), cli.to);
        due = next_due(due, start.elapsed(), interval);
        thread::sleep(due.saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// The next multiple of the interval that is still to come.
fn next_due(due: Duration, now: Duration, interval: Duration) -> Duration {
    let next = due + interval;
    if next > now {
        return next;
    }
    let beats = now.as_nanos() / interval.as_nanos() + 1;
    interval * u32::try_from(beats).unwrap_or(u32::MAX)
}

fn read(path: &Path) -> (String, Option<String>) {
    let mut content = Vec::with_capacity(CONTENT);
    let read = File::open(path).and_then(|file| file.take(CONTENT as u64).read_to_end(&mut content));
    match read {
        Ok(_) => (String::from_utf8_lossy(&content).trim_end().to_owned(), None),
        Err(e) => (String::new(), Some(e.to_string())),
    }
}

fn nanoseconds(clock: ClockId) -> u64 {
    // Both clocks exist on every Linux.
    clock_gettime(clock).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_keep_to_their_grid_and_a_pause_makes_no_burst() {
        let ms = Duration::from_millis;
        assert_eq!(next_due(ms(100), ms(101), ms(50)), ms(150));
        assert_eq!(next_due(ms(100), ms(1260), ms(50)), ms(1300));
        assert_eq!(next_due(ms(100), ms(150), ms(50)), ms(200));
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_that_is_told() {
        let (content, error) = read(Path::new("/nonexistent/context"));
        assert!(content.is_empty());
        assert!(error.unwrap().contains("No such file"));
    }
}
