//! Keys in files: made, read, and kept from others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ctx_format::ClassName;
use ctx_format::sign::{KeyError, PublicKey, SecretKey};
use ctx_io::{bounded, durable};

/// The file of the secret key in the directory that [`generate`] is given.
pub const SECRET_FILE: &str = "ctx.key";
/// The file of the public key there.
pub const PUBLIC_FILE: &str = "ctx.pub";

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file system.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The content.
    #[error("{}: {error}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: KeyError,
    },
    /// A secret that is none.
    #[error("{}: others may read it (mode {mode:04o}): `chmod 600` it, and think of a new key", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Makes a key in `dir`: the secret in [`SECRET_FILE`] (0600), the line for guests in [`PUBLIC_FILE`],
/// for these classes or, when there are none, for any. Files that are there are never overwritten. There
/// are both in the end, or neither of those that this call made.
///
/// # Errors
/// [`KeyFileError::Io`], also when there is a key already.
pub fn generate(dir: &Path, classes: &[ClassName]) -> Result<PublicKey, KeyFileError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| KeyFileError::Io { path, error }
    };
    let random = Path::new("/dev/urandom");
    let mut seed = [0; 32];
    File::open(random).and_then(|mut file| file.read_exact(&mut seed)).map_err(at(random))?;
    let secret = SecretKey::from_seed(&seed);
    let mut public = secret.public();
    if !classes.is_empty() {
        public = public.for_classes(classes.iter().cloned());
    }
    std::fs::create_dir_all(dir).map_err(at(dir))?;
    let write = |name: &str, mode: u32, text: &str| {
        let path = dir.join(name);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(at(&path))?;
        // What is there in part, or without the other, would be in the way of the next try.
        let made = Made(Some(path.clone()));
        file.write_all(text.as_bytes()).and_then(|()| durable::sync(&file)).map_err(at(&path))?;
        Ok(made)
    };
    let mut made =
        [write(SECRET_FILE, 0o600, &secret.to_line())?, write(PUBLIC_FILE, 0o644, &format!("{public}\n"))?];
    durable::sync_dir(dir).map_err(at(dir))?;
    made.iter_mut().for_each(Made::keep);
    Ok(public)
}

/// A file that this process made, removed on drop unless it is kept.
struct Made(Option<PathBuf>);

impl Made {
    fn keep(&mut self) {
        self.0 = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Best effort: the error that matters is the one before.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Reads a secret key, which nobody but its owner may be able to read.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_secret(path: &Path) -> Result<SecretKey, KeyFileError> {
    let fail = |error| KeyFileError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(fail)?;
    let mode = file.metadata().map_err(fail)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Open { path: path.to_owned(), mode });
    }
    let line = bounded::read_text_from(file, bounded::KEYS).map_err(fail)?;
    line.parse().map_err(|error| KeyFileError::Key { path: path.to_owned(), error })
}

/// Reads a public key.
///
/// # Errors
/// [`KeyFileError`].
pub fn read_public(path: &Path) -> Result<PublicKey, KeyFileError> {
    let line = bounded::read_to_string(path, bounded::KEYS)
        .map_err(|error| KeyFileError::Io { path: path.to_owned(), error })?;
    line.parse().map_err(|error| KeyFileError::Key { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_made_whole_leaves_nothing_in_the_way_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let public = dir.path().join(PUBLIC_FILE);
        std::fs::write(&public, "of another").unwrap();
        let error = generate(dir.path(), &[]).unwrap_err();
        assert!(matches!(&error, KeyFileError::Io { path, .. } if *path == public), "{error}");
        assert!(!dir.path().join(SECRET_FILE).exists());
        assert_eq!(std::fs::read(&public).unwrap(), b"of another");
        std::fs::remove_file(&public).unwrap();
        generate(dir.path(), &[]).unwrap();
        // Nor does it take the key of an earlier call with it.
        std::fs::remove_file(&public).unwrap();
        let error = generate(dir.path(), &[]).unwrap_err();
        assert!(matches!(&error, KeyFileError::Io { path, .. } if path.ends_with(SECRET_FILE)), "{error}");
        assert!(dir.path().join(SECRET_FILE).exists() && !public.exists());
    }

    #[test]
    fn what_was_made_is_read_back_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("keys");
        let public = generate(&dir, &["service".parse().unwrap()]).unwrap();
        let secret = dir.join(SECRET_FILE);
        assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read_public(&dir.join(PUBLIC_FILE)).unwrap(), public);
        assert_eq!(read_secret(&secret).unwrap().public().id(), public.id());
        assert!(matches!(generate(&dir, &[]), Err(KeyFileError::Io { .. })));
        assert!(matches!(read_secret(&dir.join(PUBLIC_FILE)), Err(KeyFileError::Open { mode: 0o644, .. })));
        assert!(matches!(read_public(&secret), Err(KeyFileError::Key { .. })));
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        assert!(read_secret(&secret).unwrap_err().to_string().contains("chmod 600"));
    }
}
