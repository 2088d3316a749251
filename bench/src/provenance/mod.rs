//! Which programs measure: the source that the bench is built from, and digests of what runs.
//!
//! The revision is put in when the bench is built (`build.rs`), because a program that was copied or is older than the checkout
//! around it must not claim that checkout's revision. Digests are of the files that are used, so a program that
//! is older than its source is visible as another one.

mod git;

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::doctor;
use crate::model::hex;
use crate::store::{self, StoreError};

/// SHA-256 digests by the name of the program.
pub type Digests = BTreeMap<String, String>;

/// What `bench --version` says: version and revision.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BENCH_REVISION"), ")");

/// The dependencies that the programs are built with.
const LOCK: &[u8] = include_bytes!("../../../Cargo.lock");

/// The program that runs, whatever is at its path by now.
const OWN: &str = "/proc/self/exe";

/// The revision of the source that this bench is built from, with `-dirty` when that was not as committed; none when it was built outside of a
/// checkout.
pub fn revision() -> Option<String> {
    known(env!("BENCH_REVISION"))
}

fn known(revision: &str) -> Option<String> {
    (revision != "unknown").then(|| revision.to_owned())
}

/// SHA-256 of the `Cargo.lock` that this bench is built with.
pub fn lock() -> String {
    hex(&Sha256::digest(LOCK))
}

/// The revision of the repository that has a file, with `-dirty` when the file is not as committed; none when no repository has it.
pub fn revision_of(file: &Path) -> Option<String> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = file.file_name()?.to_str()?;
    git::revision(folder, name, &[name], |folder, question| {
        doctor::succeeds(&mut git::command(folder, question))
    })
}

/// Digests of the bench itself and of `programs`, by their names.
///
/// # Errors
/// One cannot be read.
pub fn digests<'a>(
    programs: impl IntoIterator<Item = (&'static str, &'a Path)>,
) -> Result<Digests, StoreError> {
    [("bench", Path::new(OWN))]
        .into_iter()
        .chain(programs)
        .map(|(name, path)| Ok((name.to_owned(), store::digest(path)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository with one commit of `file`; none without git.
    fn repository(folder: &Path, file: &str) -> Option<String> {
        std::fs::write(folder.join(file), "one\n").unwrap();
        let git = |words: &[&str]| {
            let options = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"];
            let output = git::command(folder, &[&options, words].concat()).output().ok()?;
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
        };
        git(&["init", "--quiet"])?;
        git(&["add", file])?;
        git(&["commit", "--quiet", "-m", "one"])?;
        git(&["rev-parse", "--short=12", "HEAD"])
    }

    #[test]
    fn a_file_has_the_revision_of_the_repository_that_has_it_and_of_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let Some(head) = repository(folder.path(), "s.toml") else {
            eprintln!(
                "SKIPPED provenance::a_file_has_the_revision_of_the_repository_that_has_it_and_of_no_other: no git"
            );
            return;
        };
        let file = folder.path().join("s.toml");
        assert_eq!(revision_of(&file).as_deref(), Some(head.as_str()));
        // Another file of the repository is none of its business.
        std::fs::write(folder.path().join("other.toml"), "").unwrap();
        assert_eq!(revision_of(&file).as_deref(), Some(head.as_str()));
        assert_eq!(revision_of(&folder.path().join("other.toml")), None, "it is not committed");
        std::fs::write(&file, "two\n").unwrap();
        assert_eq!(revision_of(&file), Some(format!("{head}-dirty")));
        assert_eq!(revision_of(&folder.path().join("not-there/s.toml")), None);
    }

    #[test]
    fn a_revision_is_as_what_git_says() {
        let ask = |tracked: bool, status: Option<&str>| {
            let status = status.map(str::to_owned);
            git::revision(Path::new("."), "f", &["src"], |_, question| match question[0] {
                "ls-files" => tracked.then(|| "f\n".to_owned()),
                "rev-parse" => Some("0123456789ab\n".into()),
                _ => {
                    assert_eq!(question, ["status", "--porcelain", "--", "src"]);
                    status.clone()
                }
            })
        };
        assert_eq!(ask(true, Some("")).as_deref(), Some("0123456789ab"));
        for dirty in [" M src/main.rs\n", "?? src/new.rs\n", "R  a -> b\n"] {
            assert_eq!(ask(true, Some(dirty)).as_deref(), Some("0123456789ab-dirty"), "{dirty}");
        }
        assert_eq!(ask(true, Some("warning: x\n")).as_deref(), Some("0123456789ab"));
        assert_eq!(ask(true, None).as_deref(), Some("0123456789ab-dirty"), "it cannot be compared");
        assert_eq!(ask(false, Some("")), None, "a folder in somebody else's checkout");
    }

    #[test]
    fn the_revision_of_the_source_is_in_the_program() {
        assert_eq!(known("unknown"), None);
        assert!(VERSION.contains(env!("BENCH_REVISION")));
        let built = env!("BENCH_REVISION");
        let digits = built.strip_suffix("-dirty").unwrap_or(built);
        let is_hash = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(built == "unknown" || is_hash, "{built}");
        // Where this test runs in the checkout that it was built from, it is that one's.
        if let Some(own) = revision_of(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")) {
            assert_eq!(digits, own.trim_end_matches("-dirty"));
        }
    }

    #[test]
    fn programs_are_told_apart_by_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let ffs = folder.path().join("ffs");
        std::fs::write(&ffs, "abc").unwrap();
        let found = digests([("ffs", ffs.as_path())]).unwrap();
        assert_eq!(found["ffs"], "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(found["bench"], store::digest(&std::env::current_exe().unwrap()).unwrap());
        assert_eq!(found.len(), 2);
        std::fs::write(&ffs, "abd").unwrap();
        assert_ne!(digests([("ffs", ffs.as_path())]).unwrap()["ffs"], found["ffs"]);
        assert!(digests([("ctx", folder.path().join("ctx").as_path())]).is_err());
        assert_eq!(lock().len(), 64);
    }
}
