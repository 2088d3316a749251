//! What Linux's isofs shows of images that are made record by record: the table in the module's documentation.

#![allow(clippy::unwrap_used)] // Helpers of tests fail them by panicking too.

use super::*;
use forge::{DIRECTORY, Forge, NOT_FINAL, Record, SECTOR, both32, ce, cl, entry, nm, pl, px, re, sl};

/// The fuzz targets make their images so, too.
#[path = "../../fuzz/src/forge.rs"]
#[allow(dead_code, unreachable_pub, clippy::pedantic)]
mod forge;

/// The blocks of [`image`].
const ROOT: u32 = 19;
const ONE: u32 = 20;
const TWO: u32 = 21;
const FREE: u32 = 22;

const FILE_MODE: u32 = 0o100_644;

/// An image with these records in its root, contents `one` and `two`, and two blocks for more.
fn forged(own: Record, records: &[Record], joliet: Option<&[Record]>) -> Vec<u8> {
    let mut forge = Forge::default();
    let root = forge.take(1);
    assert_eq!((root, forge.put(b"one"), forge.put(b"two"), forge.take(2)), (ROOT, ONE, TWO, FREE));
    let dots = |own: Record, at| [own, Record::dir(b"\x01", at, 2048)];
    forge.write_dir(root, &[&dots(own, root)[..], records].concat());
    let joliet = joliet.map(|records| {
        let at = forge.take(1);
        forge.write_dir(at, &[&dots(Record::dir(b"\0", at, 2048), at)[..], records].concat());
        (at, 2048)
    });
    forge.finish((root, 2048), joliet)
}

fn plain(records: &[Record]) -> Vec<u8> {
    forged(Record::dir(b"\0", ROOT, 2048), records, None)
}

fn rock(records: &[Record]) -> Vec<u8> {
    forged(Record::dir(b"\0", ROOT, 2048).with(&[forge::rock_ridge_root()]), records, None)
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// The names in the root, and `path=content` for files.
fn shown(bytes: &[u8]) -> Vec<String> {
    fn visit(dir: &Entry, prefix: &str, bytes: &[u8], into: &mut Vec<String>) {
        for child in dir.children() {
            let path = format!("{prefix}{}", String::from_utf8_lossy(&child.name));
            match &child.kind {
                Kind::Dir(_) => {
                    into.push(format!("{path}/"));
                    visit(child, &format!("{path}/"), bytes, into);
                }
                _ => match child.content(bytes) {
                    Some(content) => into.push(format!("{path}={}", String::from_utf8_lossy(&content))),
                    None => into.push(path),
                },
            }
        }
    }
    let image = index(bytes).unwrap();
    let mut names = Vec::new();
    visit(&image.root, "", bytes, &mut names);
    assert_eq!(names.len(), image.entries);
    names
}

fn refused(bytes: &[u8]) -> String {
    index(bytes).unwrap_err().to_string()
}

/// The offset of the record with an identifier.
fn record(bytes: &[u8], name: &[u8]) -> usize {
    bytes.windows(name.len()).rposition(|window| window == name).unwrap() - 33
}

#[test]
fn the_tree_is_chosen_as_linux_chooses() {
    let rock = [Record::file(b"R;1", ONE, 3).with(&[nm(b"rock")])];
    let joliet = [Record::file(&wide("Joliet"), TWO, 3)];
    let own = |entries: &[Vec<u8>]| Record::dir(b"\0", ROOT, 2048).with(entries);
    let announced = own(&[forge::rock_ridge_root()]);
    let silent = own(&[entry(b"SP", &[0xbe, 0xef, 0]), px(0o040_755)]);
    for (own, rock, joliet, expected) in [
        (&announced, &rock[..], Some(&joliet[..]), "rock=one"),
        (&silent, &rock, Some(&joliet), "Joliet=two"),
        (&silent, &rock, None, "rock=one"),
        // What some programs left empty.
        (&announced, &[], Some(&joliet), "Joliet=two"),
        (&Record::dir(b"\0", ROOT, 2048), &rock, Some(&joliet), "Joliet=two"),
        (&Record::dir(b"\0", ROOT, 2048), &rock, None, "rock=one"),
    ] {
        assert_eq!(shown(&forged(own.clone(), rock, joliet)), [expected]);
    }
    // An enhanced volume has the same descriptor with no escape sequence; a boot record has another.
    for kind in [2, 0] {
        let mut bytes = forged(Record::dir(b"\0", ROOT, 2048), &rock, Some(&joliet));
        bytes[17 * SECTOR] = kind;
        bytes[17 * SECTOR + 88..17 * SECTOR + 91].fill(0);
        assert_eq!(shown(&bytes), ["rock=one"]);
    }
}

#[test]
fn rock_ridge_needs_no_announcement() {
    let file = |entries: &[Vec<u8>]| Record::file(b"A;1", ONE, 3).with(entries);
    let seen = |own: &[Vec<u8>], file: Record| {
        let bytes = forged(Record::dir(b"\0", ROOT, 2048).with(own), &[file], None);
        let image = index(&bytes).unwrap();
        let [entry] = image.root.children() else { panic!("{:?}", image.root) };
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(entry.name.clone()), entry.mode, text(entry.content(&bytes).unwrap()))
    };
    let is = |name: &str, mode| (name.to_owned(), mode, "one".to_owned());
    // What isofs of Linux 6.1 shows.
    let private = [nm(b"LongName.conf"), px(0o100_600)];
    assert_eq!(seen(&[], file(&private)), is("LongName.conf", 0o600));
    let time = entry(b"TF", &[2, 121, 1, 1, 0, 0, 0, 0]);
    assert_eq!(seen(&[time], file(&private)), is("LongName.conf", 0o600));
    assert_eq!(
        seen(&[entry(b"SP", &[0xbe, 0xef, 0])], file(&[nm(b"Name"), px(0o100_640)])),
        is("Name", 0o640)
    );
    assert_eq!(seen(&[], file(&[nm(b"Name")])), is("Name", 0o555));
    assert_eq!(seen(&[], file(&[px(0o100_640)])), is("a", 0o640));
    // What something else has there is not taken for entries, nor is it an obstacle.
    for other in [&b"whatever it is"[..], &[0xff; 40], b"NM\x03\x01", b"PX\x05\x01\x01", b"CE\x05\x01\x01"] {
        assert_eq!(seen(&[], file(&[other.to_vec()])), is("a", 0o555), "{other:?}");
    }
    // But what begins as entries and is damaged is refused, as everywhere.
    let damaged = plain(&[file(&[nm(b"Name"), b"PX\x05\x01\x01".to_vec()])]);
    assert!(refused(&damaged).contains("`PX` entry is too short"), "{}", refused(&damaged));
    // Of names that are the same the first is shown, as in any plain tree.
    let twice = [Record::file(b"A.;1", TWO, 3), Record::file(b"A;1", ONE, 3)];
    assert_eq!(shown(&plain(&twice)), ["a=two"]);
}

