//! Extended attributes that tell of the mount and take commands. Pure: from names and values to
//! answers and requests.
//!
//! On the hidden directory `.ffs` at the top of the mount:
//!
//! | attribute `user.ffs.` | read | written |
//! |---|---|---|
//! | `layers` | `NAME=SOURCE:…`, highest first | changes layers, see below |
//! | `generation` | its number | – (`EROFS`) |
//! | `cmd.reload`, `cmd.rollback`, `cmd.invalidate` | – (`ENODATA`) | does it; the value is empty, or for a rollback a generation |
//!
//! `layers` takes what mergerfs's `branches` takes: `+<LAYERS` puts on top, `+>LAYERS` below all,
//! `-NAMES` removes, `-<` and `->` remove the highest and the lowest, `=LAYERS` or `LAYERS` sets all;
//! `LAYERS` are `NAME=SOURCE` (or the name of a layer that there is), with `:` between. `@7 ` before
//! any value means: only if the mount is at generation 7 (else `EBUSY`).
//!
//! On every path: `layer`, `generation`, and as mergerfs has them `basepath`, `relpath`, `fullpath`,
//! `allpaths`. mergerfs's own prefix `user.mergerfs.`, its word `branches` and its name `.mergerfs`
//! for the hidden directory mean the same.

use std::os::unix::ffi::OsStringExt;

use crate::config::Source;
use crate::control::Request;
use crate::edit::Op;
use crate::generation::Generation;
use crate::layer::{Layer, LayerNode};
use crate::merge::{Dir, Node, ROOT};

/// The attributes that the hidden directory lists.
pub(crate) const LISTED: &[u8] = b"user.ffs.layers\0user.ffs.generation\0";

/// Why an attribute cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no such attribute.
    Unknown,
    /// It can be read only.
    ReadOnly,
    /// The value makes no sense.
    Invalid,
}

/// The name after the prefix; `None` for attributes that are not ours.
fn ours(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let key = name.strip_prefix("user.ffs.").or_else(|| name.strip_prefix("user.mergerfs."))?;
    Some(if key == "branches" { "layers" } else { key })
}

/// The value of an attribute of the hidden directory.
pub(crate) fn of_control(name: &[u8], generation: &Generation) -> Option<Vec<u8>> {
    match ours(name)? {
        "layers" => {
            let layers: Vec<String> =
                generation.layers.iter().map(|layer| format!("{}={}", layer.name, layer.origin)).collect();
            Some(layers.join(":").into_bytes())
        }
        "generation" => Some(generation.number.to_string().into_bytes()),
        _ => None,
    }
}

/// The value of an attribute of a path, given by what the kernel knows it as.
pub(crate) fn of_path(name: &[u8], node: &Node, generation: &Generation) -> Option<Vec<u8>> {
    let key = ours(name)?;
    match (key, node) {
        ("layer", Node::File(file)) => return Some(file.layer.as_bytes().to_vec()),
        ("layer", Node::Dir(dir)) => {
            return Some(dir.layers().collect::<Vec<_>>().join(":").into_bytes());
        }
        ("generation", _) => return Some(generation.number.to_string().into_bytes()),
        ("basepath" | "relpath" | "fullpath" | "allpaths", _) => {}
        _ => return None,
    }
    // Rarely asked, and no inode knows its path: looked for. What is not in this generation any more
    // has none.
    let mut path = Vec::new();
    if node.ino() != ROOT && !find(&generation.root, node.ino(), &mut path) {
        return None;
    }
    if generation.is_projected() {
        // By the path in the layers, with its leading slash.
        path = crate::projection::plain(path.strip_prefix(b"/").unwrap_or(&path))
            .map_or_else(Vec::new, |plain| [b"/", plain].concat());
    }
    let rel: Vec<u8> = if path.is_empty() { b"/".to_vec() } else { path.clone() };
    let mut having = generation.layers.iter().filter(|layer| has(layer, &path));
    let full = |layer: &Layer| [base(layer), path.clone()].concat();
    match key {
        "relpath" => Some(rel),
        "basepath" => having.next().map(|layer| base(layer)),
        "fullpath" => having.next().map(|layer| full(layer)),
        _ => {
            let all: Vec<Vec<u8>> = having.map(|layer| full(layer)).collect();
            Some(all.join(&0))
        }
    }
}

/// Where a layer's tree is: a directory's path, or the origin of an image.
fn base(layer: &Layer) -> Vec<u8> {
    match layer.origin.parse() {
        Ok(Source::Dir(path)) => path.into_os_string().into_vec(),
        _ => layer.origin.clone().into_bytes(),
    }
}

/// Whether a layer has a path, hidden by higher ones or not.
fn has(layer: &Layer, path: &[u8]) -> bool {
    let mut dir = &layer.root;
    let mut names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        match dir.entries.get(name) {
            Some(LayerNode::Dir(below)) => dir = below,
            Some(LayerNode::Leaf(_)) => return names.peek().is_none(),
            Some(LayerNode::Whiteout) | None => return false,
        }
    }
    true
}

