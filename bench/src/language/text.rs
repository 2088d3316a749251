//! The texts of a scenario's files as one virtual text, so that a place is one number wherever a value came from.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::ScenarioError;

/// Something wrong, at a place of the virtual text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) span: Range<usize>,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
    /// The fault is in what was asked of the file, and not in the file.
    pub(crate) misuse: bool,
}

impl Fault {
    /// A fault with its place, its reason and what to do.
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { span, message: message.into(), help: help.into(), misuse: false }
    }
}

/// One file.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// Its path, for people and for the manifest.
    pub(crate) path: PathBuf,
    /// The file word for word.
    pub(crate) content: String,
    /// Where it begins in the virtual text.
    start: usize,
}

/// All files, one behind the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Texts {
    files: Vec<Text>,
    end: usize,
}

impl Texts {
    /// Adds a file; gives the place of its first byte.
    pub(crate) fn add(&mut self, path: &Path, text: &str) -> usize {
        let start = self.end;
        self.files.push(Text { path: path.to_owned(), content: text.to_owned(), start });
        // One more, so that the end of a file is no place of the next.
        self.end += text.len() + 1;
        start
    }

    /// The files, in the order in which they were added.
    pub(crate) fn files(&self) -> &[Text] {
        &self.files
    }

    /// Whether a place is in the first file, the scenario's own.
    pub(crate) fn is_first(&self, place: usize) -> bool {
        self.files.first().is_some_and(|file| place <= file.content.len())
    }

    fn at(&self, place: usize) -> Option<&Text> {
        self.files.iter().rfind(|file| file.start <= place)
    }

    /// `file:line` of a place.
    pub(crate) fn line(&self, place: usize) -> String {
        let Some(file) = self.at(place) else { return String::new() };
        let before = file.content.get(..place - file.start).unwrap_or(&file.content);
        format!("{}:{}", file.path.display(), before.matches('\n').count() + 1)
    }

    /// A fault as the error of a scenario, in its own file.
    pub(crate) fn error(&self, fault: Fault) -> ScenarioError {
        let Fault { span, message, help, misuse } = fault;
        let error = match self.at(span.start) {
            Some(file) => {
                let local = span.start - file.start..span.end.saturating_sub(file.start);
                ScenarioError::at(&file.path.display().to_string(), &file.content, local, message, help)
            }
            None => ScenarioError::at("scenario", "", 0..0, message, help),
        };
        if misuse { error.of_the_question() } else { error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_the_file_that_has_it() {
        let mut texts = Texts::default();
        assert_eq!(texts.add(Path::new("a.toml"), "one\ntwo\n"), 0);
        let second = texts.add(Path::new("b.toml"), "x = 1\ny = 2\n");
        assert_eq!(texts.line(4), "a.toml:2");
        assert_eq!(texts.line(second), "b.toml:1");
        assert_eq!(texts.line(second + 6), "b.toml:2");
        let error = texts.error(Fault::new(second + 6..second + 7, "no", "do"));
        assert_eq!(error.place(), "b.toml:2:1");
        // The end of a file is its own.
        assert_eq!(texts.line(8), "a.toml:3");
    }
}
