//! Images of our own writer, of others, and damaged ones.

#![allow(clippy::unwrap_used)] // Helpers of tests fail them by panicking too.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use hadris_fs::{Content, Node, Tree};
use hadris_iso::{IsoOptions, plan};
use hadris_storage::BlockSize;
use proptest::prelude::*;

use super::*;

fn written(tree: &Tree) -> Vec<u8> {
    let options = IsoOptions::default().with_rock_ridge();
    let size = usize::try_from(plan(tree, &options).unwrap().size()).unwrap();
    let mut image = vec![0; size];
    let device = hadris_storage::MemDevice::new(&mut image[..], BlockSize::new(2048).unwrap());
    let mut device = device;
    hadris_iso::sync::write(&mut device, tree, &options).unwrap();
    image
}

fn sample() -> Vec<u8> {
    let mut tree = Tree::new();
    tree.insert(".ctx/manifest.json", Node::file(Content::bytes("{}"))).unwrap();
    tree.insert("data/endpoints/storage", Node::file(Content::bytes("198.18.2.10\n"))).unwrap();
    tree.insert("data/empty", Node::file(Content::bytes(""))).unwrap();
    let long = "x".repeat(200);
    tree.insert(format!("data/{long}").as_str(), Node::file(Content::bytes(vec![7u8; 5000]))).unwrap();
    tree.insert("data/link", Node::symlink("endpoints/storage")).unwrap();
    written(&tree)
}

#[test]
fn what_our_writer_wrote_is_indexed() {
    let bytes = sample();
    let image = index(&bytes).unwrap();
    let storage = image.root.get("data/endpoints/storage").unwrap();
    assert_eq!(storage.content(&bytes).unwrap(), b"198.18.2.10\n");
    assert_eq!(image.root.get("data/empty").unwrap().content(&bytes).unwrap(), b"");
    let long = image.root.get(&format!("/data/{}", "x".repeat(200))).unwrap();
    assert_eq!(long.content(&bytes).unwrap(), vec![7; 5000]);
    let link = image.root.get("data/link").unwrap();
    assert_eq!(link.kind, Kind::Symlink(b"endpoints/storage".to_vec()));
    assert!(image.root.get("data/nothing").is_none());
    assert_eq!(image.entries, 8);
}

#[test]
fn other_bytes_are_not_an_image() {
    for bytes in [&b""[..], &vec![0; 32774], &vec![0xff; 100_000]] {
        assert!(matches!(index(bytes), Err(ReadError::NotIso { len }) if len == bytes.len()));
    }
}

#[test]
fn limits_refuse() {
    let bytes = sample();
    let all = Limits::for_len(bytes.len());
    let few = index_within(&bytes, Limits { entries: 3, ..all });
    assert!(matches!(few, Err(ReadError::Limit { what: "entries", limit: 3, .. })), "{few:?}");
    let flat = index_within(&bytes, Limits { depth: 1, ..all });
    assert!(matches!(flat, Err(ReadError::Limit { what: "nested directories", .. })), "{flat:?}");
    let idle = index_within(&bytes, Limits { work: 3000, ..all });
    assert!(matches!(idle, Err(ReadError::Limit { what: "bytes of metadata to read", .. })), "{idle:?}");
}

/// The offset of the directory record whose identifier is `name`.
fn record(bytes: &[u8], name: &[u8]) -> usize {
    bytes.windows(name.len()).position(|window| window == name).unwrap() - 33
}

fn set_extent(bytes: &mut [u8], record: usize, block: u32) {
    bytes[record + 2..record + 6].copy_from_slice(&block.to_le_bytes());
    bytes[record + 6..record + 10].copy_from_slice(&block.to_be_bytes());
}

#[test]
fn a_directory_that_contains_itself_is_refused() {
    let mut bytes = sample();
    let data = record(&bytes, b"DATA");
    let block = u32::from_le_bytes(bytes[data + 2..data + 6].try_into().unwrap());
    let inner = record(&bytes, b"ENDPOINT");
    set_extent(&mut bytes, inner, block);
    let error = index(&bytes).unwrap_err();
    assert!(matches!(error, ReadError::Loop { .. }), "{error}");
}

#[test]
fn content_outside_the_image_is_refused() {
    let mut bytes = sample();
    let file = record(&bytes, b"STORAGE");
    set_extent(&mut bytes, file, u32::MAX / 2);
    let error = index(&bytes).unwrap_err();
    assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}");
}

#[test]
fn names_with_a_slash_are_never_shown() {
    let mut bytes = sample();
    // The NM entry: signature, length, version 1, no flags, then the name (RRIP 4.1.4).
    let at = bytes.windows(12).position(|w| w.starts_with(b"NM") && w.ends_with(b"storage")).unwrap();
    bytes[at + 7] = b'/';
    // Refused, or shown under the plain ISO 9660 name: never as it stands.
    if let Ok(image) = index(&bytes) {
        let mut stack = vec![&image.root];
        while let Some(entry) = stack.pop() {
            assert!(!entry.name.contains(&b'/'), "{entry:?}");
            stack.extend(entry.children());
        }
    }
}

