//! Signatures: who may say what an image holds.
//!
//! `/.ctx/manifest.sig` is one line, an Ed25519 signature (RFC 8032) of the SHA-256 of the manifest's
//! bytes as they lie on the image. The manifest has class, priority, generation, instance, and path, mode, size and
//! SHA-256 of every file, so the signature speaks for all of them; bytes and not values are signed,
//! so nothing has to be parsed before it is known who wrote it.
//!
//! ```text
//! public key  ctx-ed25519 KEYID KEY [classes=a,b] [comment…]
//! secret key  ctx-ed25519-secret KEYID SEED
//! signature   ctx-ed25519 KEYID SIGNATURE
//! ```
//!
//! All in lower-case hexadecimal, each value in one spelling only. The key id is the start of the key's
//! SHA-256: it finds the key, and protects nothing by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::class::ClassName;
use crate::manifest::Sha256;

/// Where the signature lies on the image, from its root.
pub const SIGNATURE_PATH: &str = ".ctx/manifest.sig";

/// The length of a signature file in bytes: scheme, key id, signature, spaces and newline.
pub const SIGNATURE_LEN: usize = SCHEME.len() + 1 + 16 + 1 + 128 + 1;

/// The only scheme so far, as it stands in keys and signatures.
const SCHEME: &str = "ctx-ed25519";
/// The scheme of a secret key: another word, so that it cannot be given for a public one.
const SECRET: &str = "ctx-ed25519-secret";
/// What is signed starts with this, so that no signature made for something else fits.
const DOMAIN: &[u8] = b"ctx manifest signature 1\0";

/// Names a key: the first eight bytes of the SHA-256 of the public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyId([u8; 8]);

impl KeyId {
    fn of(key: &VerifyingKey) -> Self {
        let mut id = [0; 8];
        id.copy_from_slice(&Sha256::of(key.as_bytes()).as_bytes()[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl FromStr for KeyId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_hex(text).map(Self).ok_or_else(|| KeyError::NoId { text: text.to_owned() })
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the line of a public key.
    #[error(
        "not a public key: one line `{SCHEME} KEYID KEY [classes=a,b] [comment]` is wanted, as `ctx keygen` writes it"
    )]
    Public,
    /// Not the line of a secret key.
    #[error("not a secret key: one line `{SECRET} KEYID SEED` is wanted, as `ctx keygen` writes it")]
    Secret,
    /// Not the id of a key.
    #[error("{text:?} is not the id of a key: 16 lower-case hexadecimal digits are wanted")]
    NoId {
        /// As given.
        text: String,
    },
    /// The id is another key's: the line was cut or mixed.
    #[error("the key id is {found}, that of this key is {expected}: the line is damaged")]
    Id {
        /// As written.
        found: String,
        /// As it must be.
        expected: String,
    },
    /// `classes=` with something else than class names.
    #[error("the key's classes: {0}")]
    Class(#[from] crate::class::ClassNameError),
}

/// A key that verifies, and what it may vouch for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    id: KeyId,
    classes: Option<BTreeSet<ClassName>>,
}

impl PublicKey {
    /// Its id.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Whether it may vouch for images of this class: for any, unless its line names some.
    pub fn allows(&self, class: &ClassName) -> bool {
        self.classes.as_ref().is_none_or(|classes| classes.contains(class))
    }

    /// The same key for these classes only.
    #[must_use]
    pub fn for_classes(mut self, classes: impl IntoIterator<Item = ClassName>) -> Self {
        self.classes = Some(classes.into_iter().collect());
        self
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(line: &str) -> Result<Self, KeyError> {
        let mut words = line.split_whitespace();
        if words.next() != Some(SCHEME) {
            return Err(KeyError::Public);
        }
        let id = words.next().ok_or(KeyError::Public)?;
        let bytes = words.next().and_then(from_hex::<32>).ok_or(KeyError::Public)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::Public)?;
        // A key of small order verifies signatures that nobody made.
        if key.is_weak() || line.trim().contains('\n') {
            return Err(KeyError::Public);
        }
        let expected = check_id(id, &key)?;
        let classes = match words.next().and_then(|word| word.strip_prefix("classes=")) {
            Some(names) => Some(names.split(',').map(ClassName::new).collect::<Result<_, _>>()?),
            None => None,
        };
        Ok(Self { key, id: expected, classes })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME} {} {}", self.id, to_hex(self.key.as_bytes()))?;
        if let Some(classes) = &self.classes {
            let names: Vec<&str> = classes.iter().map(ClassName::as_str).collect();
            write!(f, " classes={}", names.join(","))?;
        }
        Ok(())
    }
}

