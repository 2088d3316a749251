//! The table of mounts (`/proc/PID/mountinfo`, proc(5)). Paths are bytes, and so is all of it.

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) id: u64,
    pub(crate) parent: u64,
    /// Major and minor number of the mounted device.
    pub(crate) device: (u64, u64),
    /// What of the file system is mounted: a path in it.
    pub(crate) root: Vec<u8>,
    pub(crate) point: Vec<u8>,
    /// Options of this mount, separated by commas.
    pub(crate) options: Vec<u8>,
}

/// Reads a table; lines that are not understood are left out.
pub(crate) fn rows(table: &[u8]) -> impl Iterator<Item = Row> {
    table.split(|&byte| byte == b'\n').filter_map(row)
}

fn row(line: &[u8]) -> Option<Row> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mut next = || fields.next();
    let (id, parent) = (number(next()?)?, number(next()?)?);
    let device = next()?;
    let colon = device.iter().position(|&byte| byte == b':')?;
    let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
    let (root, point) = (unescaped(next()?), unescaped(next()?));
    Some(Row { id, parent, device, root, point, options: next()?.to_vec() })
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Takes out the octal escapes that stand for space, tab, newline and backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        let escaped = match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_bytes_is_read() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      nonsense\n\
                      36 22 0:31 /in\\040it /mnt/\xff\\134\\011x ro,nosuid master:2 - fuse.ffs ffs rw,user_id=0\n";
        let rows: Vec<Row> = rows(table).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].id, rows[0].parent, rows[0].device), (22, 1, (8, 1)));
        assert_eq!(rows[1].root, b"/in it");
        assert_eq!(rows[1].point, b"/mnt/\xff\\\tx");
        assert_eq!(rows[1].options, b"ro,nosuid");
        assert_eq!(unescaped(b"\\04"), b"\\04");
    }
}
