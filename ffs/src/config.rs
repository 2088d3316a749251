//! The configuration: a TOML file, the command line over it.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ctx_format::number::{Number, optional_u16};
use ctx_io::bounded;
use serde::{Deserialize, Serialize};

use crate::ack::AckMode;
use crate::escape;
use crate::kernel::mounting::Restrictions;
use crate::layer::device::DEFAULT_LIMIT;
use crate::projection::Projection;

/// Where the configuration is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/ffs.toml";

/// Why a projection and `nosymfollow` do not go together.
pub const NO_LINKS: &str = "`nosymfollow` and the projection `kubernetes` contradict each other: every file of the \
                            projection is behind a symbolic link; leave one of them out";

/// Bytes of memory: at least one, and no more than a file can have.
pub type Bytes = Number<1, { i64::MAX as u64 }>;
/// Milliseconds that the layer of a removed device is still shown: a week at most.
pub type KeepRemoved = Number<0, 604_800_000>;
/// Milliseconds that a hook may run: a day at most.
pub type HookTimeout = Number<1, 86_400_000>;

/// Everything that a mount is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(clippy::struct_excessive_bools)] // Settings, each of its own.
pub struct Config {
    /// The mount point, when the command line names none.
    pub mount: Option<PathBuf>,
    /// Every drive that [`Config::auto_devices`] names and that has context data becomes the layer of
    /// its class.
    pub auto: bool,
    /// Patterns of device names for `auto`.
    pub auto_devices: Vec<String>,
    /// Layers that are there from the start.
    #[serde(rename = "layer")]
    pub layers: Vec<LayerSpec>,
    /// What to do when paths change.
    #[serde(rename = "hook")]
    pub hooks: Vec<Hook>,
    /// The largest image that is held in memory, in bytes.
    pub image_limit: Bytes,
    /// How long the layer of a device that is gone is still shown, in milliseconds; without it until
    /// an image takes its place. A recontextualization detaches one device and attaches the next:
    /// programs must not see a hole between the two.
    pub keep_removed_ms: Option<KeepRemoved>,
    /// Take images of a lower generation than the one shown.
    pub accept_older: bool,
    /// The most that images may hold in memory together, in bytes: of the generation that is shown,
    /// the one kept for a rollback, and what programs have open of earlier ones. Without it half of
    /// the machine's memory, or of the control group's limit.
    pub max_memory: Option<Bytes>,
    /// Files with the keys that may vouch for images; `*` and `?` stand in the last component. Without
    /// any, images need not be signed.
    pub trust: Vec<String>,
    /// Where the generations last accepted are kept; `/var/lib/ffs/NAME.json` unless given, NAME being
    /// the mount point with `-` for `/`.
    pub trust_state: Option<PathBuf>,
    /// The instance that signed images must be for; without it any.
    pub instance: Option<String>,
    /// How the host is told what became of an image.
    pub ack: AckMode,
    /// `kubernetes` shows the tree as a `ConfigMap` volume, for programs that are written for one.
    pub projection: Option<Projection>,
    /// The kernel reads large files of directory layers by itself (Linux 6.9, root), and asks for each open.
    pub passthrough: bool,
    /// No file of the mount can be executed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub noexec: bool,
    /// No symbolic link of the mount is followed (Linux 5.14, root).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nosymfollow: bool,
    /// Mount options of a security module, like `context=…`; from mount(8) alone.
    #[serde(skip)]
    pub labels: Vec<(String, String)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mount: None,
            auto: false,
            auto_devices: vec!["sr*".to_owned()],
            layers: Vec::new(),
            hooks: Vec::new(),
            image_limit: Bytes::nearest(DEFAULT_LIMIT),
            keep_removed_ms: None,
            accept_older: false,
            max_memory: None,
            trust: Vec::new(),
            trust_state: None,
            instance: None,
            ack: AckMode::default(),
            projection: None,
            passthrough: false,
            noexec: false,
            nosymfollow: false,
            labels: Vec::new(),
        }
    }
}

/// A layer that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSpec {
    /// Its name.
    pub name: String,
    /// Where it comes from: `dir:PATH`, `iso:PATH` or `device:PATH`.
    pub source: Source,
    /// Its rank; without it that of the manifest, or 0.
    #[serde(default, deserialize_with = "optional_u16")]
    pub priority: Option<u16>,
    /// A directory is read again when something in it changes.
    #[serde(default = "LayerSpec::default_watch")]
    pub watch: bool,
}

