//! Shaping of links with tc, and the proof that they are as asked.
