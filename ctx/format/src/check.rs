//! An image against its manifest, and its manifest against the keys that are trusted.
//!
//! The tree under `/data` must be exactly what the manifest names: every file once, with its size and
//! SHA-256, and nothing else. Files are hashed where they lie, in one pass and without a copy. With keys
//! the manifest must be signed by one of them that is for its class, and then modes and owners must also
//! be as the writer writes them: whoever carries an image could otherwise make a secret readable by all.

use std::rc::Rc;

use crate::class::ClassName;
use crate::manifest::{DATA_DIR, MANIFEST_PATH, MAX_MANIFEST, Manifest, ManifestError, Sha256};
use crate::read::{Entry, Image, Kind};
use crate::sign::{KeyId, PublicKey, Ring, SIGNATURE_LEN, SIGNATURE_PATH, SignatureError};
use crate::write::DIR_MODE;

/// An image that is what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Its manifest.
    pub manifest: Manifest,
    /// SHA-256 of the manifest's bytes: names the content of the whole image.
    pub digest: Sha256,
    /// The key that vouches for it, where keys were given.
    pub key: Option<KeyId>,
}

/// What an image says of itself, true or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The class in its manifest.
    pub class: ClassName,
    /// The generation in its manifest.
    pub generation: u64,
}

/// An image that is refused.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// What it claims to be, where that can be read: for messages only.
    pub claim: Option<Claim>,
    /// Why it is refused.
    #[source]
    pub error: CheckError,
}

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The manifest is wrong, or the image is not what it says.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Nobody who is trusted vouches for the manifest.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// No manifest, where keys are given.
    #[error(
        "the image has no /{MANIFEST_PATH}: nobody vouches for it, and only signed images are taken here"
    )]
    NoManifest,
    /// No signature, where keys are given.
    #[error("the image is not signed: it has no /{SIGNATURE_PATH}, and only signed images are taken here")]
    Unsigned,
    /// Something in the data that no manifest can vouch for.
    #[error(
        "`/{path}` of the context image is {what}: a manifest vouches for regular files only, as they are stored"
    )]
    Unvouched {
        /// Its path in the image.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A signed image with other modes or owners than were signed.
    #[error("`/{path}` of the signed image has {found}, it must have {expected}")]
    Attributes {
        /// Its path in the image.
        path: String,
        /// What it has.
        found: String,
        /// What it must have.
        expected: String,
    },
    /// Files that claim more bytes together than the image has.
    #[error("the files of the context image overlap: together they claim more than its {len} bytes")]
    Overlap {
        /// Length of the image in bytes.
        len: u64,
    },
}

/// Checks an image that was indexed from `bytes`. Without a ring, one that has no manifest is `None`:
/// a plain image, of which nothing is claimed.
///
/// # Errors
/// [`Refused`], when anything is not as the manifest says, or with a ring, not vouched for.
pub fn check(image: &Image, bytes: &[u8], ring: Option<&Ring>) -> Result<Option<Checked>, Refused> {
    let unclaimed = |error| Refused { claim: None, error };
    let json = match small_file(image, bytes, MANIFEST_PATH, MAX_MANIFEST).map_err(unclaimed)? {
        Some(json) => json,
        None if ring.is_some() => return Err(unclaimed(CheckError::NoManifest)),
        None => return Ok(None),
    };
    let key = match ring {
        None => None,
        Some(ring) => match signer(image, bytes, ring, &json) {
            Ok(key) => Some(key),
            // Who carries the image wrote this claim; it goes into messages and decides nothing.
            Err(error) => return Err(Refused { claim: Manifest::parse(&json).ok().map(claim), error }),
        },
    };
    let manifest = Manifest::parse(&json).map_err(|error| unclaimed(error.into()))?;
    let checked = (|| {
        if let Some(key) = key.filter(|key| !key.allows(&manifest.class)) {
            return Err(SignatureError::Class { key: key.id(), class: manifest.class.clone() }.into());
        }
        match image.root.get(DATA_DIR) {
            Some(data) => tree(&manifest, data, bytes, key.is_some()),
            None => missing(&manifest, None),
        }
    })();
    match checked {
        Ok(()) => Ok(Some(Checked { digest: Sha256::of(&json), key: key.map(PublicKey::id), manifest })),
        Err(error) => Err(Refused { claim: Some(claim(manifest)), error }),
    }
}

fn claim(manifest: Manifest) -> Claim {
    Claim { class: manifest.class, generation: manifest.generation }
}

