//! The guest's heartbeat, received on the bench's clock.
//!
//! A program in the guest reads a context file many times a second and sends what it read in a
//! datagram. So one clock, the bench's, dates both the blackout of a migration (the gap in the
//! beats) and the moment at which new content is readable (the first beat that carries it); the
//! error is at most the interval between beats plus the way of a datagram. The kernel dates each
//! datagram when it comes, so a bench that gets no processor just then dates none too late.

use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant, SystemTime};

use bench_probe::Beat;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::arrivals::{Arrivals, arrivals};
use super::moment;

/// Port on which the bench listens for beats.
pub const PORT: u16 = 4242;

/// How often the probe reads and sends: often enough to date a blackout of 100 ms, and seldom
/// enough that an emulated guest spends a few percent on it.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// Beats as they arrive.
pub type Beats = Arrivals<Beat>;

/// Listens for beats on an address of the bench.
///
/// # Errors
/// When the port cannot be had.
pub async fn listen(address: Ipv4Addr) -> std::io::Result<Beats> {
    receive(UdpSocket::bind(SocketAddr::from((address, PORT))).await?)
}

/// Beats that arrive at a socket.
fn receive(socket: UdpSocket) -> std::io::Result<Beats> {
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
    let (inlet, beats) = arrivals();
    tokio::spawn(async move {
        let mut buffer = vec![0; 2048];
        while let Ok((at, length)) = socket.async_io(Interest::READABLE, || next(&socket, &mut buffer)).await
        {
            // What is no beat is somebody else's datagram.
            if let Ok(beat) = Beat::decode(&buffer[..length]) {
                inlet.put_at(at, beat);
            }
        }
    });
    Ok(beats)
}

/// The next datagram's length, and when the kernel got it.
fn next(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(Instant, usize)> {
    let mut space = nix::cmsg_space!(TimeSpec);
    let mut data = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let stamp = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(SystemTime::UNIX_EPOCH + Duration::from(stamp)),
        _ => None,
    });
    Ok((stamp.map_or_else(Instant::now, moment::of_wall_clock), message.bytes))
}

#[cfg(test)]
mod tests {
    use bench_probe::Seen;

    use super::*;

    fn beat(text: &str) -> Beat {
        Beat { seq: 0, skipped: 0, mono_ns: 0, real_ns: 0, read_ns: 0, seen: Seen::content(text.as_bytes()) }
    }

    #[tokio::test]
    async fn a_beat_arrives_and_other_datagrams_do_not() {
        // Not at the port of its own, which a bench that runs beside the tests has.
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let beats = receive(socket).unwrap();
        let from = Instant::now();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        sender.send_to(b"noise", address).await.unwrap();
        sender.send_to(&beat("new").encode(), address).await.unwrap();
        let arrival = beats.first(from, Duration::from_secs(30), |_| true).await.unwrap();
        assert_eq!(arrival.value.seen, Seen::content(b"new"));
    }

    #[tokio::test]
    async fn a_datagram_that_waited_is_dated_when_it_came() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // The kernel dates nothing until some time after it was asked to: until then a datagram's date is when it is read.
        let mut buffer = [0; 2048];
        for _ in 0..1000 {
            sender.send_to(b"x", address).await.unwrap();
            let sent = Instant::now();
            std::thread::sleep(Duration::from_millis(20));
            let (at, length) =
                socket.async_io(Interest::READABLE, || next(&socket, &mut buffer)).await.unwrap();
            assert_eq!(length, 1);
            if at < sent + Duration::from_millis(20) {
                return;
            }
        }
        panic!("no datagram was dated before it was read");
    }
}
