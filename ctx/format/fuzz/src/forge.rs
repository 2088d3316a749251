//! Images that no honest program writes: descriptors and directory records, byte by byte.
//!
//! ECMA-119 for the structures, IEEE P1281 (SUSP) and P1282 (Rock Ridge) for the system use entries.

/// Bytes of a sector, which is also the logical block here.
pub const SECTOR: usize = 2048;
/// A directory (ECMA-119, 9.1.6).
pub const DIRECTORY: u8 = 2;
/// More records of the same file follow.
pub const NOT_FINAL: u8 = 0x80;

/// A directory record.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// The file identifier; `\0` and `\x01` are the directory itself and its parent.
    pub name: Vec<u8>,
    /// First block of its content.
    pub extent: u32,
    /// Bytes of its content.
    pub len: u32,
    /// File flags.
    pub flags: u8,
    /// System use entries.
    pub system_use: Vec<u8>,
}

impl Record {
    /// A file.
    pub fn file(name: &[u8], extent: u32, len: u32) -> Self {
        Self { name: name.into(), extent, len, ..Self::default() }
    }

    /// A directory.
    pub fn dir(name: &[u8], extent: u32, len: u32) -> Self {
        Self { flags: DIRECTORY, ..Self::file(name, extent, len) }
    }

    /// The same with system use entries.
    #[must_use]
    pub fn with(mut self, entries: &[Vec<u8>]) -> Self {
        self.system_use = entries.concat();
        self
    }

    /// The same with flags.
    #[must_use]
    pub fn flagged(mut self, flags: u8) -> Self {
        self.flags |= flags;
        self
    }

    /// Its bytes; system use entries are cut where a record ends, at 254 bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 33];
        bytes[2..10].copy_from_slice(&both32(self.extent));
        bytes[10..18].copy_from_slice(&both32(self.len));
        // 2020-01-01 00:00:00 UTC.
        bytes[18..25].copy_from_slice(&[120, 1, 1, 0, 0, 0, 0]);
        bytes[25] = self.flags;
        bytes[28..32].copy_from_slice(&both16(1));
        bytes[32] = self.name.len() as u8;
        bytes.extend_from_slice(&self.name);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes.extend_from_slice(&self.system_use);
        bytes.truncate(254);
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes[0] = bytes.len() as u8;
        bytes
    }
}

/// An image in the making: blocks are taken, filled, and the descriptors written last.
#[derive(Debug, Clone)]
pub struct Forge {
    image: Vec<u8>,
}

impl Default for Forge {
    fn default() -> Self {
        // The system area, and room for three descriptors.
        Self { image: vec![0; 19 * SECTOR] }
    }
}

impl Forge {
    /// Takes blocks at the end of the image and returns the first one's number.
    pub fn take(&mut self, blocks: usize) -> u32 {
        let first = self.image.len() / SECTOR;
        self.image.resize(self.image.len() + blocks * SECTOR, 0);
        first as u32
    }

    /// Takes blocks for `bytes` and writes them.
    pub fn put(&mut self, bytes: &[u8]) -> u32 {
        let first = self.take(bytes.len().div_ceil(SECTOR));
        self.write(first, bytes);
        first
    }

    /// Writes at a block; what does not fit in the image is cut.
    pub fn write(&mut self, block: u32, bytes: &[u8]) {
        let at = block as usize * SECTOR;
        let end = (at + bytes.len()).min(self.image.len());
        self.image[at..end].copy_from_slice(&bytes[..end - at]);
    }

    /// Writes a directory: records never cross a sector's end.
    pub fn write_dir(&mut self, block: u32, records: &[Record]) {
        let mut bytes: Vec<u8> = Vec::new();
        for record in records.iter().map(Record::bytes) {
            if bytes.len() % SECTOR + record.len() > SECTOR {
                bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
            }
            bytes.extend_from_slice(&record);
        }
        self.write(block, &bytes);
    }

