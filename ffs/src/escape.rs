//! Bytes as text: `%XX` for all that is not plain ASCII, and for `%` itself.

use std::fmt::{self, Write};

/// Whether a byte stands for itself.
pub(crate) fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'%'
}

/// Writes bytes as text.
///
/// # Errors
/// What writing returns.
pub(crate) fn write(bytes: &[u8], to: &mut impl Write) -> fmt::Result {
    for &byte in bytes {
        if is_plain(byte) {
            to.write_char(char::from(byte))?;
        } else {
            write!(to, "%{byte:02x}")?;
        }
    }
    Ok(())
}

/// The bytes that a text stands for; `None` where a `%` has no two hexadecimal digits.
pub(crate) fn read(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text;
    loop {
        left = match left {
            [] => return Some(bytes),
            [b'%', rest @ ..] => {
                let [high, low, rest @ ..] = rest else { return None };
                bytes.push(digit(high)? << 4 | digit(low)?);
                rest
            }
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}