impl LayerSpec {
    fn default_watch() -> bool {
        true
    }
}

/// Where a layer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// A directory.
    Dir(PathBuf),
    /// An image in a file.
    Iso(PathBuf),
    /// A drive, or any block device; followed.
    Device(PathBuf),
}

/// What to do when paths change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// Its name in the status and the log; without it the pattern.
    pub name: Option<String>,
    /// Pattern of paths from the root of the mount: `*` and `?` within a component, `**` across.
    pub path: String,
    /// A command with its arguments.
    pub run: Option<Vec<String>>,
    /// A systemd unit to reload, or restart where it cannot reload.
    pub reload: Option<String>,
    /// A signal, like `HUP`, to the process whose number is in `pid_file`.
    pub signal: Option<String>,
    /// See `signal`.
    pub pid_file: Option<PathBuf>,
    /// The hook is killed after so many milliseconds.
    #[serde(default = "Hook::default_timeout")]
    pub timeout_ms: HookTimeout,
}

impl Hook {
    fn default_timeout() -> HookTimeout {
        HookTimeout::nearest(30_000)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.path)
    }
}

impl Config {
    /// How long the layer of a device that is gone is still shown.
    pub fn keep_removed(&self) -> Option<Duration> {
        self.keep_removed_ms.map(|ms| Duration::from_millis(ms.get()))
    }

    /// What the mount forbids.
    pub fn restrictions(&self) -> Restrictions {
        let Self { noexec, nosymfollow, labels, .. } = self;
        Restrictions { noexec: *noexec, nosymfollow: *nosymfollow, labels: labels.clone() }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = bounded::read_to_string(path, bounded::CONFIG)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })
    }

    fn parse(text: &str) -> Result<Self, String> {
        // The message of toml's error has line, column and a caret.
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check()?;
        Ok(config)
    }

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.accept_older && !self.trust.is_empty() {
            return Err(
                "`accept_older` and `trust` contradict each other: what is trusted never goes back; \
                        remove one of them"
                    .to_owned(),
            );
        }
        if self.nosymfollow && self.projection == Some(Projection::Kubernetes) {
            return Err(NO_LINKS.to_owned());
        }
        let mut names = std::collections::BTreeSet::new();
        for layer in &self.layers {
            check_name(&layer.name)?;
            if !names.insert(&layer.name) {
                return Err(format!("two layers are named `{}`: rename one", layer.name));
            }
        }
        for hook in &self.hooks {
            let ways = usize::from(hook.run.is_some())
                + usize::from(hook.reload.is_some())
                + usize::from(hook.signal.is_some());
            if ways != 1 {
                return Err(format!(
                    "hook `{}` needs exactly one of `run`, `reload` and `signal`",
                    hook.name()
                ));
            }
            if hook.run.as_ref().is_some_and(Vec::is_empty) {
                return Err(format!("hook `{}` has an empty command", hook.name()));
            }
            if hook.signal.is_some() != hook.pid_file.is_some() {
                return Err(format!("hook `{}`: `signal` and `pid_file` go together", hook.name()));
            }
            if let Some(signal) = &hook.signal {
                signal_number(signal)
                    .ok_or(format!("hook `{}`: no signal is named `{signal}`", hook.name()))?;
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.contains(['/', ':', '\n']) {
        return Err(format!("layer name {name:?} is empty or has `/`, `:` or a newline"));
    }
    Ok(())
}

/// The signal of a name with or without `SIG`.
pub(crate) fn signal_number(name: &str) -> Option<nix::sys::signal::Signal> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    format!("SIG{name}").parse().ok()
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not say what it should.
    #[error("configuration `{}`: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where they are known.
        message: String,
    },
}