    /// The image, with a primary descriptor and, for `joliet`, a supplementary one; each root is
    /// its first block and its length in bytes.
    pub fn finish(mut self, root: (u32, u32), joliet: Option<(u32, u32)>) -> Vec<u8> {
        let blocks = (self.image.len() / SECTOR) as u32;
        self.write(16, &descriptor(1, root, blocks));
        let last = match joliet {
            Some(root) => {
                let mut bytes = descriptor(2, root, blocks);
                // UCS-2 level 3 (Joliet specification).
                bytes[88..91].copy_from_slice(b"%/E");
                self.write(17, &bytes);
                18
            }
            None => 17,
        };
        self.write(last, b"\xffCD001\x01");
        self.image
    }
}

fn descriptor(kind: u8, root: (u32, u32), blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    bytes[0] = kind;
    bytes[1..7].copy_from_slice(b"CD001\x01");
    bytes[8..72].fill(b' ');
    bytes[40..45].copy_from_slice(b"FORGE");
    bytes[80..88].copy_from_slice(&both32(blocks));
    bytes[120..124].copy_from_slice(&both16(1));
    bytes[124..128].copy_from_slice(&both16(1));
    bytes[128..132].copy_from_slice(&both16(SECTOR as u16));
    bytes[156..190].copy_from_slice(&Record::dir(b"\0", root.0, root.1).bytes()[..34]);
    bytes[190..813].fill(b' ');
    // Four dates of which none is set (ECMA-119, 8.4.26.1).
    for at in [813, 830, 847, 864] {
        bytes[at..at + 16].fill(b'0');
    }
    bytes[881] = 1;
    bytes
}

/// A number in both byte orders (ECMA-119, 7.3.3).
pub fn both32(number: u32) -> [u8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(&number.to_le_bytes());
    both[4..].copy_from_slice(&number.to_be_bytes());
    both
}

fn both16(number: u16) -> [u8; 4] {
    let [a, b] = number.to_le_bytes();
    [a, b, b, a]
}

/// A system use entry.
pub fn entry(signature: &[u8; 2], data: &[u8]) -> Vec<u8> {
    let mut bytes = signature.to_vec();
    bytes.extend_from_slice(&[4 + data.len() as u8, 1]);
    bytes.extend_from_slice(data);
    bytes
}

/// What the root's own record needs for the tree to be a Rock Ridge one.
pub fn rock_ridge_root() -> Vec<u8> {
    let er = [&[10, 0, 0, 1][..], b"RRIP_1991A"].concat();
    [entry(b"SP", &[0xbe, 0xef, 0]), entry(b"ER", &er)].concat()
}

/// `NM`: a name.
pub fn nm(name: &[u8]) -> Vec<u8> {
    entry(b"NM", &[&[0][..], name].concat())
}

/// `PX`: mode with the type's bits, links, owner and group 0.
pub fn px(mode: u32) -> Vec<u8> {
    entry(b"PX", &[both32(mode), both32(1), both32(0), both32(0)].concat())
}

/// `SL`: a link's target by components, each with its flags (2 `.`, 4 `..`, 8 `/`).
pub fn sl(components: &[(u8, &[u8])]) -> Vec<u8> {
    let parts = components.iter().map(|(flags, text)| [&[*flags, text.len() as u8][..], text].concat());
    entry(b"SL", &[vec![0], parts.collect::<Vec<_>>().concat()].concat())
}

/// `CE`: where the entries go on.
pub fn ce(block: u32, offset: u32, len: u32) -> Vec<u8> {
    entry(b"CE", &[both32(block), both32(offset), both32(len)].concat())
}

/// `CL`: the directory that this entry stands for is at this block.
pub fn cl(block: u32) -> Vec<u8> {
    entry(b"CL", &both32(block))
}

/// `PL`: the parent that a moved directory had.
pub fn pl(block: u32) -> Vec<u8> {
    entry(b"PL", &both32(block))
}

/// `RE`: a moved directory, not to be shown where it lies.
pub fn re() -> Vec<u8> {
    entry(b"RE", &[])
}
