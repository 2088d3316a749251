//! The daemon's configuration: one TOML file a host.
//!
//! ```toml
//! uri = "qemu:///system"
//! state = "/var/lib/ctx"
//! site = "local"
//!
//! [[class]]
//! name = "infrastructure"
//! priority = 200
//! directory = "/etc/ctx/infrastructure"
//! ```
//!
//! Every error points to its place in the file, since it is read by whoever has just edited it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctx_format::sign::SecretKey;
use ctx_format::{ClassName, Mode, Number, Priority};
use serde::Deserialize;
use toml::Spanned;

use crate::keys::read_secret;

/// A configuration that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The libvirt to follow; `qemu:///system` unless given.
    pub uri: String,
    /// Where images and the record of what is attached lie; `/var/lib/ctx` unless given.
    pub state: PathBuf,
    /// The event log, a JSON line per run; `events.jsonl` under `state` unless given.
    pub events: PathBuf,
    /// The control socket; `/run/ctx/ctx.sock` unless given.
    pub socket: PathBuf,
    /// How long a guest may take to let go of a device; 20 seconds unless given.
    pub detach_timeout: Duration,
    /// The key that signs every image; none unless `signing_key` names its file.
    pub signing_key: Option<SecretKey>,
    /// How long the acknowledgement of a guest that can give one is waited for: `ack_timeout_s`, 10
    /// seconds unless given; `None` with `ack = "off"`.
    pub ack_timeout: Option<Duration>,
    /// What templates and programs are told of this host: `hostname`, `site` and the table `[facts]`.
    pub facts: BTreeMap<String, String>,
    /// The classes that this host can give.
    pub classes: Vec<Class>,
}

/// One class of context data and where its files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Class {
    /// Its name.
    pub name: ClassName,
    /// Its rank in the guest.
    pub priority: Priority,
    /// Where its files come from.
    pub source: Source,
    /// The mode of its files in the guest; `None` keeps the mode of the source's files.
    pub mode: Option<Mode>,
}

/// Where the files of a class come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// All files of a directory, as they are.
    Directory(PathBuf),
    /// All files of a directory, each rendered as a template with the facts.
    Template(PathBuf),
    /// A program that is given the facts as JSON and prints `{"path": "content", …}`.
    Command(Vec<String>),
}

/// A deadline in seconds.
type Seconds = Number<1, 600>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    uri: Option<Spanned<String>>,
    state: Option<Spanned<PathBuf>>,
    events: Option<PathBuf>,
    socket: Option<Spanned<PathBuf>>,
    site: Option<String>,
    detach_timeout_s: Option<Seconds>,
    signing_key: Option<Spanned<PathBuf>>,
    ack: Option<Spanned<String>>,
    ack_timeout_s: Option<Seconds>,
    #[serde(default)]
    facts: BTreeMap<String, String>,
    #[serde(default)]
    class: Vec<Spanned<RawClass>>,
}

fn rank<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = Number::<0, 65535>::deserialize(deserializer)?;
    // In its range it fits.
    Ok(u16::try_from(number.get()).unwrap_or(u16::MAX))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClass {
    name: Spanned<String>,
    #[serde(deserialize_with = "rank")]
    priority: u16,
    directory: Option<PathBuf>,
    template: Option<PathBuf>,
    command: Option<Spanned<Vec<String>>>,
    mode: Option<Spanned<String>>,
}

