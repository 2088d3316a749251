//! Times as directory records and Rock Ridge say them.
//!
//! Nothing is refused for its time: what stands for no day of any calendar gives some number, the same as on
//! Linux (`mktime64`), whose formula this is.

use super::tree::Time;

/// A time of seven bytes (ECMA-119, 9.1.5): years since 1900, so 1900 to 2155.
pub(super) fn short(bytes: [u8; 7]) -> Time {
    let [year, month, day, hour, minute, second, zone] = bytes;
    Time { secs: utc([year, month, day, hour, minute, second].map(i64::from), 1900, zone), nanos: 0 }
}

/// A time of seventeen bytes (ECMA-119, 8.4.26.1): digits, hundredths of a second, and the zone.
pub(super) fn long(bytes: [u8; 17]) -> Time {
    // Anything but a digit is as good as nought.
    let digits = |at: usize, count: usize| {
        bytes[at..at + count].iter().fold(0, |number, byte| {
            number * 10 + if byte.is_ascii_digit() { i64::from(byte - b'0') } else { 0 }
        })
    };
    let [year, month, day] = [digits(0, 4), digits(4, 2), digits(6, 2)];
    let parts = [year, month, day, digits(8, 2), digits(10, 2), digits(12, 2)];
    // Two digits: below 10⁹ nanoseconds.
    let nanos = u32::try_from(digits(14, 2) * 10_000_000).unwrap_or_default();
    Time { secs: utc(parts, 0, bytes[16]), nanos }
}

fn utc([year, month, day, hour, minute, second]: [i64; 6], era: i64, zone: u8) -> i64 {
    let (mut year, mut month) = (year + era, month - 2);
    if month <= 0 {
        (year, month) = (year - 1, month + 12);
    }
    let days = year / 4 - year / 100 + year / 400 + 367 * month / 12 + day + year * 365 - 719_499;
    let local = ((days * 24 + hour) * 60 + minute) * 60 + second;
    // Quarters of an hour. A zone that does not exist is not believed.
    let zone = i64::from(zone.cast_signed());
    if (-52..=52).contains(&zone) { local - zone * 15 * 60 } else { local }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_linux_times() {
        // `date --utc --date=… +%s`.
        for (bytes, secs) in [
            ([120, 1, 1, 0, 0, 0, 0], 1_577_836_800),
            ([70, 1, 1, 0, 0, 0, 0], 0),
            ([69, 12, 31, 23, 59, 59, 0], -1),
            // The years after 127, which a signed byte has not.
            ([128, 2, 29, 12, 30, 15, 0], 1_835_440_215),
            ([255, 12, 31, 23, 59, 59, 0], 5_869_583_999),
            // One hour east, and a zone that does not exist.
            ([120, 1, 1, 1, 0, 0, 4], 1_577_836_800),
            ([120, 1, 1, 0, 0, 0, 100], 1_577_836_800),
            ([120, 1, 1, 0, 0, 0, 252], 1_577_840_400),
        ] {
            assert_eq!(short(bytes), Time { secs, nanos: 0 }, "{bytes:?}");
        }
        // No date at all gives a number, and no panic.
        assert!(short([0; 7]).secs < 0 && short([255; 7]).secs > 0);
        assert_eq!(long(*b"2020010100000050\0"), Time { secs: 1_577_836_800, nanos: 500_000_000 });
        assert_eq!(long(*b"2020010101000000\x04"), Time { secs: 1_577_836_800, nanos: 0 });
        assert!(long([b'0'; 17]).secs < 0 && long([0xff; 17]).nanos == 0);
    }
}