/// A key that signs. Its memory is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key of 32 random bytes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// What others need to verify.
    pub fn public(&self) -> PublicKey {
        let key = self.0.verifying_key();
        PublicKey { id: KeyId::of(&key), key, classes: None }
    }

    /// The line that [`SecretKey::from_str`] reads. It is the secret.
    pub fn to_line(&self) -> String {
        format!("{SECRET} {} {}\n", self.public().id, to_hex(&self.0.to_bytes()))
    }

    /// The content of [`SIGNATURE_PATH`] for a manifest: always the same for the same key and bytes.
    pub fn sign(&self, manifest: &[u8]) -> Vec<u8> {
        use ed25519_dalek::ed25519::signature::Signer as _;
        let signature = self.0.sign(&message(manifest));
        format!("{SCHEME} {} {}\n", self.public().id, to_hex(&signature.to_bytes())).into_bytes()
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(line: &str) -> Result<Self, KeyError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [SECRET, id, seed] = words[..] else { return Err(KeyError::Secret) };
        let key = Self::from_seed(&from_hex::<32>(seed).ok_or(KeyError::Secret)?);
        check_id(id, &key.0.verifying_key())?;
        Ok(key)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey({})", self.public().id)
    }
}

/// Why a manifest is not vouched for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not the line of a signature.
    #[error(
        "/{SIGNATURE_PATH} is not a signature: one line of {SIGNATURE_LEN} bytes is wanted, as `ctx build --key` writes it"
    )]
    Syntax,
    /// Of a key that is not in the ring.
    #[error("signed by key {0}, which is not trusted here")]
    UnknownKey(KeyId),
    /// Not the key's signature of this manifest.
    #[error("the manifest is not what key {0} has signed")]
    Wrong(KeyId),
    /// The key is for other classes.
    #[error("key {key} is not for class `{class}`")]
    Class {
        /// The key.
        key: KeyId,
        /// The class of the image.
        class: ClassName,
    },
}

/// The keys that are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring(BTreeMap<KeyId, PublicKey>);

impl FromIterator<PublicKey> for Ring {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(keys: I) -> Self {
        Self(keys.into_iter().map(|key| (key.id, key)).collect())
    }
}

impl Ring {
    /// Whether there is no key, so that nothing can be vouched for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, by their ids.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.values()
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a key of this ring vouches for images of a class.
    ///
    /// # Errors
    /// [`SignatureError::UnknownKey`], [`SignatureError::Class`].
    pub fn vouches(&self, key: KeyId, class: &ClassName) -> Result<(), SignatureError> {
        match self.0.get(&key) {
            None => Err(SignatureError::UnknownKey(key)),
            Some(found) if !found.allows(class) => Err(SignatureError::Class { key, class: class.clone() }),
            Some(_) => Ok(()),
        }
    }

    /// Finds out who vouches for `manifest`, by the content of [`SIGNATURE_PATH`]. Whether that key is
    /// for the manifest's class is asked afterwards ([`PublicKey::allows`]): the class is known when
    /// the manifest has been parsed, and only a manifest that is vouched for should be.
    ///
    /// # Errors
    /// [`SignatureError`] unless a key of this ring has signed exactly these bytes.
    pub fn verify(&self, manifest: &[u8], signature: &[u8]) -> Result<&PublicKey, SignatureError> {
        let (id, signature) = parse_signature(signature).ok_or(SignatureError::Syntax)?;
        let key = self.0.get(&id).ok_or(SignatureError::UnknownKey(id))?;
        // Strict: one message and key have no second valid signature.
        match key.key.verify_strict(&message(manifest), &signature) {
            Ok(()) => Ok(key),
            Err(_) => Err(SignatureError::Wrong(id)),
        }
    }
}

/// What is signed for a manifest: its digest, so that memory does not grow with it.
fn message(manifest: &[u8]) -> Vec<u8> {
    [DOMAIN, Sha256::of(manifest).as_bytes()].concat()
}

fn parse_signature(line: &[u8]) -> Option<(KeyId, Signature)> {
    let line = std::str::from_utf8(line).ok().filter(|line| line.len() == SIGNATURE_LEN)?;
    let (scheme, rest) = line.strip_suffix('\n')?.split_once(' ')?;
    let (id, signature) = rest.split_once(' ')?;
    let parsed = (id.parse().ok()?, Signature::from_bytes(&from_hex::<64>(signature)?));
    (scheme == SCHEME).then_some(parsed)
}

