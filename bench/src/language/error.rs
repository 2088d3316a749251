//! The one error of a scenario: a place in the file, what is wrong there and what to do.

use std::{ops::Range, sync::Arc};

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, NamedSource, SourceSpan};

/// What is wrong with a scenario, where, and what to do about it.
///
/// `Display` gives `file:line:column: message` on one line; as a [`miette::Diagnostic`] it also
/// shows the line with a caret under the place.
#[derive(Debug, Clone, thiserror::Error, Diagnostic)]
#[error("{place}: {message}")]
pub struct ScenarioError {
    /// `file:line:column`, from 1; only the file when it could not be read.
    place: String,
    message: String,
    #[source_code]
    text: Option<Arc<NamedSource<String>>>,
    #[label("here")]
    span: Option<SourceSpan>,
    #[help]
    help: String,
    /// The fault is in what was asked of the file.
    misuse: bool,
}

impl ScenarioError {
    pub(crate) fn at(file: &str, text: &str, span: Range<usize>, message: String, help: String) -> Self {
        let span = span.start.min(text.len())..span.end.min(text.len());
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |s| s.chars().count()) + 1;
        // A span over several lines (a whole table) would underline them all.
        let first_line =
            text.get(span.clone()).map_or(span.end, |s| span.start + s.find('\n').unwrap_or(s.len()));
        Self {
            place: format!("{file}:{line}:{column}"),
            message,
            text: Some(Arc::new(NamedSource::new(file, text.to_owned()).with_language("TOML"))),
            span: Some((span.start, first_line - span.start).into()),
            help,
            misuse: false,
        }
    }

    /// The same, where the fault is in what was asked of the file, and not in the file.
    pub(crate) fn of_the_question(self) -> Self {
        Self { misuse: true, ..self }
    }

    /// Whether the fault is in what was asked of the file, such as a profile that it does not have.
    pub fn is_misuse(&self) -> bool {
        self.misuse
    }

    /// An error of a file whose text is not there.
    pub(crate) fn without_text(place: String, message: String, help: &str) -> Self {
        Self { place, message, text: None, span: None, help: help.to_owned(), misuse: false }
    }

    pub(crate) fn unreadable(file: String, source: &std::io::Error) -> Self {
        let help = match source.kind() {
            std::io::ErrorKind::NotFound => "give the path of a scenario file, e.g. scenarios/smoke.toml",
            std::io::ErrorKind::InvalidData => "a scenario is a TOML file in UTF-8",
            _ => "make it readable for you",
        };
        Self::without_text(file, format!("the scenario cannot be read: {source}"), help)
    }

    /// `file:line:column`, from 1.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// The error with its line and caret, without colours.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
        match handler.render_report(&mut out, self) {
            Ok(()) => out,
            Err(_) => format!("{self}\n{}", self.help),
        }
    }
}