#[test]
fn zisofs_needs_no_announcement() {
    let stream = miniz_oxide::deflate::compress_to_vec_zlib(b"hello world", 6);
    let end = 24 + u32::try_from(stream.len()).unwrap();
    let stored = [&[0; 16][..], &24_u32.to_le_bytes(), &end.to_le_bytes(), &stream].concat();
    let zf = entry(b"ZF", &[&b"pz\x04\x0f"[..], &both32(11)].concat());
    let file = Record::file(b"A;1", FREE, end).with(&[nm(b"Zed"), px(0o100_600), zf]);
    let mut bytes = plain(&[file]);
    bytes[FREE as usize * SECTOR..][..stored.len()].copy_from_slice(&stored);
    assert_eq!(shown(&bytes), ["Zed=hello world"]);
}

#[test]
fn entries_that_linux_does_not_know_end_nothing() {
    let file = |entries: &[Vec<u8>]| Record::file(b"A;1", ONE, 3).with(entries);
    let st = || entry(b"ST", &[]);
    assert_eq!(shown(&rock(&[file(&[st(), nm(b"LongName"), px(0o100_600)])])), ["LongName=one"]);
    // What is behind it need not be entries.
    assert_eq!(shown(&rock(&[file(&[nm(b"Name"), st(), b"xyz\xff".to_vec()])])), ["Name=one"]);
    // `RR` says which entries there are: of its bits Linux obeys that of `NM`.
    let rr = |flags: u8| entry(b"RR", &[flags]);
    for (entries, name) in [
        (vec![rr(0x81), nm(b"Name"), px(0o100_600)], "a=one"),
        (vec![rr(0x89), nm(b"Name"), px(0o100_600)], "Name=one"),
        (vec![nm(b"Name"), rr(0x81)], "Name=one"),
    ] {
        assert_eq!(shown(&rock(&[file(&entries)])), [name]);
        assert_eq!(shown(&plain(&[file(&entries)])), [name]);
    }
}

#[test]
fn what_has_no_name_is_not_shown() {
    let file = |name: &[u8]| Record::file(name, ONE, 3);
    // Linux does not list it, whatever it is.
    assert_eq!(shown(&plain(&[file(b";1"), Record::dir(b".;1", ROOT, 2048), file(b"B;1")])), ["b=one"]);
    let bytes = forged(Record::dir(b"\0", ROOT, 2048), &[], Some(&[file(b"\0\0\0a"), file(&wide("b"))]));
    assert_eq!(shown(&bytes), ["b=one"]);
}