/// Finds an inode below a directory and leaves its path in `path`.
fn find(dir: &Dir, ino: u64, path: &mut Vec<u8>) -> bool {
    let len = path.len();
    for (name, node) in &dir.entries {
        path.push(b'/');
        path.extend_from_slice(name);
        let found = node.ino() == ino || matches!(node, Node::Dir(below) if find(below, ino, path));
        if found {
            return true;
        }
        path.truncate(len);
    }
    false
}

/// The request that writing an attribute of the hidden directory makes.
pub(crate) fn command(name: &[u8], value: &[u8], shown: &Generation) -> Result<Request, Refused> {
    let key = ours(name).ok_or(Refused::Unknown)?;
    let value = std::str::from_utf8(value).map_err(|_| Refused::Invalid)?.trim_end_matches(['\n', '\0']);
    let (if_generation, value) = match value.strip_prefix('@') {
        None => (None, value),
        Some(rest) => {
            let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            (Some(number.parse().map_err(|_| Refused::Invalid)?), rest.trim_start())
        }
    };
    // For requests that take neither a value nor a generation.
    let bare = value.is_empty() && if_generation.is_none();
    match key {
        "layers" => Ok(Request::Apply { ops: ops(value, shown).ok_or(Refused::Invalid)?, if_generation }),
        "cmd.rollback" if value.is_empty() => Ok(Request::Rollback { to: None, if_generation }),
        "cmd.rollback" => {
            Ok(Request::Rollback { to: Some(value.parse().map_err(|_| Refused::Invalid)?), if_generation })
        }
        "cmd.reload" if bare => Ok(Request::Reload),
        "cmd.invalidate" if bare => Ok(Request::Invalidate),
        "cmd.reload" | "cmd.invalidate" => Err(Refused::Invalid),
        "generation" | "layer" | "basepath" | "relpath" | "fullpath" | "allpaths" => Err(Refused::ReadOnly),
        _ => Err(Refused::Unknown),
    }
}

/// The operations that a value of `layers` stands for.
fn ops(value: &str, shown: &Generation) -> Option<Vec<Op>> {
    let names: Vec<String> = shown.layers.iter().map(|layer| layer.name.clone()).collect();
    let remove = |name: Option<&String>| Some(vec![Op::Remove(name?.clone())]);
    match value {
        "-<" => return remove(names.first()),
        "->" => return remove(names.last()),
        _ => {}
    }
    if let Some(list) = value.strip_prefix('-') {
        let gone: Vec<Op> = list.split(':').map(|name| Op::Remove(name.to_owned())).collect();
        return (!list.is_empty()).then_some(gone);
    }
    let (place, list) = match (value.strip_prefix("+<"), value.strip_prefix("+>")) {
        (Some(list), _) => (Place::Top, list),
        (_, Some(list)) => (Place::Bottom, list),
        _ => (Place::All, value.strip_prefix('=').unwrap_or(value)),
    };
    let specs = specs(list)?;
    let listed: Vec<String> = specs
        .iter()
        .map(|spec| spec.split_once('=').map_or(spec.clone(), |(name, _)| name.to_owned()))
        .collect();
    let mut ops = Vec::new();
    if place == Place::All {
        ops.extend(names.iter().filter(|name| !listed.contains(name)).cloned().map(Op::Remove));
    }
    for (spec, name) in specs.iter().zip(&listed) {
        match (spec.contains('='), names.contains(name), place) {
            // A name alone stands for the layer that there is.
            (false, true, Place::All) => {}
            (true, true, Place::All) => ops.push(Op::Replace(spec.clone())),
            (true, false, _) => ops.push(Op::Add(spec.clone())),
            _ => return None,
        }
    }
    let others = names.into_iter().filter(|name| !listed.contains(name));
    let order: Vec<String> = match place {
        Place::Top => listed.iter().cloned().chain(others).collect(),
        Place::Bottom => others.chain(listed.iter().cloned()).collect(),
        Place::All => listed,
    };
    ops.push(Op::Order(order));
    Some(ops)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Bottom,
    All,
}

