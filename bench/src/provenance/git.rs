//! The revision of a checkout, in three questions to git. Used by the build script too, so it knows the standard library only.

use std::path::Path;
use std::process::Command;

/// Variables that send git elsewhere than to the folder that is asked for; hooks of git set them.
const MISLEADING: [&str; 4] = ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"];

/// The revision of the repository that has `file` of `folder`, in 12 digits, with `-dirty` when anything under `paths`
/// (relative to `folder`) is not as committed; none where no repository has the file. `git` gives standard output when it succeeds.
pub(super) fn revision(
    folder: &Path,
    file: &str,
    paths: &[&str],
    git: impl Fn(&Path, &[&str]) -> Option<String>,
) -> Option<String> {
    // A folder that lies in somebody else's checkout has no revision of its own.
    git(folder, &["ls-files", "--error-unmatch", "--", file])?;
    let head = git(folder, &["rev-parse", "--short=12", "HEAD"])?;
    let head = head.lines().next().map(str::trim).filter(|head| !head.is_empty())?;
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(paths);
    // What cannot be compared is not known to be as committed.
    let dirty = git(folder, &status).is_none_or(|text| text.lines().any(is_change));
    Some(if dirty { format!("{head}-dirty") } else { head.to_owned() })
}

/// Whether a line of `git status --porcelain` is one: two letters, a space, a path. Warnings are not.
fn is_change(line: &str) -> bool {
    line.len() > 3 && line.as_bytes()[2] == b' '
}

/// A command that asks about a folder. The index is only read.
pub(super) fn command(folder: &Path, question: &[&str]) -> Command {
    let mut command = Command::new("git");
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.arg("--no-optional-locks").arg("-C").arg(folder).args(question);
    command
}