#[test]
fn joliet_names_that_are_too_long_are_not_shown() {
    // 254 bytes in UTF-8, and 257, which no look-up takes.
    let names = ["\u{6f22}".repeat(84) + "cd", "\u{6f22}".repeat(85) + "cd"];
    let records = names.each_ref().map(|name| Record::file(&wide(name), ONE, 3));
    let bytes = forged(Record::dir(b"\0", ROOT, 2048), &[], Some(&records));
    assert_eq!(shown(&bytes), [format!("{}=one", names[0])]);
}

#[test]
fn names_end_at_a_nul() {
    let part = |flags: u8, text: &[u8]| entry(b"NM", &[&[flags][..], text].concat());
    let file = |entries: &[Vec<u8>]| rock(&[Record::file(b"A;1", ONE, 3).with(entries)]);
    assert_eq!(shown(&file(&[nm(b"ab\0c")])), ["ab=one"]);
    assert_eq!(shown(&file(&[part(1, b"ab\0c"), part(0, b"de")])), ["abde=one"]);
    assert_eq!(shown(&file(&[nm(b"\0c")])), ["a=one"]);
}

/// Two directories of which the second begins 512 bytes into the first. Both come to one record, with which a file
/// begins, and behind it go on at the next sector, each counted from its own beginning: to another end of the file.
fn overlapping() -> Vec<u8> {
    let mut forge = Forge::default();
    let (root, one, two) = (forge.take(1), forge.put(b"one"), forge.put(b"two"));
    let first = forge.take(4);
    let at = |sector: u32| 4 * sector;
    let dots = |own, len| [Record::dir(b"\0", own, len), Record::dir(b"\x01", at(root), 2048)];
    let (outer, inner) = ((at(first), 6144), (at(first) + 1, 4096));
    let subdirs = [Record::dir(b"A", outer.0, outer.1), Record::dir(b"B", inner.0, inner.1)];
    forge.write_dir(root, &[&dots(at(root), 2048)[..], &subdirs].concat());
    let mut bytes = forge.finish((at(root), 2048), None);
    bytes[16 * SECTOR + 128..16 * SECTOR + 132].copy_from_slice(&[0, 2, 2, 0]);
    let mut write = |offset: usize, records: &[Record]| {
        let records: Vec<u8> = records.iter().flat_map(Record::bytes).collect();
        let start = first as usize * SECTOR + offset;
        bytes[start..start + records.len()].copy_from_slice(&records);
        offset + records.len()
    };
    write(0, &dots(outer.0, outer.1));
    let mut end = write(512, &dots(inner.0, inner.1));
    // Up to the shared record are associated files, which are not shown.
    while end < SECTOR {
        let len = if SECTOR - end > 250 { 200 } else { SECTOR - end };
        let filler = Record { system_use: vec![0; len - 38], ..Record::file(b"FILL", 0, 0).flagged(4) };
        end = write(end, &[filler]);
    }
    write(SECTOR, &[Record::file(b"CONF", 0, 0).flagged(NOT_FINAL)]);
    write(SECTOR + 512, &[Record::file(b"CONF", at(two), 3)]);
    write(2 * SECTOR, &[Record::file(b"CONF", at(one), 3)]);
    bytes
}

#[test]
fn directories_that_overlap_are_refused() {
    let reason = refused(&overlapping());
    assert!(reason.contains("`/b`: the directory overlaps another one"), "{reason}");
    // In the other order, and one that begins where another one ends.
    for (lens, good) in [([2048, 4096], false), ([4096, 2048], false), ([2048, 2048], true)] {
        let (first, second) = if lens[0] == 4096 { (FREE, FREE + 1) } else { (FREE + 1, FREE) };
        let mut bytes = plain(&[Record::dir(b"A", first, 2048), Record::dir(b"B", second, 2048)]);
        for (block, len) in [(first, lens[0]), (second, lens[1])] {
            let own = Record::dir(b"\0", block, len).bytes();
            bytes[block as usize * SECTOR..][..own.len()].copy_from_slice(&own);
        }
        if good {
            assert_eq!(shown(&bytes), ["a/", "b/"]);
        } else {
            assert!(refused(&bytes).contains("overlaps another one"), "{}", refused(&bytes));
        }
    }
}

