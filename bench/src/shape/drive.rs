//! Doing it: shaping, reading back and measuring over an executor.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::measure::{Iperf, MeasureError, Path, Ping};
use super::readback::{self, Counters, Mismatch};
use super::tc::{self, Shape};
use crate::exec::{Exec, ExecError};

/// Shaping that could not be made, is not what was asked, or could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// A command failed.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The kernel has something else than was asked.
    #[error("{host}: {source}")]
    Mismatch {
        /// The server.
        host: String,
        /// What differs.
        source: Mismatch,
    },
    /// ping or iperf3 gave nothing usable.
    #[error("{host}: {source}")]
    Measure {
        /// The machine that measured.
        host: String,
        /// What was wrong.
        source: MeasureError,
    },
    /// No interface has the address.
    #[error("{host}: no interface has the address {address}")]
    NoDevice {
        /// The machine.
        host: String,
        /// The address that was looked for.
        address: Ipv4Addr,
    },
}

/// Commands of tc and ip, on an emulated machine under load.
const SHORT: Duration = Duration::from_secs(60);
/// Round trips that are measured.
const PINGS: u32 = 20;
/// Between them, in s.
const PING_INTERVAL: f64 = 0.1;
/// How long iperf3 sends in each direction, in s; its first second, TCP's start, is left out besides.
const IPERF: u32 = 3;
/// Port of iperf3 on the machine that answers.
const IPERF_PORT: u16 = 5201;

/// The interface of a machine that has `address`.
///
/// # Errors
/// [`ShapeError::NoDevice`], or the command's failure.
pub async fn device_of(host: &impl Exec, address: Ipv4Addr) -> Result<String, ShapeError> {
    let script = format!("ip -o -4 addr show to {address}/32");
    let printed = host.demand("look for its interface", &script, SHORT).await?;
    let device = printed.split_whitespace().nth(1);
    device.map(str::to_owned).ok_or_else(|| ShapeError::NoDevice { host: host.name().into(), address })
}

/// Makes the shaping, in place of any of ours that was there, and reads it back.
///
/// # Errors
/// The command's failure, or [`ShapeError::Mismatch`].
pub async fn apply(server: &impl Exec, shape: &Shape) -> Result<(), ShapeError> {
    server.demand("shape the client's traffic", &shape.apply(), SHORT).await?;
    read_back(server, shape).await
}

/// Says whether the kernel still has the shaping as asked.
///
/// # Errors
/// The command's failure, or [`ShapeError::Mismatch`].
pub async fn read_back(server: &impl Exec, shape: &Shape) -> Result<(), ShapeError> {
    counters(server, shape).await.map(drop)
}

/// Bytes exchanged with the client since the shaping was made; also reads the shaping back.
///
/// # Errors
/// The command's failure, or [`ShapeError::Mismatch`].
pub async fn counters(server: &impl Exec, shape: &Shape) -> Result<Counters, ShapeError> {
    let printed = server.demand("read the shaping back", &shape.read(), SHORT).await?;
    let mismatch = |source| ShapeError::Mismatch { host: server.name().into(), source };
    readback::compare(shape, &printed).map_err(mismatch)
}

/// Takes our shaping away from the interface.
///
/// # Errors
/// The command's failure.
pub async fn clear(server: &impl Exec, device: &str) -> Result<(), ShapeError> {
    Ok(server.demand("take the shaping away", &tc::clear(device), SHORT).await.map(drop)?)
}

/// Measures the path from `from` to `to`, which has `address`: round trips, then TCP in each direction.
///
/// # Errors
/// The command's failure, or [`ShapeError::Measure`].
pub async fn measure(from: &impl Exec, to: &impl Exec, address: Ipv4Addr) -> Result<Path, ShapeError> {
    let failed = |source| ShapeError::Measure { host: from.name().into(), source };
    // ping's status 1 means that packets were lost: that is a measurement, and judged as one.
    let script = format!("ping -n -c {PINGS} -i {PING_INTERVAL} {address} || test $? = 1");
    let ping = Ping::parse(&from.demand("ping", &script, SHORT).await?).map_err(failed)?;
    to.demand("start iperf3's server", &serve(), SHORT).await?;
    let result = async {
        let up = tcp(from, address, "").await?;
        let down = tcp(from, address, "-R").await?;
        Ok::<_, ShapeError>(Path { ping, up, down })
    };
    let result = result.await;
    let stopped = to.demand("stop iperf3's server", &hang_up(), SHORT).await;
    let path = result?;
    stopped?;
    Ok(path)
}

async fn tcp(from: &impl Exec, address: Ipv4Addr, direction: &str) -> Result<Iperf, ShapeError> {
    let limit = IPERF + 30;
    // With -J the reason stands in the output, and the status only says that there is one.
    let script =
        format!("timeout {limit} iperf3 -c {address} -p {IPERF_PORT} -t {IPERF} -O 1 -J {direction} || :");
    let printed = from.demand("run iperf3", &script, SHORT + Duration::from_secs(limit.into())).await?;
    Iperf::parse(&printed).map_err(|source| ShapeError::Measure { host: from.name().into(), source })
}

/// Starts iperf3's server and returns when it listens.
fn serve() -> String {
    format!(
        "{}
iperf3 -s -D -p {IPERF_PORT} -I /run/bench-iperf3.pid
for i in $(seq 100); do
    ss -Hltn 'sport = :{IPERF_PORT}' | grep -q . && exit 0
    sleep 0.1
done
echo 'iperf3 does not listen' >&2
exit 1
",
        hang_up()
    )
}

fn hang_up() -> String {
    // -I writes the process id with a NUL byte after it.
    "if test -s /run/bench-iperf3.pid; then
    pid=$(tr -d '\\0' </run/bench-iperf3.pid)
    kill \"$pid\" 2>/dev/null
    for i in $(seq 50); do kill -0 \"$pid\" 2>/dev/null || break; sleep 0.1; done
    rm -f /run/bench-iperf3.pid
fi
"
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Program;

    #[tokio::test]
    async fn the_interface_is_found_by_its_address() {
        let here = Program::here();
        if here.demand("look for ip", "command -v ip", SHORT).await.is_err() {
            eprintln!("SKIPPED the_interface_is_found_by_its_address: no iproute2");
            return;
        }
        assert_eq!(device_of(&here, Ipv4Addr::LOCALHOST).await.unwrap(), "lo");
        let error = device_of(&here, Ipv4Addr::new(192, 0, 2, 77)).await.unwrap_err();
        assert_eq!(error.to_string(), "localhost: no interface has the address 192.0.2.77");
    }

    #[test]
    fn the_scripts_are_valid_shell() {
        for script in [serve(), hang_up()] {
            let status = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
            assert!(status.success(), "{script}");
        }
    }
}