fn signer<'a>(
    image: &Image,
    bytes: &[u8],
    ring: &'a Ring,
    manifest: &[u8],
) -> Result<&'a PublicKey, CheckError> {
    let signature = small_file(image, bytes, SIGNATURE_PATH, SIGNATURE_LEN)?.ok_or(CheckError::Unsigned)?;
    Ok(ring.verify(manifest, &signature)?)
}

/// A file that is read whole; too large is an error and not a cut.
fn small_file(image: &Image, bytes: &[u8], path: &str, max: usize) -> Result<Option<Vec<u8>>, CheckError> {
    let Some(entry) = image.root.get(path) else { return Ok(None) };
    if entry.size > max as u64 {
        let size = usize::try_from(entry.size).unwrap_or(usize::MAX);
        return Err(match path {
            SIGNATURE_PATH => SignatureError::Syntax.into(),
            _ => ManifestError::TooLarge { size }.into(),
        });
    }
    match entry.content(bytes) {
        Some(content) => Ok(Some(content)),
        None => Err(CheckError::Unvouched { path: path.to_owned(), what: "not a regular file" }),
    }
}

/// Checks that the tree is exactly what the manifest names.
fn tree(manifest: &Manifest, data: &Entry, image: &[u8], signed: bool) -> Result<(), CheckError> {
    let mut found = 0;
    // A crafted image could name one range a million times: what is hashed stays within its length.
    let mut left = image.len() as u64;
    // With what stands before its name in the path, shared by all entries of a directory.
    let mut stack: Vec<(Rc<str>, &Entry)> = vec![("".into(), data)];
    while let Some((prefix, entry)) = stack.pop() {
        let name = if std::ptr::eq(entry, data) { "".into() } else { String::from_utf8_lossy(&entry.name) };
        let path = format!("{prefix}{name}");
        let on_image = || format!("{DATA_DIR}/{path}");
        let unvouched = |what| CheckError::Unvouched { path: on_image(), what };
        let mode = match &entry.kind {
            Kind::Dir(children) => {
                // A directory that holds no file is named by no manifest.
                if signed && children.is_empty() && !path.is_empty() {
                    return Err(unvouched("an empty directory"));
                }
                let inside: Rc<str> = if path.is_empty() { prefix } else { format!("{path}/").into() };
                stack.extend(children.iter().map(|child| (inside.clone(), child)));
                DIR_MODE
            }
            Kind::File(ranges) => {
                left = left.checked_sub(entry.size).ok_or(CheckError::Overlap { len: image.len() as u64 })?;
                let chunks = ranges.iter().map(|range| range.of(image).unwrap_or_default());
                found += 1;
                manifest.verify_chunks(&path, chunks)?.mode.bits()
            }
            Kind::Compressed(_) => return Err(unvouched("a compressed file")),
            Kind::Symlink(_) => return Err(unvouched("a symbolic link")),
            _ => return Err(unvouched("a special file")),
        };
        let have = (entry.mode, entry.uid, entry.gid);
        if signed && have != (mode, 0, 0) {
            let text = |(mode, uid, gid)| format!("mode {mode:04o} and owner {uid}:{gid}");
            let (found, expected) = (text(have), text((mode, 0, 0)));
            return Err(CheckError::Attributes { path: on_image(), found, expected });
        }
    }
    // Names are unique in an indexed image: as many files as the manifest names are all of them,
    // if each was found in it.
    if found == manifest.files.len() { Ok(()) } else { missing(manifest, Some(data)) }
}