#[test]
fn files_have_a_number_each() {
    // Two files of the same content are two files, unless they say that they are one.
    let linked = |identifier: &[u8], name: &[u8], extent| {
        let px = entry(b"PX", &[both32(FILE_MODE), both32(2), both32(0), both32(0), both32(9)].concat());
        Record::file(identifier, extent, 3).with(&[nm(name), px])
    };
    let alone = |identifier: &[u8], name: &[u8]| Record::file(identifier, ONE, 3).with(&[nm(name)]);
    let bytes = rock(&[
        alone(b"A;1", b"a"),
        alone(b"B;1", b"b"),
        linked(b"C;1", b"c", ONE),
        linked(b"D;1", b"d", ONE),
        linked(b"E;1", b"e", TWO),
    ]);
    let image = index(&bytes).unwrap();
    let number = |name| image.root.get(name).unwrap().id;
    assert_eq!(number("c"), number("d"));
    assert_eq!(std::collections::HashSet::from(["a", "b", "c", "e"].map(number)).len(), 4);
}

#[test]
fn many_empty_files_links_and_whiteouts_are_shown() {
    const COUNT: u32 = 20_000;
    let mut forge = Forge::default();
    let path = ["usr", "lib", "python3", "dist-packages", "some-package", "locale"];
    let blocks = 1 + u32::try_from(path.len()).unwrap();
    let first = forge.take(path.len());
    let pn = || entry(b"PN", &[both32(0), both32(0)].concat());
    let many: Vec<Record> = (0..COUNT)
        .map(|number| {
            let name = nm(format!("a name of a file {number:05}").as_bytes());
            let more = match number % 3 {
                0 => vec![px(FILE_MODE)],
                1 => vec![px(0o120_777), sl(&[(0, b"elsewhere")])],
                _ => vec![px(0o020_000), pn()],
            };
            Record::file(format!("F{number:05};1").as_bytes(), 0, 0).with(&[vec![name], more].concat())
        })
        .collect();
    let len: usize = many.iter().map(|record| record.bytes().len()).sum();
    // A record may have to wait for the next sector.
    let len = (len + len / 8).next_multiple_of(SECTOR);
    let last = forge.take(len / SECTOR);
    let len = u32::try_from(len).unwrap();
    let size = |block| if block == last { len } else { 2048 };
    let dots = |block| [Record::dir(b"\0", block, size(block)), Record::dir(b"\x01", first, 2048)];
    for (block, name) in (first..).zip(path) {
        let mut own = dots(block);
        if block == first {
            own[0] = own[0].clone().with(&[forge::rock_ridge_root()]);
        }
        let inner = Record::dir(name.to_uppercase().as_bytes(), block + 1, size(block + 1));
        let inner = inner.with(&[nm(name.as_bytes()), px(0o040_755)]);
        forge.write_dir(block, &[&own[..], &[inner]].concat());
    }
    forge.write_dir(last, &[&dots(last)[..], &many].concat());
    let image = index(&forge.finish((first, 2048), None)).unwrap();
    assert_eq!(image.entries, COUNT as usize + blocks as usize - 1);
    assert_eq!(image.root.get(&path.join("/")).unwrap().children().len(), COUNT as usize);

    // Without Rock Ridge, where the image is smallest.
    let mut forge = Forge::default();
    let records: Vec<Record> =
        (0..2 * COUNT).map(|number| Record::file(format!("F{number:05}").as_bytes(), 0, 0)).collect();
    let sectors = 2 * COUNT as usize / (SECTOR / records[0].bytes().len()) + 2;
    let root = forge.take(sectors);
    let len = u32::try_from(sectors * SECTOR).unwrap();
    let dots = [Record::dir(b"\0", root, len), Record::dir(b"\x01", root, len)];
    forge.write_dir(root, &[&dots[..], &records].concat());
    assert_eq!(index(&forge.finish((root, len), None)).unwrap().entries, 2 * COUNT as usize);
    // What `Limits::for_len` counts with.
    assert_eq!(size_of::<Entry>(), 112);
}

#[test]
fn blocks_may_be_smaller_than_sectors() {
    let mut forge = Forge::default();
    let root = forge.take(1);
    let content = forge.put(b"content");
    let dots = [Record::dir(b"\0", 4 * root, 2048), Record::dir(b"\x01", 4 * root, 2048)];
    forge.write_dir(root, &[&dots[..], &[Record::file(b"A;1", 4 * content, 7)]].concat());
    let mut bytes = forge.finish((4 * root, 2048), None);
    let size = 16 * SECTOR + 128;
    bytes[size..size + 4].copy_from_slice(&[0, 2, 2, 0]);
    assert_eq!(shown(&bytes), ["a=content"]);
    bytes[size..size + 2].copy_from_slice(&[0, 3]);
    assert!(refused(&bytes).contains("blocks of 768 bytes"), "{}", refused(&bytes));
}

#[test]
fn only_one_byte_order_counts() {
    let mut bytes = plain(&[Record::file(b"A;1", ONE, 3)]);
    let at = record(&bytes, b"A;1");
    bytes[at + 6..at + 10].fill(0xff);
    bytes[at + 14..at + 18].fill(0xff);
    bytes[16 * SECTOR + 84..16 * SECTOR + 88].fill(0xff);
    assert_eq!(shown(&bytes), ["a=one"]);
}