/// What is wrong with a configuration, and where.
#[derive(Debug)]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// Line and column, from 1, where the error has a place.
    pub position: Option<(usize, usize)>,
    /// What is wrong and what to do.
    pub message: String,
    excerpt: Option<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        write!(f, ": {}", self.message)?;
        match &self.excerpt {
            Some(excerpt) => write!(f, "\n{excerpt}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn at(path: &Path, text: &str, span: Option<Range<usize>>, message: String) -> Self {
        let mut error = Self { path: path.to_owned(), position: None, message, excerpt: None };
        if let Some(span) = span {
            let start = span.start.min(text.len());
            let before = text.get(..start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            let column = before[line_start..].chars().count() + 1;
            let shown = text[line_start..].lines().next().unwrap_or_default();
            let rest = shown.chars().count().saturating_sub(column - 1).max(1);
            let marks = text.get(span).map_or(1, |text| text.chars().count()).clamp(1, rest);
            let number = line.to_string();
            let gutter = " ".repeat(number.len());
            let indent = " ".repeat(column - 1);
            let carets = "^".repeat(marks);
            error.excerpt = Some(format!("{number} | {shown}\n{gutter} | {indent}{carets}"));
            error.position = Some((line, column));
        }
        error
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] with the place in the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = ctx_io::bounded::read_to_string(path, ctx_io::bounded::CONFIG)
            .map_err(|error| ConfigError::at(path, "", None, format!("cannot be read: {error}")))?;
        Self::parse(path, &text)
    }

    /// Checks `text`, the content of `path`. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// [`ConfigError`] with the place in the file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let fail = |span: Range<usize>, message: String| ConfigError::at(path, text, Some(span), message);
        let raw: RawConfig = toml::from_str(text)
            .map_err(|error| ConfigError::at(path, text, error.span(), error.message().to_owned()))?;
        let base = path.parent().unwrap_or(Path::new(""));

        if let Some(uri) = raw.uri.as_ref().filter(|uri| uri.get_ref().contains('\0')) {
            return Err(fail(uri.span(), "a URI cannot hold a NUL character".into()));
        }
        let seconds = |set: Option<Seconds>, usual| Duration::from_secs(set.map_or(usual, Seconds::get));
        let detach_timeout = seconds(raw.detach_timeout_s, 20);
        let signing_key = match &raw.signing_key {
            Some(file) => Some(
                read_secret(&base.join(file.get_ref()))
                    .map_err(|error| fail(file.span(), error.to_string()))?,
            ),
            None => None,
        };
        let patience = seconds(raw.ack_timeout_s, 10);
        let ack_timeout = match raw.ack.as_ref().map(|ack| (ack.span(), ack.get_ref().as_str())) {
            None | Some((_, "auto")) => Some(patience),
            Some((_, "off")) => None,
            Some((span, _)) => {
                let message = "ack is \"auto\" (wait for guests that can acknowledge) or \"off\"";
                return Err(fail(span, message.into()));
            }
        };
        if raw.class.is_empty() {
            let message = "there is no [[class]]: name at least one, with its source".to_owned();
            return Err(ConfigError::at(path, text, None, message));
        }
        let mut classes: Vec<Class> = Vec::new();
        for class in raw.class {
            let span = class.span();
            let class = class.into_inner();
            let name = ClassName::new(class.name.get_ref().as_str())
                .map_err(|error| fail(class.name.span(), error.to_string()))?;
            if classes.iter().any(|other| other.name == name) {
                return Err(fail(class.name.span(), format!("there is already a class `{name}`")));
            }
            let source = match (class.directory, class.template, class.command) {
                (Some(directory), None, None) => Source::Directory(base.join(directory)),
                (None, Some(template), None) => Source::Template(base.join(template)),
                (None, None, Some(command)) if command.get_ref().first().is_some_and(|p| !p.is_empty()) => {
                    Source::Command(command.into_inner())
                }
                (None, None, Some(command)) => {
                    return Err(fail(command.span(), "the command is empty: name a program".into()));
                }
                _ => {
                    let message =
                        format!("class `{name}` needs exactly one of `directory`, `template` and `command`");
                    return Err(fail(span, message));
                }
            };
            let mode = match class.mode {
                None => Some(Mode::PRIVATE),
                Some(mode) if mode.get_ref() == "keep" => None,
                Some(mode) => Some(
                    mode.get_ref()
                        .parse()
                        .map_err(|error| fail(mode.span(), format!("{error}, or \"keep\"")))?,
                ),
            };
            classes.push(Class { name, priority: Priority(class.priority), source, mode });
        }

        let named = raw.state.as_ref().map(Spanned::span);
        let state = base.join(raw.state.map_or_else(|| "/var/lib/ctx".into(), Spanned::into_inner));
        let state =
            state_for_libvirt(&state).map_err(|message| ConfigError::at(path, text, named, message))?;
        let at = raw.socket.as_ref().map(Spanned::span);
        let socket = base.join(raw.socket.map_or_else(|| DEFAULT_SOCKET.into(), Spanned::into_inner));
        let bytes = socket.as_os_str().len();
        if bytes > LONGEST_SOCKET {
            let message = format!(
                "the path of a socket has at most {LONGEST_SOCKET} bytes, and `{}` has {bytes}: set `socket` to a \
                 shorter one",
                socket.display()
            );
            return Err(ConfigError::at(path, text, at, message));
        }
        let mut facts = raw.facts;
        facts.entry("hostname".into()).or_insert_with(hostname);
        facts.insert("site".into(), raw.site.unwrap_or_default());
        Ok(Self {
            uri: raw.uri.map_or_else(|| "qemu:///system".into(), Spanned::into_inner),
            events: raw.events.map_or_else(|| state.join("events.jsonl"), |events| base.join(events)),
            socket,
            state,
            detach_timeout,
            signing_key,
            ack_timeout,
            facts,
            classes,
        })
    }

    /// The class of that name.
    pub fn class(&self, name: &ClassName) -> Option<&Class> {
        self.classes.iter().find(|class| class.name == *name)
    }
}