/// Splits layers at `:`. A source has a `:` of its own, after its kind: what follows belongs to it
/// until the next piece that names a kind, or a layer alone.
fn specs(list: &str) -> Option<Vec<String>> {
    let mut specs: Vec<String> = Vec::new();
    for piece in list.split(':') {
        let begins = piece.split_once('=').is_some_and(|(_, kind)| {
            ["dir", "iso", "device"].contains(&kind.strip_suffix('%').unwrap_or(kind))
        });
        match specs.last_mut() {
            Some(spec) if !begins && spec.contains('=') && piece.starts_with('/') => {
                spec.push(':');
                spec.push_str(piece);
            }
            _ => specs.push(piece.to_owned()),
        }
    }
    specs.iter().all(|spec| !spec.is_empty()).then_some(specs)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use super::*;
    use crate::layer::{LayerDir, Meta};
    use crate::merge::Inodes;

    fn generation(layers: &[&str]) -> Generation {
        let layers = layers.iter().rev().zip(1..).map(|(name, priority)| {
            let dir = LayerDir::new(Meta::bare_dir());
            let below = LayerNode::Dir(Arc::new(dir));
            let root = LayerDir {
                entries: [(b"both"[..].into(), below.clone()), (name.as_bytes().into(), below)].into(),
                ..LayerDir::new(Meta::bare_dir())
            };
            Arc::new(Layer {
                name: (*name).to_owned(),
                priority,
                origin: format!("dir:/{name}"),
                class: None,
                generation: None,
                vouched: None,
                root: Arc::new(root),
            })
        });
        Generation::build(layers.collect(), None, &Inodes::default(), SystemTime::UNIX_EPOCH)
    }

    fn layers(value: &str) -> Result<Vec<Op>, Refused> {
        match command(b"user.ffs.layers", value.as_bytes(), &generation(&["a", "b"]))? {
            Request::Apply { ops, .. } => Ok(ops),
            other => panic!("{other:?}"),
        }
    }

    fn order(names: &[&str]) -> Op {
        Op::Order(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn the_grammar_of_layers() {
        let add = |spec: &str| Op::Add(spec.to_owned());
        let remove = |name: &str| Op::Remove(name.to_owned());
        assert_eq!(layers("+<c=dir:/c").unwrap(), [add("c=dir:/c"), order(&["c", "a", "b"])]);
        assert_eq!(
            layers("+>c=dir:/c:d=iso:/d,priority=1").unwrap(),
            [add("c=dir:/c"), add("d=iso:/d,priority=1"), order(&["a", "b", "c", "d"])]
        );
        assert_eq!(layers("-a:b").unwrap(), [remove("a"), remove("b")]);
        assert_eq!(layers("-<").unwrap(), [remove("a")]);
        assert_eq!(layers("->").unwrap(), [remove("b")]);
        assert_eq!(layers("=b:a").unwrap(), [order(&["b", "a"])]);
        assert_eq!(
            layers("b=dir:/x:c=dir:/c").unwrap(),
            [remove("a"), Op::Replace("b=dir:/x".to_owned()), add("c=dir:/c"), order(&["b", "c"])]
        );
        for wrong in ["", "+<", "-", "+<a", "+<a=dir:/x", "c", "a::b"] {
            assert_eq!(layers(wrong), Err(Refused::Invalid), "{wrong}");
        }
    }

    #[test]
    fn the_rest_of_the_commands() {
        let of = |name: &str, value: &str| command(name.as_bytes(), value.as_bytes(), &generation(&["a"]));
        let rollback = |to, if_generation| Ok(Request::Rollback { to, if_generation });
        assert_eq!(of("user.ffs.cmd.rollback", ""), rollback(None, None));
        assert_eq!(of("user.ffs.cmd.rollback", "@4 3"), rollback(Some(3), Some(4)));
        assert_eq!(of("user.ffs.cmd.rollback", "@4"), rollback(None, Some(4)));
        assert_eq!(of("user.ffs.cmd.reload", ""), Ok(Request::Reload));
        assert_eq!(of("user.ffs.cmd.invalidate", "\n"), Ok(Request::Invalidate));
        let removal = Request::Apply { ops: vec![Op::Remove("a".to_owned())], if_generation: Some(9) };
        assert_eq!(of("user.mergerfs.branches", "@9 -a"), Ok(removal));
        assert_eq!(of("user.ffs.cmd.reload", "now"), Err(Refused::Invalid));
        assert_eq!(of("user.ffs.layers", "@x -a"), Err(Refused::Invalid));
        assert_eq!(of("user.ffs.generation", "1"), Err(Refused::ReadOnly));
        assert_eq!(of("user.ffs.unheard", ""), Err(Refused::Unknown));
        assert_eq!(of("security.x", ""), Err(Refused::Unknown));
    }

    #[test]
    fn paths_tell_where_they_come_from() {
        let generation = generation(&["a", "b"]);
        let of = |name: &str, node: &Node| {
            of_path(format!("user.ffs.{name}").as_bytes(), node, &generation)
                .map(|value| String::from_utf8(value).unwrap())
        };
        let both = generation.root.get(b"both").unwrap();
        assert_eq!(of("layer", both).unwrap(), "a:b");
        assert_eq!(of("relpath", both).unwrap(), "/both");
        assert_eq!(of("basepath", both).unwrap(), "/a");
        assert_eq!(of("fullpath", both).unwrap(), "/a/both");
        assert_eq!(of("allpaths", both).unwrap(), "/a/both\0/b/both");
        let below = generation.root.get(b"b").unwrap();
        assert_eq!(of("fullpath", below).unwrap(), "/b/b");
        let root = Node::Dir(generation.root.clone());
        assert_eq!(
            (of("relpath", &root).unwrap(), of("fullpath", &root).unwrap()),
            ("/".into(), "/a".into())
        );
        assert_eq!(of("other", &root), None);
        assert_eq!(of_control(b"user.mergerfs.branches", &generation).unwrap(), b"a=dir:/a:b=dir:/b");
    }
}