/// Runs a mastering program over a tree with everything that Rock Ridge can say.
fn mastered(program: &str, args: &[&str], target: &str) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let deep = (0..12).fold(tree.clone(), |path, level| path.join(format!("level{level}")));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("bottom"), "deep").unwrap();
    std::fs::write(tree.join("Case"), "upper").unwrap();
    std::fs::write(tree.join("case"), "lower").unwrap();
    std::fs::write(tree.join("gr\u{fc}n"), "utf-8").unwrap();
    std::fs::write(tree.join("big"), vec![42; 3_000_000]).unwrap();
    std::fs::hard_link(tree.join("big"), tree.join("big-again")).unwrap();
    std::fs::write(tree.join("secret"), "s").unwrap();
    std::fs::set_permissions(tree.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    symlink(target, tree.join("far")).unwrap();
    std::fs::create_dir(tree.join("many")).unwrap();
    for i in 0..300 {
        std::fs::write(tree.join(format!("many/file-{i:03}")), i.to_string()).unwrap();
    }
    let out = dir.path().join("out.iso");
    let run = Command::new(program).args(args).arg("-o").arg(&out).arg(&tree).output().ok()?;
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    Some(std::fs::read(&out).unwrap())
}

fn check_mastered(bytes: &[u8], target: &str) {
    let image = index(bytes).unwrap();
    let read = |path: &str| image.root.get(path).unwrap().content(bytes).unwrap();
    let deep = (0..12).fold(String::new(), |path, level| path + &format!("level{level}/"));
    assert_eq!(read(&(deep + "bottom")), b"deep");
    assert_eq!((read("Case"), read("case")), (b"upper".to_vec(), b"lower".to_vec()));
    assert_eq!(read("gr\u{fc}n"), b"utf-8");
    assert_eq!(read("big"), vec![42; 3_000_000]);
    assert_eq!(read("big-again"), vec![42; 3_000_000]);
    assert_eq!(read("many/file-217"), b"217");
    assert_eq!(image.root.get("many").unwrap().children().len(), 300);
    assert_eq!(image.root.get("secret").unwrap().mode, 0o600);
    assert_eq!(image.root.get("far").unwrap().kind, Kind::Symlink(target.into()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mtime = image.root.get("secret").unwrap().mtime.secs;
    assert!(now.abs_diff(u64::try_from(mtime).unwrap()) < 86_400, "{mtime}");
}

#[test]
fn reads_what_xorriso_makes() {
    let args = ["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "CTX"];
    let target = "a directory/".repeat(30) + "b";
    match mastered("xorriso", &args, &target) {
        Some(bytes) => check_mastered(&bytes, &target),
        None => eprintln!("SKIPPED reads_what_xorriso_makes: no xorriso"),
    }
}

#[test]
fn reads_what_genisoimage_makes() {
    // genisoimage never ends on targets of hundreds of components, and damages long ones.
    match mastered("genisoimage", &["-quiet", "-R", "-J", "-V", "CTX"], "../elsewhere/file") {
        Some(bytes) => {
            check_mastered(&bytes, "../elsewhere/file");
            assert_eq!(index(&bytes).unwrap().label, "CTX");
        }
        None => eprintln!("SKIPPED reads_what_genisoimage_makes: no genisoimage"),
    }
}

#[test]
fn joliet_and_plain_images_are_read() {
    for (name, shown, joliet) in
        [("Readable name.txt", "Readable name.txt", true), ("READABLE.TXT", "readable.txt", false)]
    {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), "content").unwrap();
        let out = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("genisoimage");
        command.args(["-quiet", "-V", "CTX"]).args(joliet.then_some("-J")).arg("-o").arg(out.path());
        let Ok(run) = command.arg(dir.path()).output() else {
            eprintln!("SKIPPED joliet_and_plain_images_are_read: no genisoimage");
            return;
        };
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let bytes = std::fs::read(Path::new(out.path())).unwrap();
        let image = index(&bytes).unwrap();
        assert_eq!(image.root.get(shown).unwrap().content(&bytes).unwrap(), b"content", "{image:?}");
    }
}

/// Bytes before the first volume descriptor (ECMA-119, 7.1.1).
const SYSTEM: usize = 16 * 2048;

/// An image made by these commands, in a directory with these files in `tree`; each ends with `out.iso` there. `None`,
/// with the line that says so, where a program is missing.
fn made(test: &str, files: &[(&str, &[u8])], commands: &[(&str, &[&str])]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("tree")).unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join("tree").join(name), content).unwrap();
    }
    for (program, args) in commands {
        let Ok(run) = Command::new(program).args(*args).current_dir(dir.path()).output() else {
            eprintln!("SKIPPED {test}: no {program}");
            return None;
        };
        assert!(run.status.success(), "{program}: {}", String::from_utf8_lossy(&run.stderr));
    }
    Some(std::fs::read(dir.path().join("out.iso")).unwrap())
}