impl Source {
    /// Its path.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(path) | Self::Iso(path) | Self::Device(path) => path,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Dir(_) => "dir",
            Self::Iso(_) => "iso",
            Self::Device(_) => "device",
        }
    }

    /// Reads `KIND:PATH`, or `KIND%:PATH` with `%XX` for bytes of the path.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(bytes);
        let unknown = || format!("`{text}` is not `dir:PATH`, `iso:PATH` or `device:PATH`");
        let (kind, path) = split_once(bytes, b':').ok_or_else(unknown)?;
        let (kind, path) = match kind.strip_suffix(b"%") {
            None => (kind, path.to_vec()),
            Some(kind) => {
                let path = escape::read(path);
                (kind, path.ok_or_else(|| format!("`{text}`: `%` without two hexadecimal digits"))?)
            }
        };
        let make: fn(PathBuf) -> Self = match kind {
            b"dir" => Self::Dir,
            b"iso" => Self::Iso,
            b"device" => Self::Device,
            _ => return Err(unknown()),
        };
        if !path.starts_with(b"/") {
            return Err(format!("`{text}`: the path must be absolute"));
        }
        Ok(make(OsString::from_vec(path).into()))
    }
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let place = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..place], &bytes[place + 1..]))
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_bytes(text.as_bytes())
    }
}

impl TryFrom<String> for Source {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

/// A path that is not UTF-8 is escaped: `dir%:/a%ffb`.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(path) = self.path().to_str() {
            return write!(f, "{}:{path}", self.kind());
        }
        write!(f, "{}%:", self.kind())?;
        escape::write(self.path().as_os_str().as_bytes(), f)
    }
}

impl LayerSpec {
    /// Reads `NAME=SOURCE[,priority=N][,watch=on|off]`, as on the command line: the path need not be UTF-8.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let text = String::from_utf8_lossy(bytes);
        let (name, mut rest) =
            split_once(bytes, b'=').ok_or_else(|| format!("`{text}` is not NAME=dir:PATH[,priority=N]"))?;
        let name =
            std::str::from_utf8(name).map_err(|_| format!("`{text}`: the layer's name is not UTF-8"))?;
        check_name(name)?;
        let (mut priority, mut watch) = (None, true);
        // From the end: a path may have commas.
        while let Some(comma) = rest.iter().rposition(|byte| *byte == b',') {
            let Ok(option) = std::str::from_utf8(&rest[comma + 1..]) else { break };
            match option.split_once('=') {
                Some(("priority", number)) => {
                    let wrong = |_| format!("`{number}` is not a priority from 0 to 65535");
                    priority = Some(number.parse().map_err(wrong)?);
                }
                Some(("watch", "on")) => watch = true,
                Some(("watch", "off")) => watch = false,
                Some(("watch", other)) => return Err(format!("`watch={other}` is not `on` or `off`")),
                _ => break,
            }
            rest = &rest[..comma];
        }
        Ok(Self { name: name.to_owned(), source: Source::from_bytes(rest)?, priority, watch })
    }
}

/// As [`LayerSpec::from_bytes`].
impl FromStr for LayerSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::from_bytes(text.as_bytes())
    }
}

impl std::fmt::Display for LayerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.source)?;
        if let Some(priority) = self.priority {
            write!(f, ",priority={priority}")?;
        }
        if self.watch { Ok(()) } else { write!(f, ",watch=off") }
    }
}

