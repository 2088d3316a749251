//! Changes that keep an image an image: blocks are swapped and pointed at, numbers are changed in both
//! byte orders, system use entries are turned into others. Plain byte flips rarely get past the
//! checks of redundant fields.

use crate::forge::{SECTOR, both32};

/// A small generator (splitmix64): libFuzzer gives a seed for each mutation.
struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as usize
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() % bound.max(1)
    }
}

/// Changes `data`, an image whose first byte is the image's byte `skipped`; `None` when it has nothing
/// that this knows how to change.
pub fn structure(data: &mut [u8], skipped: usize, seed: u32) -> Option<()> {
    let mut random = Random(u64::from(seed));
    let sectors = data.len() / SECTOR;
    if sectors < 2 {
        return None;
    }
    match random.below(8) {
        0 => {
            let (from, to) = (random.below(sectors), random.below(sectors));
            data.copy_within(from * SECTOR..(from + 1) * SECTOR, to * SECTOR);
        }
        1 => {
            let (a, b) = (random.below(sectors), random.below(sectors));
            for at in 0..SECTOR {
                data.swap(a * SECTOR + at, b * SECTOR + at);
            }
        }
        2..=4 => {
            let at = find(data, 8, &mut random, |w| {
                w[0] == w[7] && w[1] == w[6] && w[2] == w[5] && w[3] == w[4] && w[..4] != [0; 4]
            })?;
            let old = u32::from_le_bytes([data[at], data[at + 1], data[at + 2], data[at + 3]]);
            let blocks = sectors + skipped / SECTOR;
            let new = match random.below(8) {
                0 => old.wrapping_add(1),
                1 => old.wrapping_sub(1),
                2 => 0,
                3 => u32::MAX,
                4 => (random.below(40) * SECTOR) as u32,
                5 => (random.below(64) * 34) as u32,
                _ => random.below(blocks + 1) as u32,
            };
            data[at..at + 8].copy_from_slice(&both32(new));
        }
        5 => {
            const SIGNATURES: [&[u8; 2]; 15] = [
                b"SP", b"CE", b"ER", b"ST", b"RR", b"PX", b"PN", b"TF", b"NM", b"SL", b"CL", b"PL", b"RE",
                b"ZF", b"SF",
            ];
            let at = find(data, 2, &mut random, |w| SIGNATURES.iter().any(|signature| w == *signature))?;
            data[at..at + 2].copy_from_slice(SIGNATURES[random.below(SIGNATURES.len())]);
        }
        6 => {
            // Length and version of an entry, or the flags behind them.
            let at = find(data, 4, &mut random, |w| w[3] == 1 && w[2] >= 4 && w[0].is_ascii_uppercase())?;
            let at = at + [2, 4, 5][random.below(3)];
            *data.get_mut(at)? = [0, 1, 2, 4, 5, 8, 0x80, 0xff, random.next() as u8][random.below(9)];
        }
        _ => {
            // Flags of a directory record: `\x01` of the volume number, then the name's length.
            let at = find(data, 4, &mut random, |w| w == [1, 0, 0, 1])?.checked_sub(3)?;
            data[at] = [0, 1, 2, 4, 0x80, 0x82][random.below(6)];
        }
    }
    Some(())
}

/// A place whose next `width` bytes are `wanted`: the first behind one drawn at random.
fn find(data: &[u8], width: usize, random: &mut Random, wanted: impl Fn(&[u8]) -> bool) -> Option<usize> {
    let last = data.len().checked_sub(width)?;
    let start = random.below(last + 1);
    // Most of an image is zeros, which are never wanted.
    (start..=last).chain(0..start).find(|&at| data[at] != 0 && wanted(&data[at..at + width]))
}
