//! Where the files of a class come from: a directory, templates, a program.
//!
//! A source is read whole, now, into memory. What one run sees is what its image holds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ctx_format::manifest::ModeError;
use ctx_format::path::RelPathError;
use ctx_format::{File, Mode, RelPath};
use ctx_io::bounded::{self, Size};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use crate::config::{Class, Source};
use crate::libvirt::DomainId;

/// The most that one class may hold: 64 MiB. Context data is keys and addresses; more is a mistake,
/// like a class whose directory is `/`.
pub const MAX_CLASS_BYTES: u64 = 64 << 20;

/// The work that the templates of one class may do, in minijinja's unit: an instruction, or 64 bytes that are made or
/// processed. It bounds the time, and the memory to four times what a class may hold.
const FUEL: u64 = 4 * MAX_CLASS_BYTES / 64;

/// The most that a program may print: JSON may need two bytes for one.
const MAX_PRINTED: u64 = 2 * MAX_CLASS_BYTES;

/// How much of what a program says on standard error is kept.
const MAX_SAID: u64 = 64 << 10;

/// How long a program may take.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// What templates and programs are told.
#[derive(Debug, Clone, Serialize)]
pub struct Facts {
    /// Of the host: `hostname`, `site` and whatever the configuration adds.
    pub host: BTreeMap<String, String>,
    /// The domain: `name` and `uuid`.
    pub domain: DomainId,
    /// The class's name.
    pub class: String,
}

/// Why a class's files could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file or directory of the source.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A name that cannot be in a class.
    #[error("{}: {error}", base.display())]
    Path {
        /// The source.
        base: PathBuf,
        /// What is wrong with the path.
        error: RelPathError,
    },
    /// A name that is not UTF-8.
    #[error("{}: the name is not UTF-8: rename it", path.display())]
    Name {
        /// Which.
        path: PathBuf,
    },
    /// Neither file nor directory.
    #[error("{}: neither a file nor a directory: remove it from the class", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// A symbolic link to the outside.
    #[error("{}: the link leads out of the class: copy the file there", path.display())]
    Outside {
        /// Which.
        path: PathBuf,
    },
    /// More than [`MAX_CLASS_BYTES`].
    #[error("{origin}: the class has more than {}, the limit", Size(MAX_CLASS_BYTES))]
    TooLarge {
        /// The directory or the program.
        origin: String,
    },
    /// A template that cannot be rendered.
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Template {
        /// The template.
        path: PathBuf,
        /// Its line.
        line: Option<usize>,
        /// What is wrong.
        message: String,
    },
    /// A program that failed or did not print what it should.
    #[error("`{program}`: {message}")]
    Command {
        /// The program.
        program: String,
        /// What is wrong.
        message: String,
    },
}

impl SourceError {
    fn too_large(origin: impl std::fmt::Display) -> Self {
        Self::TooLarge { origin: origin.to_string() }
    }
}

