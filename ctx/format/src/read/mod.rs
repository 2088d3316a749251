//! Reading an ISO 9660 image that is in memory, from whoever made it.
//!
//! An image is indexed once, whole, into an immutable [`Image`]: names, attributes, and for each
//! file the byte ranges that hold it. Nothing is extracted and nothing is read later, so the device
//! that the bytes came from can be gone. What is shown is what Linux's isofs shows of the image when it is
//! mounted without options (and with `utf8`, where that is not the kernel's default); the table below says where
//! that is not so, and `tests/isofs.rs` compares the two. No parser of others shows that (they choose another tree,
//! hide old versions, replace characters, and know no compression), so this one is our own.
//!
//! Images may be hostile. Every range lies inside the image, no directory is reached twice (no loops) or overlaps another
//! one, so that each record means one thing; two names are one file only where nothing else differs between them;
//! names are names (no `/`, no NUL, no `.` or `..`, none twice), and depth, number of entries,
//! lengths, memory and the work of parsing are bounded ([`Limits`]). An image that breaks a rule is
//! refused whole: a half-read configuration is worse than the one before.
//!
//! | module | one idea |
//! |---|---|
//! | `tree` | what an image holds |
//! | `error` | why it is refused |
//! | `limits` | how much it may ask for |
//! | `volume` | which tree is shown |
//! | `record` | directory records |
//! | `susp` | system use entries: Rock Ridge |
//! | `name` | names without Rock Ridge |
//! | `time` | times |
//! | `zisofs` | files that are stored compressed |
//! | `walk` | from the root to every entry, checked |
//!
//! # Beside Linux's isofs
//!
//! | on the image | Linux's isofs | here | test |
//! |---|---|---|---|
//! | Rock Ridge and Joliet | Rock Ridge, if announced (`ER`) and its root is not empty | same | `the_tree_is_chosen_as_linux_chooses` |
//! | Rock Ridge that the root does not announce | shown, if there is no Joliet; attributes also behind CD-ROM XA | shown, if there is no Joliet; not behind XA. What are no entries is passed over | `rock_ridge_needs_no_announcement`, `zisofs_needs_no_announcement` |
//! | enhanced volume (ISO 9660:1999), El Torito, partitions, UDF beside ISO 9660 | passed over | same | `the_tree_is_chosen_as_linux_chooses`, `real_programs_extras_are_passed_over` |
//! | High Sierra | shown | refused | `what_is_not_supported_is_refused` |
//! | blocks of 512 bytes | refused, unless asked for | shown | `blocks_may_be_smaller_than_sectors` |
//! | more than one session | last session of a drive, first of a file | first | |
//! | numbers whose byte orders disagree | little-endian one counts | same | `only_one_byte_order_counts` |
//! | plain names | lower case, without `;1` and `.;1`; other `;` and `/` are dots | same | `name::tests` |
//! | versions | each is shown, others than 1 as `.N` | same | `every_version_is_shown` |
//! | Joliet names | UTF-8, without `;1` and dots at the end | same | `name::tests` |
//! | Joliet names that differ in case only | both listed, each lookup finds the first | both, each with its content | `joliet_names_may_differ_in_case_only` |
//! | Joliet look-ups | in any case (`check=relaxed`) | exact | `joliet_names_may_differ_in_case_only` |
//! | Joliet names of more than 255 bytes in UTF-8 | listed, no lookup finds them | not shown | `joliet_names_that_are_too_long_are_not_shown` |
//! | empty names (`;1`) | not shown | same | `what_has_no_name_is_not_shown` |
//! | names that mapping makes the same | both listed, a lookup finds the first | the first | `of_names_that_became_the_same_the_first_is_shown` |
//! | Rock Ridge names that are the same | both listed, a lookup finds the first | refused | `a_rock_ridge_name_twice_is_refused` |
//! | `NM` that goes on in more entries | joined, up to 253 bytes; more is cut | joined, up to 255; more is refused | `rock_ridge_names_go_on` |
//! | `NM` with a NUL | cut there | same | `names_end_at_a_nul` |
//! | `NM` with a slash, or that is `.` or `..` | error or odd | refused | `names_with_a_slash_are_never_shown` |
//! | `RR` without the bit of `NM` | `NM` behind it is passed over | same | `entries_that_linux_does_not_know_end_nothing` |
//! | `ST` | passed over | same | `entries_that_linux_does_not_know_end_nothing` |
//! | `PX` | mode, owner, links | same; names of one file share a number | `reads_what_xorriso_makes` |
//! | no Rock Ridge | 0555, owner 0 | same | `without_rock_ridge_all_can_be_read_and_run` |
//! | `PX` of an unknown type | error | refused | `what_is_not_supported_is_refused` |
//! | `PN` | all of the number may be in the low half | same | `device_numbers_are_read_both_ways` |
//! | `TF`, short and long | to 2155; before 6.17 short ones to 2038, others wrong | all | `times_are_taken_from_rock_ridge`, `time::tests` |
//! | `SL` | joined, up to 4095 bytes | same; without one or longer, refused | `links_are_joined` |
//! | `CE` | up to 31 areas within a block each | up to 256, anywhere | `reads_what_xorriso_makes` |
//! | `CL`, `PL`, `RE` | shown where they were, `rr_moved` is empty | same | `moved_directories_are_shown_where_they_were` |
//! | directory that is reached twice | shown twice | refused | `a_directory_that_contains_itself_is_refused` |
//! | directories that overlap | shown | refused | `directories_that_overlap_are_refused` |
//! | `ZF` with `pz` (zisofs) | decompressed; a damaged block is an I/O error | decompressed when the layer is loaded; damaged, refused | `zisofs_is_decompressed`, ffs: `compressed_files_are_shown_as_they_were` |
//! | `ZF`: a block of thousands of pieces, a last block of far more bytes than its content needs, files that share what is stored | decompressed | refused; files that are equal may share it | `a_stream_that_only_takes_time_is_refused`, ffs: `each_is_refused_with_a_reason_or_harmless` |
//! | `ZF` with another algorithm (zisofs 2 has `PZ`) or block size, `Z2` | shown as it is stored | refused | `what_is_not_supported_is_refused` |
//! | `SF` (sparse files) | shown as it is stored | refused | `what_is_not_supported_is_refused` |
//! | `AL` (AAIP: ACLs, extended attributes), `AA`, `BA` (Apple) | passed over | same | `real_programs_extras_are_passed_over` |
//! | CD-ROM XA before Rock Ridge | passed over | same | `xa_before_rock_ridge_is_passed_over` |
//! | damaged system use entries | shown with what was read before | refused | `damaged_entries_are_refused` |
//! | several extents | one file, up to 100 extents | one file | `several_extents_are_one_file` |
//! | interleaved files | shown as empty | refused | `what_is_not_supported_is_refused` |
//! | associated files (resource forks) | not shown | same | `flags_are_obeyed` |
//! | hidden files | shown | same | `flags_are_obeyed` |
//! | extended attribute records, record formats | passed over | same | `extended_attribute_records_are_passed_over` |
//! | content behind the end that the descriptor says | shown | same | `the_descriptor_may_say_less_than_there_is` |
//! | content behind the end of the image | I/O error | refused | `a_truncated_image_is_called_that` |
//! | path tables | not used | same | `many_directories_are_read` |

mod error;
#[cfg(test)]
mod isofs_tests;
mod limits;
mod name;
mod record;
mod susp;
#[cfg(test)]
mod tests;
mod time;
mod tree;
mod volume;
mod walk;
mod zisofs;

pub use error::ReadError;
pub use limits::Limits;
pub use tree::{Entry, Image, Kind, Range, Time};
use walk::Walk;
pub use zisofs::{Zisofs, ZisofsError};

/// Indexes an image under the limits of [`Limits::for_len`].
///
/// # Errors
/// [`ReadError`]; never panics, whatever the bytes are.
pub fn index(image: &[u8]) -> Result<Image, ReadError> {
    index_within(image, Limits::for_len(image.len()))
}

/// Indexes an image.
///
/// # Errors
/// [`ReadError`]; never panics, whatever the bytes are.
pub fn index_within(image: &[u8], limits: Limits) -> Result<Image, ReadError> {
    Walk::new(image, limits)?.run()
}
