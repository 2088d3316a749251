//! Writing where a directory cannot be synced.

// Of what several crates' tests share, not everything is used here.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::pedantic,
    clippy::print_stderr,
    unreachable_pub,
    dead_code
)]

#[path = "support/nosync.rs"]
mod nosync;

use ctx_io::{durable, jsonl};

#[test]
fn a_file_is_written_where_a_directory_cannot_be_synced() {
    let Some(mounted) = nosync::Mounted::new("a_file_is_written_where_a_directory_cannot_be_synced") else {
        return;
    };
    let path = mounted.path().join("n".repeat(255));
    for text in ["old", "new"] {
        durable::write_with_mode(&path, text.as_bytes(), 0o644).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    durable::sync_dir(&mounted.path()).unwrap();
    let mut log = jsonl::Appender::open(&mounted.path().join("log"), 0o600).unwrap();
    log.append(&"record").unwrap();
    log.sync().unwrap();
    assert_eq!(std::fs::read_dir(mounted.path()).unwrap().count(), 2);
}