/// The files of `class` for the domain of `facts`: at most [`MAX_CLASS_BYTES`].
///
/// # Errors
/// [`SourceError`] with the file, line or program.
pub async fn gather(class: &Class, facts: &Facts) -> Result<BTreeMap<RelPath, File>, SourceError> {
    match &class.source {
        Source::Directory(path) => {
            let (path, mode) = (path.clone(), class.mode);
            blocking(move || read_directory(&path, mode)).await
        }
        Source::Template(path) => {
            let (path, mode, facts) = (path.clone(), class.mode, facts.clone());
            blocking(move || Templates::new(&path)?.render(read_directory(&path, mode)?, &facts)).await
        }
        Source::Command(command) => run(command, class.mode.unwrap_or_default(), facts).await,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The closure is never cancelled, so this is its panic: pass it on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Checks that all files below `base` can be parsed as templates; renders none.
///
/// # Errors
/// [`SourceError`] with the file and line.
pub fn check_templates(base: &Path, files: &BTreeMap<RelPath, File>) -> Result<(), SourceError> {
    let templates = Templates::new(base)?;
    files.iter().try_for_each(|(path, file)| templates.parse(path, file).map(drop))
}

/// All files below `base`. Links are followed as long as they stay below it. Files get `mode`, or
/// keep their own.
///
/// # Errors
/// [`SourceError`] with the file that is in the way.
pub fn read_directory(base: &Path, mode: Option<Mode>) -> Result<BTreeMap<RelPath, File>, SourceError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| SourceError::Io { path, error }
    };
    let root = fs::canonicalize(base).map_err(at(base))?;
    let mut files = BTreeMap::new();
    let mut total = 0;
    // Directories still to read, with their path in the class.
    let mut open = vec![(root.clone(), String::new())];
    while let Some((dir, prefix)) = open.pop() {
        for item in fs::read_dir(&dir).map_err(at(&dir))? {
            let item = item.map_err(at(&dir))?;
            let path = item.path();
            let name =
                item.file_name().into_string().map_err(|_| SourceError::Name { path: path.clone() })?;
            let relative = format!("{prefix}{name}");
            // Also bounds the depth, should links make a loop.
            let relative =
                RelPath::new(relative).map_err(|error| SourceError::Path { base: base.to_owned(), error })?;
            let real = fs::canonicalize(&path).map_err(at(&path))?;
            if !real.starts_with(&root) {
                return Err(SourceError::Outside { path });
            }
            let meta = fs::metadata(&real).map_err(at(&path))?;
            if meta.is_dir() {
                open.push((real, format!("{relative}/")));
            } else if meta.is_file() {
                let left = MAX_CLASS_BYTES.saturating_sub(total);
                if meta.len() > left {
                    return Err(SourceError::too_large(base.display()));
                }
                let own = || {
                    // Masked to the bits that a mode may have, so it cannot fail.
                    Mode::new(u16::try_from(meta.permissions().mode() & 0o777).unwrap_or(0))
                        .unwrap_or_default()
                };
                // It may have grown since, or have no length of its own.
                let content = bounded::read(&real, left).map_err(|error| match error.kind() {
                    io::ErrorKind::FileTooLarge => SourceError::too_large(base.display()),
                    _ => at(&path)(error),
                })?;
                total += content.len() as u64;
                files.insert(relative, File { content, mode: mode.unwrap_or_else(own) });
            } else {
                return Err(SourceError::Kind { path });
            }
        }
    }
    Ok(files)
}

/// The templates of a directory.
struct Templates<'a> {
    base: &'a Path,
    engine: minijinja::Environment<'a>,
}

impl<'a> Templates<'a> {
    fn new(base: &'a Path) -> Result<Self, SourceError> {
        let mut engine = minijinja::Environment::new();
        // A fact that is missing is a mistake, not an empty address.
        engine.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        engine.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let syntax = minijinja::syntax::SyntaxConfig::builder().keep_trailing_newline(true).build();
        engine.set_syntax(syntax.map_err(|error| SourceError::Template {
            path: base.to_owned(),
            line: None,
            message: error.to_string(),
        })?);
        Ok(Self { base, engine })
    }

    fn fail(&self, path: &RelPath, line: Option<usize>, message: String) -> SourceError {
        SourceError::Template { path: self.base.join(path), line, message }
    }

