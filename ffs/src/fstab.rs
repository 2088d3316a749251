//! What mount(8) tells its helper `mount.ffs`. Pure: from its words to those of `ffs mount`.
//!
//! `mount.ffs SPEC POINT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`. `SPEC` is a layer
//! (`NAME=dir:/path`) or, where options or a configuration name the layers, anything without `=`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// mount(8): wrong usage or insufficient permissions.
pub const USAGE: u8 = 1;
/// mount(8): a system error.
pub const SYSTEM: u8 = 2;
/// mount(8): the mount failed.
pub const FAILURE: u8 = 32;

/// Options that ask for what is so anyway, or that are addressed to others.
const IGNORED: [&str; 18] = [
    "defaults",
    "ro",
    "nosuid",
    "nodev",
    "noexec",
    "exec",
    "noatime",
    "relatime",
    "nodiratime",
    "async",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nofail",
    "_netdev",
    "allow_other",
];
/// Options that ask for what cannot be had.
const REFUSED: [(&str, &str); 3] = [
    ("rw", "ffs is read-only: leave `rw` out or write `ro`"),
    ("suid", "set-id bits never count here: leave `suid` out"),
    ("dev", "device files never work here: leave `dev` out"),
];

/// A call of the helper, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The words after `ffs` that do it.
    pub command: Vec<OsString>,
    /// Only pretend.
    pub fake: bool,
}

/// Understands the words after `mount.ffs`.
///
/// # Errors
/// A sentence that names the word.
pub fn parse(words: &[OsString]) -> Result<Call, String> {
    let mut command: Vec<OsString> = vec!["mount".into()];
    let (mut plain, mut options, mut fake, mut sloppy) = (Vec::new(), Vec::new(), false, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = |of: &str| words.next().ok_or_else(|| format!("`{of}` of what?"));
        match word.as_bytes() {
            b"-o" => options.extend(split(value("-o")?.as_bytes())),
            b"-t" | b"-N" => drop(value(&word.to_string_lossy())?),
            [b'-', flags @ ..] if !flags.is_empty() => {
                for flag in flags {
                    match flag {
                        b'f' => fake = true,
                        b's' => sloppy = true,
                        b'n' | b'v' | b'r' => {}
                        _ => return Err(format!("`{}` is not an option of mount", word.to_string_lossy())),
                    }
                }
            }
            _ => plain.push(word),
        }
    }
    let [spec, point] = plain[..] else {
        return Err("usage: mount.ffs SPEC POINT [-sfnv] [-o OPTIONS]".to_owned());
    };
    if spec.as_bytes().contains(&b'=') {
        command.extend(["--layer".into(), spec.clone()]);
    }
    for option in options {
        option_words(&option, sloppy, &mut command)?;
    }
    command.push(point.clone());
    Ok(Call { command, fake })
}

fn option_words(option: &[u8], sloppy: bool, command: &mut Vec<OsString>) -> Result<(), String> {
    let text = String::from_utf8_lossy(option);
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (&*text, None),
    };
    let mut pass = |flag: &str| {
        let value = value.filter(|value| !value.is_empty());
        // From the bytes: a path need not be UTF-8.
        let bytes = value.and_then(|_| option.get(name.len() + 1..)).ok_or(format!("`{name}` of what?"))?;
        command.extend([flag.into(), OsString::from_vec(bytes.to_vec())]);
        Ok(())
    };
    match name {
        "layer" => pass("--layer"),
        "config" => pass("--config"),
        "keep_removed" => pass("--keep-removed"),
        "max_memory" => pass("--max-memory"),
        "event_log" => pass("--event-log"),
        "socket" => pass("--socket"),
        "projection" => pass("--projection"),
        "auto_device" => pass("--auto-device"),
        // `auto` and `noauto` are mount's own words, for when it mounts.
        "drives" => {
            command.push("--auto".into());
            Ok(())
        }
        "passthrough" => {
            command.push("--passthrough".into());
            Ok(())
        }
        _ => match REFUSED.iter().find(|(refused, _)| *refused == name) {
            Some((_, reason)) => Err((*reason).to_owned()),
            None if sloppy || IGNORED.contains(&name) || is_comment(name) => Ok(()),
            None => Err(format!(
                "`{text}` is not an option of ffs: there are `layer=NAME=SOURCE`, `drives`, `auto_device=`, \
                 `config=`, `keep_removed=`, `max_memory=`, `event_log=`, `passthrough`, `projection=` and `socket=`"
            )),
        },
    }
}

/// Options for other programs: `x-systemd.…`, `X-mount.…`, `comment=…`.
fn is_comment(name: &str) -> bool {
    name.starts_with("x-") || name.starts_with("X-") || name == "comment"
}

/// Splits options at commas; `\,` is a comma in an option and `\\` a backslash. The `,priority=N` and
/// `,watch=…` after a layer belong to it.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        // There is always one.
        let Some(last) = parts.last_mut() else { break };
        match byte {
            b'\\' => last.extend(bytes.next()),
            b',' => parts.push(Vec::new()),
            _ => last.push(byte),
        }
    }
    let mut whole: Vec<Vec<u8>> = Vec::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match whole.last_mut() {
            Some(layer)
                if layer.starts_with(b"layer=")
                    && (part.starts_with(b"priority=") || part.starts_with(b"watch=")) =>
            {
                layer.push(b',');
                layer.extend(part);
            }
            _ => whole.push(part),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Result<Vec<String>, String> {
        let words: Vec<OsString> = words.iter().map(Into::into).collect();
        let call = parse(&words)?;
        Ok(call.command.into_iter().map(|word| word.into_string().unwrap()).collect())
    }

    #[test]
    fn layers_and_commas() {
        let words = call(&[
            "ffs",
            "/mnt/context",
            "-n",
            "-o",
            r"ro,layer=a=dir:/x\,y,priority=3,watch=off,layer=b=iso:/z.iso,drives,passthrough,x-systemd.automount,nofail",
        ]);
        let wanted = [
            "mount",
            "--layer",
            r"a=dir:/x,y,priority=3,watch=off",
            "--layer",
            "b=iso:/z.iso",
            "--auto",
            "--passthrough",
        ];
        assert_eq!(words.unwrap(), [&wanted[..], &["/mnt/context"]].concat());
    }

    #[test]
    fn the_spec_may_be_a_layer() {
        let words = call(&["a=dir:/x", "/mnt", "-o", "config=/etc/ffs.toml"]).unwrap();
        assert_eq!(words, ["mount", "--layer", "a=dir:/x", "--config", "/etc/ffs.toml", "/mnt"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for (words, says) in [
            (&["ffs"][..], "usage"),
            (&["ffs", "/mnt", "-o", "rw"], "read-only"),
            (&["ffs", "/mnt", "-o", "layers=a"], "`layers=a`"),
            (&["ffs", "/mnt", "-o", "layer"], "of what"),
            (&["ffs", "/mnt", "-x"], "`-x`"),
            (&["ffs", "/mnt", "-o"], "of what"),
        ] {
            let error = call(words).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(call(&["ffs", "/mnt", "-s", "-o", "future=1"]).is_ok());
    }

    #[test]
    fn fake_is_understood_in_a_bundle() {
        let words: Vec<OsString> = ["ffs", "/mnt", "-vf"].iter().map(Into::into).collect();
        assert!(parse(&words).unwrap().fake);
    }
}