#[test]
fn every_version_is_shown() {
    let records = [Record::file(b"A.TXT;1", ONE, 3), Record::file(b"A.TXT;2", TWO, 3)];
    assert_eq!(shown(&plain(&records)), ["a.txt=one", "a.txt.2=two"]);
    let records = [Record::file(&wide("A;1"), ONE, 3), Record::file(&wide("A;2"), TWO, 3)];
    let bytes = forged(Record::dir(b"\0", ROOT, 2048), &[], Some(&records));
    assert_eq!(shown(&bytes), ["A=one", "A;2=two"]);
}

#[test]
fn joliet_names_may_differ_in_case_only() {
    let records = [Record::file(&wide("Case;1"), ONE, 3), Record::file(&wide("case;1"), TWO, 3)];
    let bytes = forged(Record::dir(b"\0", ROOT, 2048), &[], Some(&records));
    assert_eq!(shown(&bytes), ["Case=one", "case=two"]);
}

#[test]
fn of_names_that_became_the_same_the_first_is_shown() {
    let records = [Record::file(b"A.;1", TWO, 3), Record::file(b"A;1", ONE, 3), Record::file(b"a", ONE, 3)];
    assert_eq!(shown(&plain(&records)), ["a=two"]);
    let records = [Record::file(&wide("a."), TWO, 3), Record::file(&wide("a"), ONE, 3)];
    let bytes = forged(Record::dir(b"\0", ROOT, 2048), &[], Some(&records));
    assert_eq!(shown(&bytes), ["a=two"]);
    // A directory that is not shown is not entered either: this one would be a loop.
    let records = [Record::file(b"A;1", ONE, 3), Record::dir(b"A", ROOT, 2048)];
    assert_eq!(shown(&plain(&records)), ["a=one"]);
}

#[test]
fn a_rock_ridge_name_twice_is_refused() {
    let named = |identifier: &[u8]| Record::file(identifier, ONE, 3).with(&[nm(b"same")]);
    let reason = refused(&rock(&[named(b"A;1"), named(b"B;1")]));
    assert!(reason.contains("\"same\"") && reason.contains("twice"), "{reason}");
}

#[test]
fn rock_ridge_names_go_on() {
    let part = |flags: u8, text: &[u8]| entry(b"NM", &[&[flags][..], text].concat());
    let file = |entries: &[Vec<u8>]| Record::file(b"A;1", ONE, 3).with(entries);
    let bytes = rock(&[file(&[part(1, b"ab"), part(0x20, b"host"), part(0, b"cd")])]);
    assert_eq!(shown(&bytes), ["abcd=one"]);
    for len in [254, 255, 256] {
        let rest = part(0, &vec![b'y'; len - 100]);
        let mut bytes =
            rock(&[file(&[part(1, &[b'x'; 100]), ce(FREE, 10, u32::try_from(rest.len()).unwrap())])]);
        let at = FREE as usize * SECTOR + 10;
        bytes[at..at + rest.len()].copy_from_slice(&rest);
        if len > 255 {
            assert!(refused(&bytes).contains("longer than 255"), "{}", refused(&bytes));
        } else {
            assert_eq!(shown(&bytes)[0].len(), len + 4);
        }
    }
    // Without a name of its own it has the plain one.
    assert_eq!(shown(&rock(&[file(&[px(FILE_MODE)])])), ["a=one"]);
}

#[test]
fn without_rock_ridge_all_can_be_read_and_run() {
    let image = index(&plain(&[Record::file(b"A;1", ONE, 3)])).unwrap();
    let file = image.root.get("a").unwrap();
    for entry in [&image.root, file] {
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o555, 0, 0));
    }
    assert_eq!(file.mtime, Time { secs: 1_577_836_800, nanos: 0 });
}

#[test]
fn device_numbers_are_read_both_ways() {
    for (high, low, expected) in [(8, 1, (8, 1)), (0, 0x801, (8, 1)), (0, 5, (0, 5)), (0, 0, (0, 0))] {
        let pn = entry(b"PN", &[both32(high), both32(low)].concat());
        let bytes = rock(&[Record::file(b"A;1", 0, 0).with(&[px(0o020_600), pn])]);
        let image = index(&bytes).unwrap();
        let device = image.root.get("a").unwrap();
        assert_eq!((&device.kind, device.device), (&Kind::CharDevice, expected));
    }
}