    fn parse<'t>(
        &'t self,
        path: &'t RelPath,
        file: &'t File,
    ) -> Result<minijinja::Template<'t, 't>, SourceError> {
        let text = std::str::from_utf8(&file.content).map_err(|_| {
            self.fail(path, None, "a template must be UTF-8 text: use a `directory` for it".into())
        })?;
        self.engine
            .template_from_named_str(path.as_str(), text)
            .map_err(|error| self.fail(path, error.line(), error.to_string()))
    }

    /// Renders all files, within what one class may hold and [`FUEL`].
    fn render(
        mut self,
        mut files: BTreeMap<RelPath, File>,
        facts: &Facts,
    ) -> Result<BTreeMap<RelPath, File>, SourceError> {
        let domain =
            BTreeMap::from([("name", facts.domain.name.clone()), ("uuid", facts.domain.uuid.clone())]);
        let mut values: BTreeMap<String, minijinja::Value> =
            facts.host.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        values.insert("domain".into(), domain.into());
        values.insert("class".into(), facts.class.as_str().into());
        let values = minijinja::Value::from(values);
        let (mut left, mut fuel) = (MAX_CLASS_BYTES, FUEL);
        for (path, file) in &mut files {
            self.engine.set_fuel(Some(fuel));
            let mut rendered = UpTo { bytes: Vec::new(), left, full: false };
            let done = self.parse(path, file)?.render_captured_to(values.clone(), &mut rendered);
            if rendered.full {
                return Err(SourceError::too_large(self.base.display()));
            }
            let done = done.map_err(|error| match error.kind() {
                minijinja::ErrorKind::OutOfFuel => self.fail(
                    path,
                    error.line(),
                    format!("the templates of the class take more than {FUEL} steps, the limit"),
                ),
                _ => self.fail(path, error.line(), error.to_string()),
            })?;
            fuel = done.state().fuel_levels().map_or(fuel, |(_, remaining)| remaining);
            drop(done);
            left = rendered.left;
            file.content = rendered.bytes;
        }
        Ok(files)
    }
}

/// Takes `left` bytes, and fails at the first one more.
struct UpTo {
    bytes: Vec<u8>,
    left: u64,
    full: bool,
}