fn check_id(found: &str, key: &VerifyingKey) -> Result<KeyId, KeyError> {
    let expected = KeyId::of(key);
    if found == expected.to_string() {
        Ok(expected)
    } else {
        Err(KeyError::Id { found: found.to_owned(), expected: expected.to_string() })
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    // Upper case is refused so that one value has one spelling.
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *to = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u8) -> SecretKey {
        SecretKey::from_seed(&[seed; 32])
    }

    fn ring(seeds: &[u8]) -> Ring {
        seeds.iter().map(|&seed| key(seed).public()).collect()
    }

    #[test]
    fn the_lines_are_settled() {
        insta::assert_snapshot!(key(1).public().for_classes(["service".parse().unwrap()]), @"ctx-ed25519 34750f98bd59fcfc 8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c classes=service");
        insta::assert_snapshot!(String::from_utf8(key(1).sign(b"{}\n")).unwrap());
        assert_eq!(key(1).sign(b"{}\n").len(), SIGNATURE_LEN);
        assert_eq!(key(1).to_line().parse::<SecretKey>().unwrap(), key(1));
        assert_eq!(format!("{:?}", key(1)), "SecretKey(34750f98bd59fcfc)");
    }

    #[test]
    fn only_a_trusted_key_vouches_and_only_for_these_bytes() {
        let signature = key(1).sign(b"manifest");
        assert_eq!(ring(&[1, 2]).verify(b"manifest", &signature).unwrap().id(), key(1).public().id());
        assert!(matches!(ring(&[1]).verify(b"manifesT", &signature), Err(SignatureError::Wrong(_))));
        assert!(matches!(ring(&[2]).verify(b"manifest", &signature), Err(SignatureError::UnknownKey(_))));
        assert_eq!(ring(&[1]).verify(b"manifest", b""), Err(SignatureError::Syntax));
        // Another key's id in front does not help.
        let mut stolen = key(2).sign(b"manifest");
        stolen[12..28].copy_from_slice(&signature[12..28]);
        assert!(matches!(ring(&[1]).verify(b"manifest", &stolen), Err(SignatureError::Wrong(_))));
    }

    #[test]
    fn keys_are_read_back_and_damaged_ones_refused() {
        let public = key(3).public().for_classes(["a", "b-2"].map(|name| name.parse().unwrap()));
        let line = format!("{public} the site's key\n");
        assert_eq!(line.parse::<PublicKey>().unwrap(), public);
        assert!(public.allows(&"a".parse().unwrap()) && !public.allows(&"c".parse().unwrap()));
        assert!(key(3).public().allows(&"c".parse().unwrap()));
        assert_eq!(key(3).to_line().parse::<PublicKey>(), Err(KeyError::Public));
        assert_eq!(line.parse::<SecretKey>(), Err(KeyError::Secret));
        assert!(matches!(line.replace("b-2", "B").parse::<PublicKey>(), Err(KeyError::Class(_))));
        assert_eq!(format!("{line}{line}").parse::<PublicKey>(), Err(KeyError::Public));
        // The neutral element: everything verifies under it.
        let weak = format!("{SCHEME} {} 01{}", "0".repeat(16), "0".repeat(62));
        assert_eq!(weak.parse::<PublicKey>(), Err(KeyError::Public));
        for at in (12..28).chain(29..93) {
            let mut damaged = line.clone().into_bytes();
            damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
            assert!(String::from_utf8(damaged).unwrap().parse::<PublicKey>().is_err(), "byte {at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_flip_in_manifest_or_signature_is_refused(manifest in proptest::collection::vec(any::<u8>(), 1..200), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let signature = key(1).sign(&manifest);
            prop_assert!(ring(&[1]).verify(&manifest, &signature).is_ok());
            let mut line = signature.clone();
            line[at.index(SIGNATURE_LEN)] ^= 1 << bit;
            prop_assert!(ring(&[1]).verify(&manifest, &line).is_err());
            let mut other = manifest.clone();
            other[at.index(manifest.len())] ^= 1 << bit;
            prop_assert!(ring(&[1]).verify(&other, &signature).is_err());
        }

        #[test]
        fn reading_never_panics(text in "\\PC{0,80}", bytes in any::<Vec<u8>>()) {
            let _ = text.parse::<PublicKey>();
            let _ = text.parse::<SecretKey>();
            let _ = ring(&[1]).verify(b"", &bytes);
        }
    }
}
