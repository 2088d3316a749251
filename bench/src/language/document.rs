//! A scenario's files, read and laid over each other: what is left is one table, whose values know where they are written.

use std::io;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::error::ScenarioError;
use super::text::{Fault, Texts};
use super::tree::{self, NAMED, Node, Table, Value};
use crate::model::{Source, SourceFile, hex};

/// How deep files may include each other.
const DEPTH: usize = 8;
/// How many files a scenario may have.
const MOST: usize = 64;

/// Gives the text of a file.
pub(crate) type Fetch<'a> = &'a dyn Fn(&Path) -> io::Result<String>;

/// A scenario's files, merged.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    /// Its name: its file's, without the extension.
    pub(crate) name: String,
    /// All files.
    pub(crate) texts: Texts,
    /// How many of them are the scenario's own; others are the bench's.
    own: usize,
    /// What they say together, without the profiles.
    pub(crate) table: Table,
    /// The profiles, by name.
    profiles: Table,
}

impl Document {
    /// Reads a file and all that it includes.
    ///
    /// # Errors
    /// A file cannot be read, or something in it is wrong: then with file, line, column and what to do.
    pub(crate) fn read(path: &Path, text: &str, fetch: Fetch<'_>) -> Result<Self, ScenarioError> {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let mut texts = Texts::default();
        let start = texts.add(path, text);
        if name.is_empty() || name.starts_with('.') {
            let message = format!("`{}` has no name", path.display());
            return Err(texts.error(Fault::new(0..0, message, "rename it, e.g. to my-test.toml")));
        }
        let mut reader = Reader { texts, fetch, open: vec![clean(path)], seen: vec![clean(path)] };
        let read = reader.file(path, text, start, 0);
        let Reader { texts, .. } = reader;
        let mut table = read.map_err(|fault| texts.error(fault))?;
        let profiles = match table.take("profile") {
            None => Table::default(),
            Some(Node { value: Value::Table(profiles), .. }) => profiles,
            Some(node) => {
                let message = format!("`profile` is a table, not {}", node.value.kind());
                return Err(texts.error(Fault::new(node.span, message, "write [profile.quick.design]")));
            }
        };
        if let Some(full) = profiles.entries.iter().find(|entry| entry.key == "full") {
            let help = "put its settings outside of [profile], or rename it";
            return Err(texts.error(Fault::new(full.at.clone(), "profile `full` is the file itself", help)));
        }
        let own = texts.files().len();
        Ok(Self { name, texts, own, table, profiles })
    }

    /// Names of the profiles.
    pub(crate) fn profiles(&self) -> impl Iterator<Item = &str> {
        self.profiles.entries.iter().map(|entry| entry.key.as_str())
    }

    /// The table with a profile laid over it.
    ///
    /// # Errors
    /// There is no such profile, or it names what is not there.
    pub(crate) fn over(&self, profile: Option<&str>) -> Result<Table, Fault> {
        let mut table = self.table.clone();
        let Some(name) = profile else { return Ok(table) };
        let Some(upper) = self.profiles.get(name) else {
            let known = self.profiles().chain(["full"]).collect::<Vec<_>>().join(", ");
            let help = format!("use one of {known}, or add a table such as [profile.{name}.design]");
            let fault = Fault::new(0..0, format!("there is no profile `{name}` in this file"), help);
            return Err(Fault { misuse: true, ..fault });
        };
        let Some(upper) = upper.table() else {
            let help = format!("write [profile.{name}.design]");
            return Err(Fault::new(upper.span.clone(), format!("profile `{name}` is no table"), help));
        };
        for entry in &upper.entries {
            let (key, node) = (entry.key.as_str(), entry.node.clone());
            match node.value {
                _ if key == "remove" => remove(&mut table, &node)?,
                Value::Table(items) if NAMED.contains(&key) || key == "step" => {
                    for item in items.entries {
                        let Some(lower) = find(&mut table, key, &item.key) else {
                            let message = format!("there is no {key} `{}`", item.key);
                            let help = format!("name one that the file has, or add [[profile.{name}.{key}]]");
                            return Err(Fault::new(item.at, message, help));
                        };
                        let Value::Table(upper) = item.node.value else {
                            let help = format!("write [profile.{name}.{key}.{}]", item.key);
                            return Err(Fault::new(item.node.span, "a profile changes keys of it", help));
                        };
                        tree::lay_over(lower, upper, false, &|_| String::new())?;
                    }
                }
                _ if key == "step" => {
                    let help = "change one by its name: [profile.NAME.step.move]";
                    return Err(Fault::new(entry.at.clone(), "a profile has no steps of its own", help));
                }
                _ if key == "include" => {
                    let help = "include it at the head of the file";
                    return Err(Fault::new(entry.at.clone(), "a profile includes nothing", help));
                }
                value => {
                    let upper = Table {
                        entries: vec![tree::Entry {
                            key: entry.key.clone(),
                            at: entry.at.clone(),
                            node: Node { span: node.span, value },
                        }],
                    };
                    tree::lay_over(&mut table, upper, false, &|_| String::new())?;
                }
            }
        }
        Ok(table)
    }