impl io::Write for UpTo {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.left = left;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first `limit` bytes of what a program prints, and one more where there is more: it is then closed, which ends the
/// program at its next write.
async fn up_to(limit: u64, from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(limit + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// The first `limit` bytes; the rest is read and dropped, so that the program goes on.
async fn start_of(limit: u64, from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        (&mut from).take(limit).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Printed {
    Text(String),
    File { content: String, mode: Option<String> },
}

async fn run(command: &[String], mode: Mode, facts: &Facts) -> Result<BTreeMap<RelPath, File>, SourceError> {
    let fail = |message: String| SourceError::Command { program: command.join(" "), message };
    let (program, arguments) = command.split_first().ok_or_else(|| fail("no program".into()))?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fail(format!("cannot be started: {error}")))?;
    let input = serde_json::to_vec(facts).map_err(|error| fail(error.to_string()))?;
    let mut stdin = child.stdin.take();
    let feed = async move {
        if let Some(stdin) = &mut stdin {
            // A program that does not care for the facts may close its input.
            let _ = stdin.write_all(&input).await;
        }
        drop(stdin);
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async {
        let ((), stdout, stderr) = tokio::join!(feed, up_to(MAX_PRINTED, stdout), start_of(MAX_SAID, stderr));
        Ok::<_, io::Error>((stdout?, stderr?, child.wait().await?))
    };
    let (stdout, stderr, status) = tokio::time::timeout(COMMAND_TIMEOUT, all)
        .await
        .map_err(|_| fail(format!("took longer than {} s and was stopped", COMMAND_TIMEOUT.as_secs())))?
        .map_err(|error| fail(error.to_string()))?;
    if stdout.len() as u64 > MAX_PRINTED {
        return Err(fail(format!("printed more than {}, the limit", Size(MAX_PRINTED))));
    }
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        return Err(fail(format!("{status}: {}", stderr.trim())));
    }
    let printed: BTreeMap<String, Printed> = serde_json::from_slice(&stdout)
        .map_err(|error| fail(format!("does not print {{\"path\": \"content\", …}}: {error}")))?;
    let mut left = MAX_CLASS_BYTES;
    printed
        .into_iter()
        .map(|(path, printed)| {
            let path = RelPath::new(path).map_err(|error| fail(error.to_string()))?;
            let (content, own) = match printed {
                Printed::Text(content) => (content, None),
                Printed::File { content, mode } => (content, mode),
            };
            left = left
                .checked_sub(content.len() as u64)
                .ok_or_else(|| SourceError::too_large(format_args!("`{}`", command.join(" "))))?;
            let own = own.map(|mode| mode.parse()).transpose().map_err(|e: ModeError| fail(e.to_string()))?;
            Ok((path, File { content: content.into_bytes(), mode: own.unwrap_or(mode) }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ctx_format::Priority;

    use super::*;

    fn facts() -> Facts {
        Facts {
            host: [("hostname".into(), "h2".into()), ("site".into(), "local".into())].into(),
            domain: DomainId { name: "g1".into(), uuid: "u-1".into() },
            class: "infrastructure".into(),
        }
    }

    fn class(source: Source, mode: Option<Mode>) -> Class {
        Class { name: "infrastructure".parse().unwrap(), priority: Priority(1), source, mode }
    }

    fn text<'a>(files: &'a BTreeMap<RelPath, File>, path: &str) -> &'a str {
        std::str::from_utf8(&files[path].content).unwrap()
    }

    #[tokio::test]
    async fn a_directory_is_taken_with_links_inside_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/f"), "x").unwrap();
        fs::set_permissions(dir.path().join("a/f"), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::symlink("a/f", dir.path().join("link")).unwrap();
        let source = || Source::Directory(dir.path().into());
        let files = gather(&class(source(), Some(Mode::PRIVATE)), &facts()).await.unwrap();
        assert_eq!((text(&files, "a/f"), text(&files, "link")), ("x", "x"));
        assert_eq!(files["a/f"].mode, Mode::PRIVATE);
        let files = gather(&class(source(), None), &facts()).await.unwrap();
        assert_eq!(files["a/f"].mode.bits(), 0o755);

        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("out")).unwrap();
        let error = gather(&class(source(), None), &facts()).await.unwrap_err();
        assert!(matches!(&error, SourceError::Outside { path } if path.ends_with("out")), "{error}");
    }

    #[tokio::test]
    async fn a_loop_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(".", dir.path().join("again")).unwrap();
        let error = gather(&class(Source::Directory(dir.path().into()), None), &facts()).await.unwrap_err();
        assert!(matches!(error, SourceError::Path { .. }), "{error}");
    }

    #[tokio::test]
    async fn templates_know_host_and_domain_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let class = class(Source::Template(dir.path().into()), None);
        fs::write(dir.path().join("f"), "{{ site }}/{{ hostname }}/{{ domain.name }}/{{ domain.uuid }}\n")
            .unwrap();
        let files = gather(&class, &facts()).await.unwrap();
        assert_eq!(text(&files, "f"), "local/h2/g1/u-1\n");

        fs::write(dir.path().join("f"), "\n{{ sight }}\n").unwrap();
        let error = gather(&class, &facts()).await.unwrap_err();
        assert!(matches!(error, SourceError::Template { line: Some(2), .. }), "{error}");
    }

    #[test]
    fn a_directory_has_no_more_than_a_class_may_hold() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("a")).unwrap();
        file.set_len(MAX_CLASS_BYTES).unwrap();
        read_directory(dir.path(), None).unwrap();
        fs::write(dir.path().join("b"), "x").unwrap();
        let error = read_directory(dir.path(), None).unwrap_err();
        assert!(matches!(error, SourceError::TooLarge { .. }), "{error}");
    }