#[test]
fn times_are_taken_from_rock_ridge() {
    let short = |year: u8| [year, 1, 1, 0, 0, 0, 0];
    for (flags, times, secs, nanos) in [
        (2_u8, short(121).to_vec(), 1_609_459_200, 0),
        (3, [short(99), short(121)].concat(), 1_609_459_200, 0),
        (7, [short(99), short(140), short(99)].concat(), 2_208_988_800, 0),
        (0x82, b"2021010100000025\0".to_vec(), 1_609_459_200, 250_000_000),
        (0x83, b"1999010100000000\x002021010100000025\0".to_vec(), 1_609_459_200, 250_000_000),
        // No time of modification: that of the record.
        (1, short(99).to_vec(), 1_577_836_800, 0),
    ] {
        let tf = entry(b"TF", &[&[flags][..], &times].concat());
        let image = index(&rock(&[Record::file(b"A;1", ONE, 3).with(&[tf])])).unwrap();
        assert_eq!(image.root.get("a").unwrap().mtime, Time { secs, nanos }, "{flags:#x}");
    }
}

#[test]
fn links_are_joined() {
    let goes_on = |mut sl: Vec<u8>| {
        sl[4] |= 1;
        sl
    };
    for (entries, target) in [
        (vec![sl(&[(8, b""), (0, b"usr"), (4, b""), (2, b""), (0, b"x")])], "/usr/.././x"),
        (vec![sl(&[(0, b"a"), (1, b"b"), (0, b"c")])], "a/bc"),
        (vec![goes_on(sl(&[(0, b"a")])), sl(&[(0, b"b")])], "a/b"),
        (vec![goes_on(sl(&[(1, b"a")])), sl(&[(0, b"b")])], "ab"),
        (vec![goes_on(sl(&[(8, b"")])), sl(&[(0, b"b")])], "/b"),
        (vec![sl(&[(8, b"")])], "/"),
    ] {
        let link = Record::file(b"A;1", 0, 0).with(&[vec![px(0o120_777)], entries].concat());
        let image = index(&rock(&[link])).unwrap();
        let link = image.root.get("a").unwrap();
        assert_eq!((&link.kind, link.size), (&Kind::Symlink(target.into()), target.len() as u64));
    }
    let reason = refused(&rock(&[Record::file(b"A;1", 0, 0).with(&[px(0o120_777)])]));
    assert!(reason.contains("no usable target"), "{reason}");
}

#[test]
fn moved_directories_are_shown_where_they_were() {
    let (holder, moved) = (FREE, FREE + 1);
    let dot = |at, mode| Record::dir(b"\0", at, 2048).with(&[px(mode)]);
    let mut bytes = rock(&[
        Record::file(b"HERE", ONE, 3).with(&[nm(b"here"), px(0o040_700), cl(moved)]),
        Record::dir(b"RR_MOVED", holder, 2048).with(&[nm(b"rr_moved"), px(0o040_755)]),
    ]);
    let mut write = |block: u32, records: &[Record]| {
        let at = block as usize * SECTOR;
        let records = records.iter().flat_map(Record::bytes).collect::<Vec<_>>();
        bytes[at..at + records.len()].copy_from_slice(&records);
    };
    let parent = Record::dir(b"\x01", ROOT, 2048);
    let child = Record::dir(b"HERE", moved, 2048).with(&[nm(b"here"), px(0o040_700), re()]);
    write(holder, &[dot(holder, 0o040_755), parent.clone(), child]);
    let parent = parent.with(&[pl(ROOT)]);
    let inside = Record::file(b"IN;1", TWO, 3).with(&[nm(b"inside")]);
    write(moved, &[dot(moved, 0o040_701), parent, inside]);
    assert_eq!(shown(&bytes), ["here/", "here/inside=two", "rr_moved/"]);
    // A directory's own record has its attributes.
    assert_eq!(index(&bytes).unwrap().root.get("here").unwrap().mode, 0o701);
}

#[test]
fn what_is_not_supported_is_refused() {
    let zf = |algorithm: &[u8; 2], shift| entry(b"ZF", &[&algorithm[..], &[4, shift], &both32(9)].concat());
    let file = |entries: &[Vec<u8>]| rock(&[Record::file(b"A;1", ONE, 3).with(entries)]);
    let mut interleaved = plain(&[Record::file(b"A;1", ONE, 3)]);
    let at = record(&interleaved, b"A;1");
    interleaved[at + 26..at + 28].fill(1);
    let mut high_sierra = vec![0; 20 * SECTOR];
    high_sierra[16 * SECTOR + 8..16 * SECTOR + 14].copy_from_slice(b"\x01CDROM");
    for (bytes, reason) in [
        (file(&[zf(b"PZ", 15)]), "/a` of the image is a file that is compressed"),
        (file(&[zf(b"pz", 18)]), "2^18"),
        (file(&[entry(b"SF", &both32(9))]), "a sparse file"),
        (file(&[px(0o150_644)]), "there is no file type 0o150000"),
        (file(&[px(0o040_755)]), "only its mode says"),
        (interleaved, "an interleaved file"),
        (high_sierra, "a High Sierra volume"),
    ] {
        let refused = refused(&bytes);
        assert!(refused.contains(reason), "{refused}");
    }
    // A unit without gaps is one piece, and what is empty has none.
    let mut unit = plain(&[Record::file(b"A;1", ONE, 3)]);
    unit[at + 26] = 1;
    assert_eq!(shown(&unit), ["a=one"]);
}

