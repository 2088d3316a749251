//! Names where no Rock Ridge gives them: from the identifiers of the plain and the Joliet tree, as Linux's
//! isofs makes them without options (`map=normal`, `utf8`).

/// The name for an identifier of the plain tree: in lower case, without a final `;1` or `.;1`; what else
/// has a `;`, and a `/` of broken programs, has a `.` there.
pub(super) fn plain(identifier: &[u8]) -> Vec<u8> {
    // Linux ends a name at a NUL.
    let len = identifier.iter().position(|byte| *byte == 0).unwrap_or(identifier.len());
    let whole = &identifier[..len];
    let cut = if len == identifier.len() {
        whole.strip_suffix(b".;1").or_else(|| whole.strip_suffix(b";1")).unwrap_or(whole)
    } else {
        whole
    };
    cut.iter()
        .map(|byte| match byte {
            b';' | b'/' => b'.',
            other => other.to_ascii_lowercase(),
        })
        .collect()
}

/// The name for an identifier of the Joliet tree, which is UTF-16 in big-endian order: without a final
/// `;1` and without dots at the end, which Windows does not like. Half of a surrogate pair is left out.
pub(super) fn joliet(identifier: &[u8]) -> Vec<u8> {
    let units =
        identifier.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).take_while(|u| *u != 0);
    let name: String = char::decode_utf16(units).filter_map(Result::ok).collect();
    let mut name = name.into_bytes();
    if name.len() > 2 && name.ends_with(b";1") {
        name.truncate(name.len() - 2);
    }
    while name.len() >= 2 && name.ends_with(b".") {
        name.pop();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_mapped() {
        for (identifier, name) in [
            (&b"README.TXT;1"[..], &b"readme.txt"[..]),
            (b"FILE.;1", b"file"),
            (b"FILE.;2", b"file..2"),
            (b"FILE.TXT;12", b"file.txt.12"),
            (b"A/B;1", b"a.b"),
            (b"DIR", b"dir"),
            (b"DIR.EXT", b"dir.ext"),
            (b"\xc4B;1", b"\xc4b"),
            (b"CUT\0;1", b"cut"),
            (b";1", b""),
        ] {
            assert_eq!(plain(identifier), name, "{identifier:?}");
        }
    }

    #[test]
    fn joliet_names_are_decoded() {
        for (identifier, name) in [
            ("Grün.txt;1", "Grün.txt"),
            ("Two;2", "Two;2"),
            ("dots...", "dots"),
            ("dot.;1", "dot"),
            (".", "."),
            ("\u{1f600}", "\u{1f600}"),
            (";1", ";1"),
            ("cut\0off", "cut"),
        ] {
            let wide: Vec<u8> = identifier.encode_utf16().flat_map(u16::to_be_bytes).collect();
            assert_eq!(joliet(&wide), name.as_bytes(), "{identifier:?}");
        }
        assert_eq!(joliet(b"\xd8\x3d\0a\0"), b"a");
    }
}