fn missing(manifest: &Manifest, data: Option<&Entry>) -> Result<(), CheckError> {
    let there = |path: &str| data.is_some_and(|data| data.get(path).is_some());
    match manifest.files.keys().find(|path| !there(path.as_str())) {
        Some(path) => Err(ManifestError::Missing { path: path.clone() }.into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::read::index;
    use crate::sign::SecretKey;
    use crate::{ContextData, File, ImageOptions, Mode, Priority, write_signed_iso};

    fn key() -> SecretKey {
        SecretKey::from_seed(&[1; 32])
    }

    fn data() -> ContextData {
        let file = |text: &str, mode| File { content: text.into(), mode: Mode::new(mode).unwrap() };
        ContextData {
            class: "infrastructure".parse().unwrap(),
            priority: Priority(200),
            generation: 7,
            instance_id: "i-1".parse().unwrap(),
            files: [
                ("endpoints/storage".parse().unwrap(), file(&"198.18.2.10\n".repeat(200), 0o644)),
                ("secret".parse().unwrap(), file("s3cret\n", 0o600)),
            ]
            .into(),
        }
    }

    fn image(key: Option<&SecretKey>) -> Vec<u8> {
        write_signed_iso(&data(), &ImageOptions::default(), key).unwrap()
    }

    fn ring() -> Ring {
        [key().public()].into_iter().collect()
    }

    fn judge(bytes: &[u8], ring: Option<&Ring>) -> Result<Option<Checked>, Refused> {
        check(&index(bytes).unwrap(), bytes, ring)
    }

    #[test]
    fn a_signed_image_is_vouched_for_and_the_same_bytes_every_time() {
        let bytes = image(Some(&key()));
        assert_eq!(bytes, image(Some(&key())));
        let checked = judge(&bytes, Some(&ring())).unwrap().unwrap();
        assert_eq!(checked.manifest, data().manifest());
        assert_eq!(checked.key, Some(key().public().id()));
        // Without keys a signature is nobody's business.
        assert_eq!(judge(&bytes, None).unwrap().unwrap().key, None);
    }

    #[test]
    fn what_nobody_vouches_for_is_refused() {
        let refused = judge(&image(None), Some(&ring())).unwrap_err();
        assert!(matches!(refused.error, CheckError::Unsigned), "{refused}");
        assert_eq!(refused.claim.unwrap().generation, 7);
        let other = SecretKey::from_seed(&[2; 32]);
        let refused = judge(&image(Some(&other)), Some(&ring())).unwrap_err();
        assert!(matches!(refused.error, CheckError::Signature(SignatureError::UnknownKey(_))), "{refused}");
        let ring: Ring = [key().public().for_classes(["service".parse().unwrap()])].into_iter().collect();
        let refused = judge(&image(Some(&key())), Some(&ring)).unwrap_err();
        assert!(matches!(refused.error, CheckError::Signature(SignatureError::Class { .. })), "{refused}");
    }

    fn to_usize(number: u64) -> usize {
        number.try_into().unwrap()
    }

    /// The ranges of the files that are vouched for, manifest and signature included.
    fn covered(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
        let image = index(bytes).unwrap();
        let files = [MANIFEST_PATH, SIGNATURE_PATH, "data/endpoints/storage", "data/secret"];
        let ranges = files.map(|path| match &image.root.get(path).unwrap().kind {
            Kind::File(ranges) => ranges.clone(),
            other => panic!("{other:?}"),
        });
        ranges.concat().iter().map(|r| to_usize(r.start)..to_usize(r.start + r.len)).collect()
    }

    /// What a guest would show: everything but times.
    fn shown(entry: &Entry, bytes: &[u8]) -> String {
        let children: Vec<String> = entry.children().iter().map(|child| shown(child, bytes)).collect();
        let Entry { name, mode, uid, gid, size, .. } = entry;
        format!("{name:?} {mode:o} {uid} {gid} {size} {:?} {children:?}", entry.content(bytes))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn any_flip_in_a_file_in_the_manifest_or_in_the_signature_is_refused(
            range in 0usize..4, at in any::<prop::sample::Index>(), bit in 0u8..8,
        ) {
            let mut bytes = image(Some(&key()));
            let range = covered(&bytes)[range].clone();
            bytes[range.start + at.index(range.len())] ^= 1 << bit;
            prop_assert!(judge(&bytes, Some(&ring())).is_err());
        }

        /// Anywhere else: refused, or what is shown is what was signed. The bytes that make no
        /// difference are the system area, times, labels, the Joliet tree, path tables and padding.
        #[test]
        fn flips_anywhere_never_show_anything_that_was_not_signed(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..4), structure in any::<bool>(),
        ) {
            let good = image(Some(&key()));
            let mut bytes = good.clone();
            // The first files lie behind the directories: aim there half of the time.
            let end = if structure { covered(&good)[0].start } else { bytes.len() };
            for (at, bit) in flips {
                bytes[16 * 2048 + at.index(end - 16 * 2048)] ^= 1 << bit;
            }
            let Ok(indexed) = index(&bytes) else { return Ok(()) };
            if let Ok(Some(checked)) = check(&indexed, &bytes, Some(&ring())) {
                prop_assert_eq!(checked.manifest, data().manifest());
                let data = indexed.root.get(DATA_DIR).unwrap();
                let want = index(&good).unwrap();
                prop_assert_eq!(shown(data, &bytes), shown(want.root.get(DATA_DIR).unwrap(), &good));
            }
        }
    }
}