    /// Where it came from, for a manifest. Paths are as the files name each other.
    pub(crate) fn source(&self, profile: Option<&str>) -> Source {
        let folder = self.texts.files().first().and_then(|file| file.path.parent()).unwrap_or(Path::new(""));
        let files = self.texts.files().iter().take(self.own).map(|file| SourceFile {
            path: relative(&clean(&file.path), &clean(folder)),
            sha256: hex(&Sha256::digest(file.content.as_bytes())),
            text: file.content.clone(),
        });
        Source { files: files.collect(), profile: profile.map(str::to_owned) }
    }
}

struct Reader<'a> {
    texts: Texts,
    fetch: Fetch<'a>,
    /// Files that are being read, the innermost last.
    open: Vec<PathBuf>,
    /// Files that were read.
    seen: Vec<PathBuf>,
}

impl Reader<'_> {
    fn file(&mut self, path: &Path, text: &str, start: usize, depth: usize) -> Result<Table, Fault> {
        let mut table = tree::parse(text, start)?;
        twins(&table)?;
        let Some(include) = table.take("include") else { return Ok(table) };
        let Some(list) = include.list() else {
            let help = "write include = [\"lib/migration.toml\"]";
            return Err(Fault::new(include.span, "`include` is a list of files", help));
        };
        let mut base = Table::default();
        for item in list {
            let Some(name) = item.text() else {
                return Err(Fault::new(
                    item.span.clone(),
                    "a file is named by a text",
                    "put it between quotation marks",
                ));
            };
            let found = path.parent().unwrap_or(Path::new("")).join(name);
            let included = self.include(&found, item, depth + 1)?;
            let texts = &self.texts;
            tree::lay_over(&mut base, included, true, &|place| texts.line(place))?;
        }
        if let (Some(step), Some(_)) = (table.get("step"), base.get("step")) {
            let help = "keep all steps of a trial in one file, so that it can be read from top to bottom";
            return Err(Fault::new(step.span.clone(), "an included file has steps, too", help));
        }
        tree::lay_over(&mut base, table, false, &|_| String::new())?;
        Ok(base)
    }

    fn include(&mut self, path: &Path, at: &Node, depth: usize) -> Result<Table, Fault> {
        let fail = |message: String, help: &str| Err(Fault::new(at.span.clone(), message, help));
        let key = clean(path);
        if self.open.contains(&key) {
            return fail(format!("{} includes itself", path.display()), "break the circle");
        }
        if self.seen.contains(&key) {
            // What it says is there already.
            return Ok(Table::default());
        }
        if depth > DEPTH || self.texts.files().len() >= MOST {
            let message = format!("more than {DEPTH} files deep, or {MOST} in all");
            return fail(message, "include fewer files");
        }
        let text = match (self.fetch)(path) {
            Ok(text) => text,
            Err(error) => {
                let message = format!("{} cannot be read: {error}", path.display());
                return fail(message, "paths are relative to the file that includes");
            }
        };
        let start = self.texts.add(path, &text);
        self.seen.push(key.clone());
        self.open.push(key);
        let read = self.file(path, &text, start, depth);
        self.open.pop();
        read
    }
}

/// Refuses two items of one name in one file.
fn twins(table: &Table) -> Result<(), Fault> {
    for list in NAMED {
        let mut names: Vec<&str> = Vec::new();
        for (span, item) in table.items(list) {
            let Some(node) = item.get("name") else {
                let help = format!("add name = \"…\" to this [[{list}]]");
                return Err(Fault::new(span.clone(), format!("a {list} has a name"), help));
            };
            let Some(name) = node.text() else {
                return Err(Fault::new(
                    node.span.clone(),
                    "a name is a text",
                    "put it between quotation marks",
                ));
            };
            if names.contains(&name) {
                let message = format!("{list} `{name}` is there twice");
                return Err(Fault::new(node.span.clone(), message, "name each once"));
            }
            names.push(name);
        }
    }
    Ok(())
}

/// The item of a list by its name; a step without one by its verb's key.
fn find<'a>(table: &'a mut Table, list: &str, name: &str) -> Option<&'a mut Table> {
    if list != "step" {
        return table.item_mut(list, name);
    }
    let Some(Node { value: Value::List(steps), .. }) = table.get_mut("step") else { return None };
    steps.iter_mut().find_map(|step| match &mut step.value {
        Value::Table(step) if step.name() == Some(name) => Some(step),
        _ => None,
    })
}