/// The state directory as libvirt can be given it: it and QEMU run in other folders, and XML holds neither bytes that
/// are no text nor control characters.
fn state_for_libvirt(state: &Path) -> Result<PathBuf, String> {
    let state = std::path::absolute(state).map_err(|error| format!("{}: {error}", state.display()))?;
    match state.to_str() {
        Some(text) if !text.contains(char::is_control) => Ok(state),
        _ => Err(format!(
            "state directory `{}`: libvirt takes UTF-8 without control characters only; set `state` to another",
            state.display()
        )),
    }
}

/// The most bytes that the path of a socket has: `sockaddr_un` has 108, with a zero at the end (unix(7)).
const LONGEST_SOCKET: usize = 107;

/// The control socket where the configuration names none.
pub const DEFAULT_SOCKET: &str = "/run/ctx/ctx.sock";

/// This host's name as the kernel has it.
pub fn hostname() -> String {
    nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("ctx.toml"), text)
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_a_hosts_usual_places() {
        let config = parse(
            "site = \"local\"\n[[class]]\nname = \"infrastructure\"\npriority = 200\ndirectory = \"/d\"",
        )
        .unwrap();
        assert_eq!(config.uri, "qemu:///system");
        assert_eq!(config.events, Path::new("/var/lib/ctx/events.jsonl"));
        assert_eq!(config.facts["site"], "local");
        assert_eq!(config.facts["hostname"], hostname());
        assert_eq!(config.classes[0].mode, Some(Mode::PRIVATE));
        assert_eq!(config.classes[0].source, Source::Directory("/d".into()));
    }

    #[test]
    fn the_state_is_one_that_libvirt_can_be_given() {
        use std::os::unix::ffi::OsStrExt as _;
        let class = "[[class]]\nname = \"a\"\npriority = 1\ndirectory = \"d\"\n";
        let at = |path: &[u8], text: &str| {
            Config::parse(Path::new(std::ffi::OsStr::from_bytes(path)), &format!("{text}{class}"))
        };
        // libvirt runs in another folder.
        let config = at(b"ctx.toml", "state = \"state\"\n").unwrap();
        assert_eq!(config.state, std::env::current_dir().unwrap().join("state"));
        assert_eq!(at(b"/a b,c/ctx.toml", "state = \"s\"\n").unwrap().state, Path::new("/a b,c/s"));
        for path in [&b"/\xff/ctx.toml"[..], b"/two\nlines/ctx.toml"] {
            let error = at(path, "state = \"s\"\n").unwrap_err().to_string();
            assert!(error.contains("set `state` to another"), "{error}");
        }
        let long = format!("/{}/ctx.toml", "x".repeat(200));
        let error = at(long.as_bytes(), "socket = \"s\"\n").unwrap_err().to_string();
        assert!(error.contains("at most 107 bytes") && error.contains("has 203"), "{error}");
        assert!(at(long.as_bytes(), "socket = \"/run/s\"\n").is_ok());
    }

    #[test]
    fn errors_point_into_the_file() {
        let errors = [
        "uri = \"x\"\nsocket = 3\n",
        "[[class]]\nname = \"a\"\npriority = 1\ndirektory = \"/d\"\n",
        "[[class]]\nname = \"A b\"\npriority = 1\ndirectory = \"/d\"\n",
        "[[class]]\nname = \"a\"\npriority = -1\ndirectory = \"/d\"\n",
        "site = \"x\"\n\n[[class]]\nname = \"a\"\npriority = 1\n",
        "[[class]]\nname = \"a\"\npriority = 1\ndirectory = \"/d\"\n[[class]]\nname = \"a\"\npriority = 2\ntemplate = \"/d\"\n",
        "[[class]]\nname = \"a\"\npriority = 1\ncommand = []\n",
        "[[class]]\nname = \"a\"\npriority = 1\ndirectory = \"/d\"\nmode = \"rw\"\n",
        "uri = \"x\n",
        "",
        "detach_timeout_s = 0\n",
        "ack = \"serial\"\n",
        "site = \"x\"\nsigning_key = \"/nonexistent/ctx.key\"\n",
        ]
        .map(error);
        insta::assert_snapshot!(errors.join("\n\n"));
    }
}
