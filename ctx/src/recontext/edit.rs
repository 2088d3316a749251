//! Changing a few places of an XML text and not one byte more.
//!
//! A domain's XML belongs to its owner and to libvirt. What is to be changed is found with a parser;
//! the change itself is made by byte range, so that everything else, comments and white space
//! included, stays as it was.

use std::ops::Range;

/// The text that takes the place of a range of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Which bytes; empty to insert.
    pub range: Range<usize>,
    /// What stands there instead.
    pub text: String,
}

/// `text` with all edits done. An edit that does not lie on character boundaries of `text` or
/// overlaps one before it is left out: ranges come from a parser of the same text, so there is none.
pub fn apply(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut edited = String::with_capacity(text.len());
    let mut at = 0;
    for edit in edits {
        let Some(kept) = text.get(at..edit.range.start) else { continue };
        if !text.is_char_boundary(edit.range.end) || edit.range.end < edit.range.start {
            continue;
        }
        edited.push_str(kept);
        edited.push_str(&edit.text);
        at = edit.range.end;
    }
    edited.push_str(text.get(at..).unwrap_or_default());
    edited
}

/// Text as it may stand in an attribute, whichever quotes are around it.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(range: Range<usize>, text: &str) -> Edit {
        Edit { range, text: text.into() }
    }

    #[test]
    fn edits_are_done_in_any_order_and_the_rest_stays() {
        let edits = vec![edit(6..9, "three"), edit(0..3, "1"), edit(3..3, "!")];
        assert_eq!(apply("one & two", edits), "1! & three");
        assert_eq!(apply("as it was", vec![]), "as it was");
    }

    #[test]
    fn an_edit_that_does_not_fit_is_left_out() {
        assert_eq!(apply("añb", vec![edit(2..3, "x")]), "añb");
        assert_eq!(apply("abc", vec![edit(0..2, "x"), edit(1..3, "y")]), "xc");
        assert_eq!(apply("abc", vec![edit(2..9, "x")]), "abc");
    }
}