    #[tokio::test]
    async fn templates_make_no_more_than_a_class_may_hold() {
        let dir = tempfile::tempdir().unwrap();
        let class = class(Source::Template(dir.path().into()), None);
        let mib = "x".repeat(1 << 20);
        // 64 MiB in two files.
        for name in ["a", "b"] {
            fs::write(dir.path().join(name), format!("{{% for i in range(32) %}}{mib}{{% endfor %}}"))
                .unwrap();
        }
        let files = gather(&class, &facts()).await.unwrap();
        assert_eq!(files.values().map(|file| file.content.len() as u64).sum::<u64>(), MAX_CLASS_BYTES);
        fs::write(dir.path().join("c"), "one").unwrap();
        let error = gather(&class, &facts()).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::TooLarge { origin } if Path::new(origin) == dir.path()),
            "{error}"
        );
        assert!(error.to_string().ends_with("the class has more than 64 MiB, the limit"), "{error}");
    }

    #[tokio::test]
    async fn templates_that_take_too_many_steps_are_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let class = class(Source::Template(dir.path().into()), None);
        let body = |inner: &str| format!("\n{{% for i in range(100000) %}}{inner}{{% endfor %}}");
        for template in [
            // Time, and memory that is not printed.
            body("{% for j in range(100) %}{% endfor %}"),
            "{% set text = 'x' * 90000000 %}{% set more = text ~ text ~ text ~ text %}".into(),
        ] {
            fs::write(dir.path().join("f"), template).unwrap();
            let error = gather(&class, &facts()).await.unwrap_err();
            assert!(matches!(error, SourceError::Template { line: Some(_), .. }), "{error}");
            assert!(error.to_string().ends_with("steps, the limit"), "{error}");
        }
        // All templates of a class share the steps.
        for name in 0..20 {
            fs::write(dir.path().join("f").with_extension(name.to_string()), body("{{ i }}")).unwrap();
        }
        fs::write(dir.path().join("f"), body("{{ i }}")).unwrap();
        let error = gather(&class, &facts()).await.unwrap_err().to_string();
        assert!(error.ends_with("steps, the limit") && !error.contains("/f:"), "{error}");
    }

    #[tokio::test]
    async fn a_program_makes_no_more_than_a_class_may_hold() {
        let program = |bytes: u64| {
            let half = bytes / 2;
            let script = format!(
                r#"x() {{ head -c "$1" /dev/zero | tr '\0' x; }}
                printf '{{"a":"'; x {half}; printf '","b":{{"content":"'; x {}; printf '"}}}}'"#,
                bytes - half
            );
            class(Source::Command(vec!["sh".into(), "-c".into(), script]), None)
        };
        let files = gather(&program(MAX_CLASS_BYTES), &facts()).await.unwrap();
        assert_eq!(files.values().map(|file| file.content.len() as u64).sum::<u64>(), MAX_CLASS_BYTES);
        let error = gather(&program(MAX_CLASS_BYTES + 1), &facts()).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::TooLarge { origin } if origin.starts_with("`sh -c")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_program_prints_files() {
        let program =
            |script: &str| class(Source::Command(vec!["sh".into(), "-c".into(), script.into()]), None);
        let files = gather(
            &program(r#"cat >/dev/null; echo '{"a/b":"1","k":{"content":"2","mode":"0400"}}'"#),
            &facts(),
        )
        .await
        .unwrap();
        assert_eq!((text(&files, "a/b"), text(&files, "k")), ("1", "2"));
        assert_eq!((files["a/b"].mode, files["k"].mode.bits()), (Mode::PRIVATE, 0o400));
        // The facts arrive on its input.
        let echo = program(r#"printf '{"f":%s}' "$(sed 's/.*"site":\("[a-z]*"\).*/\1/')""#);
        assert_eq!(text(&gather(&echo, &facts()).await.unwrap(), "f"), "local");

        for (script, part) in [
            ("echo broken >&2; exit 3", "broken"),
            ("echo no", "does not print"),
            (r#"echo '{"../x":""}'"#, "`..`"),
            ("exec cat /dev/zero", "printed more than 128 MiB"),
            ("head -c 1000000 /dev/zero >&2; echo no", "does not print"),
        ] {
            let error = gather(&program(script), &facts()).await.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let missing = class(Source::Command(vec!["/nonexistent/program".into()]), None);
        assert!(gather(&missing, &facts()).await.unwrap_err().to_string().contains("cannot be started"));
    }
}
