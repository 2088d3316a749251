//! How `ctx`, `ffs` and `bench` write, keep and read: one way for all three programs.
//!
//! Each module is the answer to one fault that users meet and that every program would otherwise have to think of by itself.
//!
//! | module | one idea |
//! |---|---|
//! | [`output`] | standard output and error that never panic |
//! | [`durable`] | a file that is there whole or not at all, on any file system |
//! | [`place`] | symbolic links that anyone can plant are not followed to where a file is written |
//! | [`jsonl`] | logs of records that survive a torn line |
//! | [`bounded`] | what comes from outside is read up to a limit |
//! | [`accept`] | an accept loop without free descriptors waits, and says so once |
//!
//! Nothing here knows what is written or read. There is no `unsafe` and no async runtime: `ffs` is carried into guests and
//! must stay small.

pub mod accept;
pub mod bounded;
pub mod durable;
pub mod jsonl;
pub mod output;
pub mod place;