#[test]
fn xa_before_rock_ridge_is_passed_over() {
    let xa = [&[0; 6][..], b"XA", &[0; 6]].concat();
    let er = entry(b"ER", &[&[10, 0, 0, 1][..], b"RRIP_1991A"].concat());
    let own = [xa.clone(), entry(b"SP", &[0xbe, 0xef, 14]), er, px(0o040_711)];
    let file = Record::file(b"A;1", ONE, 3).with(&[xa, nm(b"Name"), px(0o100_600)]);
    let bytes = forged(Record::dir(b"\0", ROOT, 2048).with(&own), &[file], None);
    assert_eq!(shown(&bytes), ["Name=one"]);
    let image = index(&bytes).unwrap();
    assert_eq!((image.root.mode, image.root.get("Name").unwrap().mode), (0o711, 0o600));
}

#[test]
fn damaged_entries_are_refused() {
    for (entries, reason) in [
        (b"NM\x03\x01".to_vec(), "wrong length"),
        (b"NM\xf0\x01\0a".to_vec(), "wrong length"),
        (entry(b"PX", &[0; 16]), "its `PX` entry is too short"),
        (entry(b"SL", &[0, 0, 9, b'a']), "its `SL` entry is too short"),
        (entry(b"TF", &[2, 0]), "its `TF` entry is too short"),
        (entry(b"ZF", b"pz"), "its `ZF` entry is too short"),
        (ce(u32::MAX, 0, 4), "lies outside the image"),
    ] {
        let reasons = refused(&rock(&[Record::file(b"A;1", ONE, 3).with(&[entries])]));
        assert!(reasons.contains(reason), "{reasons}");
    }
    // Entries that go on in themselves.
    let mut bytes = rock(&[Record::file(b"A;1", ONE, 3).with(&[ce(FREE, 0, 28)])]);
    bytes[FREE as usize * SECTOR..][..28].copy_from_slice(&ce(FREE, 0, 28));
    assert!(refused(&bytes).contains("too many places"), "{}", refused(&bytes));
}

#[test]
fn several_extents_are_one_file() {
    let part = |extent, len, flags| Record::file(b"A;1", extent, len).flagged(flags);
    let image = |parts: &[Record]| plain(&[parts, &[Record::file(b"B;1", ONE, 3)]].concat());
    let bytes = image(&[part(ONE, 2048, NOT_FINAL), part(TWO, 3, 0)]);
    let content = [&b"one"[..], &[0; 2045], b"two"].concat();
    let index = index(&bytes).unwrap();
    let entry = index.root.get("a").unwrap();
    assert_eq!((entry.size, entry.content(&bytes)), (2051, Some(content)));
    assert_eq!(index.entries, 2);
    for (parts, reason) in [
        (vec![part(ONE, 3, NOT_FINAL), part(TWO, 3, 0)], "ends within a block"),
        (vec![part(ONE, 2048, NOT_FINAL)], "lacks one"),
        (vec![part(19, 2048, NOT_FINAL); 20], "lacks one"),
    ] {
        let refused = refused(&image(&parts));
        assert!(refused.contains(reason), "{refused}");
    }
    let mut many = vec![part(ROOT, 8192, NOT_FINAL); 10];
    many.push(part(ROOT, 1, 0));
    assert!(refused(&image(&many)).contains("more bytes than the image"));
}

#[test]
fn a_compressed_file_has_a_hundred_extents_at_most() {
    let zf = entry(b"ZF", &[&b"pz\x04\x0f"[..], &both32(9)].concat());
    let image = |count: usize| {
        let mut forge = Forge::default();
        let root = forge.take(4);
        let content = forge.take(count);
        let own = Record::dir(b"\0", root, 4 * 2048).with(&[forge::rock_ridge_root()]);
        let part = Record::file(b"A;1", content, 2048).with(std::slice::from_ref(&zf));
        let parts = vec![part.clone().flagged(NOT_FINAL); count - 1];
        let dots = [own, Record::dir(b"\x01", root, 2048)];
        forge.write_dir(root, &[&dots[..], &parts, &[part]].concat());
        forge.finish((root, 4 * 2048), None)
    };
    let index = index(&image(100)).unwrap();
    assert!(matches!(index.root.get("a").unwrap().kind, Kind::Compressed(_)));
    assert!(refused(&image(101)).contains("a compressed file of more than 100 extents"));
}