/// Takes away what a profile's `remove` names: `arm.carried`, `step.file-operations`.
fn remove(table: &mut Table, node: &Node) -> Result<(), Fault> {
    let help = "write for example remove = [\"arm.carried\"]";
    let Some(names) = node.list() else {
        return Err(Fault::new(node.span.clone(), "`remove` is a list of names", help));
    };
    for item in names {
        let path = item.text().and_then(|text| text.split_once('.'));
        let Some((list, name)) = path.filter(|(list, _)| NAMED.contains(list) || *list == "step") else {
            return Err(Fault::new(
                item.span.clone(),
                "this is not the name of something that can be removed",
                help,
            ));
        };
        let Some(Node { value: Value::List(items), .. }) = table.get_mut(list) else {
            return Err(Fault::new(item.span.clone(), format!("there is no {list} `{name}`"), help));
        };
        let before = items.len();
        items.retain(|one| one.table().and_then(Table::name) != Some(name));
        if items.len() == before {
            return Err(Fault::new(item.span.clone(), format!("there is no {list} `{name}`"), help));
        }
    }
    Ok(())
}

/// A path without `.` and `..` where they can be resolved by its words alone.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if matches!(clean.components().next_back(), Some(Component::Normal(_))) => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

/// A path as seen from a folder.
fn relative(path: &Path, folder: &Path) -> String {
    let mut up = PathBuf::new();
    for base in folder.ancestors() {
        if let Ok(rest) = path.strip_prefix(base) {
            return up.join(rest).display().to_string();
        }
        up.push("..");
    }
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(files: &[(&str, &str)]) -> Result<Document, String> {
        let map: BTreeMap<PathBuf, &str> =
            files.iter().map(|(path, text)| (clean(Path::new(path)), *text)).collect();
        let fetch = |path: &Path| {
            map.get(&clean(path)).map(|text| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        };
        let (path, text) = files[0];
        Document::read(Path::new(path), text, &fetch).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_lies_over_what_it_includes() {
        let document = read(&[
            ("s/p/x.toml", "include = ['../lib/a.toml', '../lib/b.toml']\ntitle = 'mine'\n[[link]]\nname = 'wan'\nrate = 'r'\n"),
            ("s/lib/a.toml", "title = 'theirs'\n[[link]]\nname = 'wan'\ndelay = 'd'\n"),
            ("s/lib/b.toml", "include = ['a.toml']\n[parameters]\nx = 1\n"),
        ])
        .unwrap();
        assert_eq!(document.table.get("title").unwrap().text(), Some("mine"));
        let (_, wan) = document.table.items("link").next().unwrap();
        assert!(wan.get("rate").is_some() && wan.get("delay").is_some());
        let paths: Vec<_> = document.source(None).files.into_iter().map(|file| file.path).collect();
        assert_eq!(paths, ["x.toml", "../lib/a.toml", "../lib/b.toml"]);
    }

    #[test]
    fn circles_gaps_and_quarrels_are_told_with_their_places() {
        let told = read(&[("a.toml", "include = ['b.toml']\n"), ("b.toml", "\ninclude = ['a.toml']\n")]);
        assert_eq!(told.unwrap_err(), "b.toml:2:12: a.toml includes itself");
        let told = read(&[("a.toml", "include = ['none.toml']\n")]).unwrap_err();
        assert!(told.starts_with("a.toml:1:12: none.toml cannot be read"), "{told}");
        let told = read(&[
            ("a.toml", "include = ['b.toml', 'c.toml']\n"),
            ("b.toml", "[design]\nseed = 1\n"),
            ("c.toml", "[design]\nseed = 2\n"),
        ]);
        assert_eq!(told.unwrap_err(), "c.toml:2:8: `seed` is set otherwise in b.toml:2");
        let told = read(&[("a.toml", "[[arm]]\nname = 'x'\n[[arm]]\nname = 'x'\n")]).unwrap_err();
        assert_eq!(told, "a.toml:4:8: arm `x` is there twice");
        let told = read(&[
            ("a.toml", "include = ['b.toml']\n[[step]]\nmark = 'x'\n"),
            ("b.toml", "[[step]]\nmark = 'y'\n"),
        ]);
        assert!(told.unwrap_err().contains("has steps, too"));
    }

    #[test]
    fn a_profile_changes_named_items_and_takes_some_away() {
        let document = read(&[(
            "a.toml",
            "[[arm]]\nname = 'x'\n[[arm]]\nname = 'y'\n[design]\nblocks = 9\n[[step]]\nname = 'move'\nmigrate = 'vm'\n\
             [profile.quick]\nremove = ['arm.y']\n[profile.quick.design]\nblocks = 5\n[profile.quick.step.move]\ndeadline = '1 s'\n\
             [profile.bad.arm.z]\nrate = 1\n",
        )])
        .unwrap();
        let quick = document.over(Some("quick")).unwrap();
        assert_eq!(quick.items("arm").count(), 1);
        assert_eq!(
            quick.get("design").unwrap().table().unwrap().get("blocks").unwrap().value,
            Value::Integer(5)
        );
        assert!(quick.items("step").next().unwrap().1.get("deadline").is_some());
        assert!(document.over(Some("bad")).unwrap_err().message.contains("no arm `z`"));
        let none = document.over(Some("none")).unwrap_err();
        assert!(none.misuse && none.help.contains("quick, bad, full"), "{}", none.help);
    }
}