#[test]
fn zisofs_is_decompressed() {
    let text: Vec<u8> = (0..40_000).flat_map(|line| format!("line {line}\n").into_bytes()).collect();
    let zeros = vec![0; 300_001];
    // What does not compress is stored in more bytes than it has, where that is forced.
    let noise: Vec<u8> =
        (0..3200_u32).flat_map(|n| <sha2::Sha256 as sha2::Digest>::digest(n.to_le_bytes())).collect();
    let files = [
        ("text", &text[..]),
        ("zeros", &zeros),
        ("noise", &noise[..100_001]),
        ("short", b"as it is"),
        ("empty", b""),
    ];
    let genisoimage = ["-quiet", "-R", "-z", "-o", "out.iso", "small"];
    let xorriso = ["-outdev", "out.iso", "-map", "tree", "/", "-set_filter_r", "--zisofs", "/", "--"];
    for commands in [
        &[("mkzftree", &["tree", "small"][..]), ("genisoimage", &genisoimage)][..],
        &[("mkzftree", &["--force", "tree", "small"]), ("genisoimage", &genisoimage)],
        &[("xorriso", &xorriso)],
    ] {
        let Some(bytes) = made("zisofs_is_decompressed", &files, commands) else { return };
        let image = index(&bytes).unwrap();
        for (name, content) in files {
            let entry = image.root.get(name).unwrap();
            assert_eq!((entry.size, entry.content(&bytes).as_deref()), (content.len() as u64, Some(content)));
        }
        for name in ["text", "zeros"] {
            assert!(
                matches!(image.root.get(name).unwrap().kind, Kind::Compressed(_)),
                "{name}: {commands:?}"
            );
        }
    }
    // Version 2, which Linux does not read.
    for parameters in ["version_2=on:susp_z2=off", "version_2=on:susp_z2=on"] {
        let version_2 = [&["-zisofs", parameters][..], &xorriso].concat();
        let Some(bytes) = made("zisofs_is_decompressed", &files, &[("xorriso", &version_2)]) else { return };
        let error = index(&bytes).unwrap_err().to_string();
        assert!(error.contains("compressed in a way that Linux does not read either (PZ"), "{error}");
    }
}

#[test]
fn real_programs_extras_are_passed_over() {
    let boot = [0; 2048];
    let files = [("Boot.img", &boot[..]), ("A file.txt", b"text")];
    let boots = ["-b", "Boot.img", "-c", "Boot.cat", "-no-emul-boot"];
    let genisoimage = |args: &[&'static str]| [&["-quiet"], args, &["-o", "out.iso", "tree"]].concat();
    for (program, args, name) in [
        ("genisoimage", genisoimage(&[&["-R", "-J", "-udf"][..], &boots].concat()), "A file.txt"),
        ("genisoimage", genisoimage(&["-R", "-hfs"]), "A file.txt"),
        ("genisoimage", genisoimage(&["-R", "-g"]), "A file.txt"),
        ("genisoimage", genisoimage(&["-J", "-udf", "-iso-level", "3"]), "A file.txt"),
        // An enhanced volume, and longer names in the plain tree.
        ("genisoimage", genisoimage(&["-iso-level", "4"]), "a file.txt"),
        ("genisoimage", genisoimage(&["-l", "-iso-level", "1"]), "a_file.txt"),
        (
            "xorriso",
            [
                &["-as", "mkisofs", "-quiet", "-R", "--acl", "--xattr", "--md5"][..],
                &boots,
                &["-o", "out.iso", "tree"],
            ]
            .concat(),
            "A file.txt",
        ),
    ] {
        let Some(bytes) = made("real_programs_extras_are_passed_over", &files, &[(program, &args)]) else {
            return;
        };
        let image = index(&bytes).unwrap();
        let names: Vec<_> =
            image.root.children().iter().map(|child| String::from_utf8_lossy(&child.name)).collect();
        let text = image.root.get(name).unwrap_or_else(|| panic!("{args:?}: {names:?}"));
        assert_eq!(text.content(&bytes).as_deref(), Some(&b"text"[..]), "{args:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever bits are wrong: no panic, and what is accepted can be read.
    #[test]
    fn flipped_bits_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..40), cut in any::<prop::sample::Index>()) {
        thread_local!(static SAMPLE: Vec<u8> = sample());
        let mut bytes = SAMPLE.with(Clone::clone);
        // The system area is not read: aim behind it.
        let len = bytes.len() - SYSTEM;
        for (at, bit) in flips {
            bytes[SYSTEM + at.index(len)] ^= 1 << bit;
        }
        if cut.index(4) == 0 {
            bytes.truncate(SYSTEM + cut.index(len));
        }
        if let Ok(image) = index(&bytes) {
            let mut stack = vec![&image.root];
            while let Some(entry) = stack.pop() {
                // Nothing in the sample is compressed, but a bit may say so of what is not.
                if let Kind::File(_) = entry.kind {
                    prop_assert_eq!(entry.content(&bytes).map(|c| c.len() as u64), Some(entry.size));
                }
                stack.extend(entry.children());
            }
        }
    }
}
