//! Puts into the program which revision it is built from: in `BENCH_REVISION`, or `unknown` outside of a checkout.

#![allow(clippy::print_stdout, reason = "this is how a build script speaks to cargo")]

#[path = "src/provenance/git.rs"]
mod git;

use std::path::Path;

/// What the programs are built from, relative to this folder. Tests and documents are not.
const SOURCES: [&str; 21] = [
    "build.rs",
    "Cargo.toml",
    "src",
    "fonts",
    "images",
    "templates",
    "probe/Cargo.toml",
    "probe/src",
    "../Cargo.toml",
    "../Cargo.lock",
    "../ctx/Cargo.toml",
    "../ctx/src",
    "../ctx/units",
    "../ctx/hooks",
    "../ctx/format/Cargo.toml",
    "../ctx/format/src",
    "../ctx/io/Cargo.toml",
    "../ctx/io/src",
    "../ffs/Cargo.toml",
    "../ffs/src",
    "../ffs/units",
];

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| ".".into());
    let folder = Path::new(&folder);
    let revision = git::revision(folder, "Cargo.toml", &SOURCES, ask);
    println!("cargo::rustc-env=BENCH_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    // Where the tree changes, and where HEAD does. A file that is not there would run this script each time.
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    let branch = ask(folder, &["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    for name in ["HEAD", "logs/HEAD", "packed-refs", branch.trim()] {
        let path = ask(folder, &["rev-parse", "--git-path", name]).unwrap_or_default();
        let path = folder.join(path.trim_end_matches('\n'));
        if revision.is_some() && !name.is_empty() && path.is_file() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}

fn ask(folder: &Path, question: &[&str]) -> Option<String> {
    // Whoever owns the checkout: this script is of it, and runs already.
    let question = [&["-c", "safe.directory=*"], question].concat();
    let output = git::command(folder, &question).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