#[test]
fn flags_are_obeyed() {
    let records = [
        Record::file(b"A;1", TWO, 3).flagged(4),
        Record::file(b"A;1", ONE, 3),
        Record::file(b"H;1", ONE, 3).flagged(1),
        // Record format and protection say something of the extended attribute record.
        Record::file(b"P;1", ONE, 3).flagged(0x18),
    ];
    assert_eq!(shown(&plain(&records)), ["a=one", "h=one", "p=one"]);
}

#[test]
fn extended_attribute_records_are_passed_over() {
    let mut bytes = plain(&[
        Record::file(b"A;1", ONE, 3),
        Record { name: b"D".into(), extent: ONE, len: 2048, flags: DIRECTORY, ..Record::default() },
    ]);
    for (name, blocks) in [(&b"A;1"[..], 1), (b"D\0", 2)] {
        let at = record(&bytes, name);
        bytes[at + 1] = blocks;
    }
    // The directory begins two blocks later, at 22; its own record has such a record, too.
    let mut own = Record::dir(b"\0", TWO, 2048).bytes();
    own[1] = 1;
    let records =
        [own, Record::dir(b"\x01", ROOT, 2048).bytes(), Record::file(b"B", ONE, 3).bytes()].concat();
    bytes[FREE as usize * SECTOR..][..records.len()].copy_from_slice(&records);
    assert_eq!(shown(&bytes), ["a=two", "d/", "d/b=one"]);
}

#[test]
fn the_descriptor_may_say_less_than_there_is() {
    let mut bytes = plain(&[Record::file(b"A;1", ONE, 3)]);
    bytes[16 * SECTOR + 80..16 * SECTOR + 88].copy_from_slice(&both32(17));
    assert_eq!(shown(&bytes), ["a=one"]);
}

#[test]
fn a_truncated_image_is_called_that() {
    let bytes = plain(&[Record::file(b"A;1", TWO, 3)]);
    // What is missing is not in use.
    assert_eq!(shown(&bytes[..TWO as usize * SECTOR + 3]), ["a=two"]);
    let reason = refused(&bytes[..TWO as usize * SECTOR + 2]);
    let expected = "`/a` lies outside the image: bytes 43008 to 43011 of 43010, though its volume descriptor says \
                    49152: the image is truncated, copy it again";
    assert_eq!(reason, expected);
    // The directories, too.
    assert!(refused(&bytes[..18 * SECTOR]).contains("truncated"), "{}", refused(&bytes[..18 * SECTOR]));
    // It is not where the descriptor says that there is no more.
    let reason = refused(&plain(&[Record::file(b"A;1", 1000, 3)]));
    assert!(reason.ends_with("bytes 2048000 to 2048003 of 49152"), "{reason}");
}

#[test]
fn many_directories_are_read() {
    // More than a path table can number, in blocks of 512 bytes.
    const COUNT: u32 = 66_000;
    let mut forge = Forge::default();
    let name = |number: u32| format!("D{number:05}").into_bytes();
    let records = 2 + COUNT as usize;
    let per_sector = SECTOR / Record::dir(&name(0), 0, 0).bytes().len();
    let len = records.div_ceil(per_sector) * SECTOR;
    let root = forge.take(len / SECTOR);
    let dirs = forge.take(COUNT as usize / 4);
    let len = u32::try_from(len).unwrap();
    let mut all = vec![Record::dir(b"\0", 4 * root, len), Record::dir(b"\x01", 4 * root, len)];
    all.extend((0..COUNT).map(|number| Record::dir(&name(number), 4 * dirs + number, 512)));
    forge.write_dir(root, &all);
    for sector in 0..COUNT / 4 {
        let blocks = (0..4).flat_map(|part| {
            let at = 4 * (dirs + sector) + part;
            let dots = [Record::dir(b"\0", at, 512), Record::dir(b"\x01", 4 * root, len)];
            let mut block: Vec<u8> = dots.iter().flat_map(Record::bytes).collect();
            block.resize(512, 0);
            block
        });
        forge.write(dirs + sector, &blocks.collect::<Vec<_>>());
    }
    let mut bytes = forge.finish((4 * root, len), None);
    bytes[16 * SECTOR + 128..16 * SECTOR + 132].copy_from_slice(&[0, 2, 2, 0]);
    let image = index(&bytes).unwrap();
    assert_eq!((image.entries, image.root.children().len()), (66_000, 66_000));
    assert!(matches!(image.root.get("d65999").unwrap().kind, Kind::Dir(_)));
}
