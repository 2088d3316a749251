//! The inputs that fuzzing starts from.
//!
//! They are made here and not stored: our own images, forged ones, and those of other mastering programs
//! where they are installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::forge::{Record, SECTOR, both32, ce, cl, entry, nm, pl, px, re, sl};
use crate::targets::{SKIPPED, context, joliet_image, susp_image};

/// Writes all of them below `out`, one folder a target.
///
/// # Errors
/// What the file system answers.
pub fn write(out: &Path) -> std::io::Result<()> {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let dir = out.join(target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(name), bytes)
    };
    let image = |name: &str, bytes: &[u8]| {
        // Programs pad images; what is short is mutated where it matters.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let input = &bytes[SKIPPED..used.next_multiple_of(SECTOR)];
        put("image", name, input)?;
        put("layer", name, input)
    };
    for generation in [1, 2] {
        image(&format!("context-{generation}"), &context(generation))?;
    }
    for (name, of_file, of_dir, more) in susp_parts() {
        image(&format!("susp-{name}"), &susp_image(&of_file, &of_dir, &more))?;
        let mut input = vec![of_file.len() as u8, of_dir.len() as u8];
        input.extend([of_file, of_dir, more].concat());
        put("susp", name, &input)?;
    }
    let joliet = joliet_root();
    put("joliet", "root", &joliet)?;
    image("joliet", &joliet_image(&joliet))?;
    for (name, bytes) in mastered()? {
        image(&name, &bytes)?;
    }
    let json = ctx_format::read::index(&context(1))
        .ok()
        .and_then(|indexed| indexed.root.get(ctx_format::manifest::MANIFEST_PATH)?.content(&context(1)));
    put("manifest", "context", &json.unwrap_or_default())
}

type Parts = (&'static str, Vec<u8>, Vec<u8>, Vec<u8>);

fn susp_parts() -> Vec<Parts> {
    let file = [nm(b"file"), px(0o100_644)].concat();
    let dir = [nm(b"directory"), px(0o040_755)].concat();
    let link = [nm(b"link"), px(0o120_777), sl(&[(8, b""), (0, b"usr"), (4, b""), (0, b"x")])].concat();
    vec![
        ("plain", file.clone(), dir.clone(), vec![]),
        // Seven bytes are no table: damaged, and the sizes are for the fuzzer to change.
        (
            "compressed",
            [file.clone(), entry(b"ZF", &[&b"pz\x00\x0f"[..], &both32(9)].concat())].concat(),
            dir.clone(),
            vec![],
        ),
        ("link", link.clone(), dir.clone(), vec![]),
        ("continued", [nm(b"a"), ce(23, 0, link.len() as u32)].concat(), dir.clone(), link),
        ("cycle", ce(23, 0, 28), dir.clone(), ce(23, 0, 28)),
        ("moved", [nm(b"here"), cl(21)].concat(), [nm(b"rr_moved"), re(), pl(19)].concat(), vec![]),
    ]
}

fn joliet_root() -> Vec<u8> {
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
    let records = [
        Record::dir(b"\0", 21, 2048),
        Record::dir(b"\x01", 21, 2048),
        Record::file(&wide("Grün und lang.txt"), 20, 7),
        Record::file(&wide("zwei"), 20, 7),
    ];
    records.iter().flat_map(Record::bytes).collect()
}

/// Small trees as other programs write them; none where none is installed.
fn mastered() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let work = std::env::temp_dir().join(format!("seeds-{}", std::process::id()));
    let tree = work.join("tree");
    let deep = (0..9).fold(tree.clone(), |path, level| path.join(level.to_string()));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), "deep")?;
    fs::write(tree.join("a file with a long name, and Case"), "x")?;
    fs::hard_link(tree.join("a file with a long name, and Case"), tree.join("again"))?;
    std::os::unix::fs::symlink("../elsewhere/a", tree.join("link"))?;
    let mut made = Vec::new();
    fs::write(tree.join("compressed"), "line\n".repeat(20_000))?;
    let small = work.join("small");
    let compressed = Command::new("mkzftree").arg(&tree).arg(&small).output();
    if compressed.is_ok_and(|run| run.status.success()) {
        let iso = work.join("zisofs");
        let run = Command::new("genisoimage")
            .args(["-quiet", "-no-pad", "-R", "-z", "-o"])
            .args([&iso, &small])
            .output();
        if run.is_ok_and(|run| run.status.success()) {
            made.push(("zisofs".to_owned(), fs::read(&iso)?));
        }
    }
    fs::remove_file(tree.join("compressed"))?;
    for (name, program, args) in [
        ("genisoimage", "genisoimage", &["-quiet", "-no-pad", "-R", "-J"][..]),
        ("genisoimage-plain", "genisoimage", &["-quiet", "-no-pad"]),
        ("xorriso", "xorriso", &["-as", "mkisofs", "-quiet", "-R", "-J", "-no-pad"]),
    ] {
        let iso = work.join(name);
        let run = Command::new(program).args(args).arg("-o").arg(&iso).arg(&tree).output();
        if run.is_ok_and(|run| run.status.success()) {
            made.push((name.to_owned(), fs::read(&iso)?));
        }
    }
    fs::remove_dir_all(&work)?;
    Ok(made)
}