/// Whether a path matches a pattern: `?` one byte and `*` any bytes of a component, `**` anything.
pub(crate) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        // `**/` also stands for no directory at all.
        ([b'*', b'*', b'/', rest @ ..], _) => {
            let after_slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            matches(rest, path) || after_slashes.into_iter().any(|(at, _)| matches(rest, &path[at + 1..]))
        }
        ([b'*', b'*', rest @ ..], _) => {
            matches(rest, path) || path.split_first().is_some_and(|(_, tail)| matches(pattern, tail))
        }
        ([b'*', rest @ ..], _) => {
            matches(rest, path)
                || path.split_first().is_some_and(|(first, tail)| *first != b'/' && matches(pattern, tail))
        }
        ([b'?', rest @ ..], [first, tail @ ..]) => *first != b'/' && matches(rest, tail),
        ([want, rest @ ..], [first, tail @ ..]) => want == first && matches(rest, tail),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_is_read() {
        let config = Config::parse(
            r#"
            mount = "/mnt/context"
            auto = true
            keep_removed_ms = 5000
            [[layer]]
            name = "base"
            source = "dir:/etc/context"
            priority = 10
            [[hook]]
            path = "endpoints/**"
            run = ["/usr/bin/remount", "--now"]
            [[hook]]
            path = "dns"
            signal = "HUP"
            pid_file = "/run/dnsmasq.pid"
            "#,
        )
        .unwrap();
        assert_eq!(config.layers[0], "base=dir:/etc/context,priority=10".parse().unwrap());
        assert_eq!(config.keep_removed(), Some(Duration::from_secs(5)));
        assert_eq!(config.hooks[0].timeout_ms.get(), 30_000);
    }

    #[test]
    fn errors_point_into_the_file() {
        let error = Config::parse("auto = true\nmuont = \"/x\"\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("muont"), "{error}");
        for (text, says) in [
            ("[[layer]]\nname='a'\nsource='nfs:/x'", "is not `dir:PATH`"),
            ("[[layer]]\nname='a'\nsource='dir:x'", "absolute"),
            ("[[hook]]\npath='a'", "exactly one"),
            ("accept_older = true\ntrust = ['/k.pub']", "contradict"),
            ("nosymfollow = true\nprojection = 'kubernetes'", "contradict"),
            ("ack = 'serial'", "is not `auto`"),
            ("projection = 'docker'", "kubernetes"),
            ("[[hook]]\npath='a'\nsignal='NONE'\npid_file='/x'", "no signal"),
            ("[[layer]]\nname='a'\nsource='dir:/x'\n[[layer]]\nname='a'\nsource='dir:/y'", "two layers"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn numbers_have_a_range_that_a_refusal_names() {
        let settings = [
            ("image_limit = ", "a whole number from 1 to 9223372036854775807"),
            ("max_memory = ", "a whole number from 1 to 9223372036854775807"),
            ("keep_removed_ms = ", "a whole number from 0 to 604800000"),
            ("[[layer]]\nname = 'a'\nsource = 'dir:/x'\npriority = ", "a whole number from 0 to 65535"),
            ("[[hook]]\npath = 'a'\nrun = ['x']\ntimeout_ms = ", "a whole number from 1 to 86400000"),
        ];
        for (setting, range) in settings {
            let zero = if range.contains("from 1 ") { "0" } else { "-0.0" };
            for value in ["nan", "inf", "-inf", "-1", zero, "1e300", "99999999999999999999"] {
                let error = Config::parse(&format!("{setting}{value}\n")).unwrap_err();
                let name = setting.trim_end_matches(" = ").rsplit('\n').next().unwrap();
                assert!(error.contains(range) && error.contains(name), "{setting}{value}: {error}");
            }
            assert!(Config::parse(&format!("{setting}1\n")).is_ok(), "{setting}");
        }
    }

    #[test]
    fn layers_read_back() {
        for text in ["a=dir:/x", "a=iso:/x,y,priority=3", "a=dir:/x,priority=0,watch=off"] {
            assert_eq!(text.parse::<LayerSpec>().unwrap().to_string(), text);
        }
        let raw = b"a=dir:/x\xff%,y\xfe,priority=3";
        let spec = LayerSpec::from_bytes(raw).unwrap();
        assert_eq!(spec.source.path().as_os_str().as_bytes(), b"/x\xff%,y\xfe");
        assert_eq!(spec.to_string(), "a=dir%:/x%ff%25,y%fe,priority=3");
        assert_eq!(spec.to_string().parse::<LayerSpec>().unwrap(), spec);
        assert_eq!(serde_json::from_str::<LayerSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        // Not an escape without the sign for it.
        assert_eq!("a=dir:/x%ff".parse::<LayerSpec>().unwrap().source.path(), Path::new("/x%ff"));
        assert!("a=dir%:/x%f".parse::<LayerSpec>().unwrap_err().contains("hexadecimal"));
        assert!(LayerSpec::from_bytes(b"a\xff=dir:/x").unwrap_err().contains("name is not UTF-8"));
        assert!("a=dir:/x,watch=no".parse::<LayerSpec>().unwrap_err().contains("`on` or `off`"));
        assert!("a=dir:/x,priority=70000".parse::<LayerSpec>().unwrap_err().contains("70000"));
    }

    #[test]
    fn patterns() {
        let all = |pattern: &str, yes: &[&str], no: &[&str]| {
            for path in yes {
                assert!(matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
            }
            for path in no {
                assert!(!matches(pattern.as_bytes(), path.as_bytes()), "{pattern} {path}");
            }
        };
        all("*.json", &["a.json", ".json"], &["d/a.json", "a.jsonx"]);
        all("**", &["a", "a/b"], &[]);
        all("**/a", &["a", "x/a", "x/y/a"], &["ba"]);
        all("d/**", &["d/a", "d/e/f"], &["d", "e/d/a"]);
        all("a?c", &["abc"], &["ac", "a/c"]);
    }
}
