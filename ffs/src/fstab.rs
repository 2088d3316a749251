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

/// What an option of mount(8) means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It is so anyway, it is about another program, or it cannot matter to a file system that nobody writes to.
    Ignored,
    /// `noexec` or `exec`: the last one counts.
    Noexec(bool),
    /// `nosymfollow` or `symfollow`.
    Nosymfollow(bool),
    /// For a security module of the kernel.
    Label,
    /// Change the flags of a mount that exists.
    Remount,
    /// It asks for what cannot be had.
    Refused(&'static str),
}

/// Options that say who may mount; mount(8) writes `user=NAME` into its own table.
const USERS: [&str; 2] = ["user", "users"];

const OWNERS: &str = "owners and permissions are those of the layers";

const PROGRAM: &str = "mount.fuse3 changes the user of the program, and mount.ffs does not";

/// What libmount takes as the value of a flag (util-linux 2.39, mount(8)): which part of the kernel's state it is for. Here
/// there is one mount, with nothing below it.
const SCOPES: [&str; 3] = ["recursive", "vfs", "fs"];

/// The options of mount(8) that hold for all file systems, and those of libmount, systemd and libfuse. mount(8) sends `rw` for
/// `defaults` and for a line that says nothing, so `rw` cannot be told from a wish to write; nor do `suid` and `dev`, which
/// `defaults` stands for, give anybody anything: set-id bits and device files never work here.
const OPTIONS: [(&str, Meaning); 115] = {
    use Meaning::{Ignored, Label, Noexec, Nosymfollow, Refused, Remount};
    [
        ("defaults", Ignored),
        ("ro", Ignored),
        ("rw", Ignored),
        ("suid", Ignored),
        ("nosuid", Ignored),
        ("dev", Ignored),
        ("nodev", Ignored),
        ("exec", Noexec(false)),
        ("noexec", Noexec(true)),
        ("symfollow", Nosymfollow(false)),
        ("nosymfollow", Nosymfollow(true)),
        // Users may mount: mount(8) has these imply nosuid and nodev, and two of them noexec.
        ("user", Noexec(true)),
        ("users", Noexec(true)),
        ("owner", Ignored),
        ("group", Ignored),
        ("nouser", Ignored),
        ("nousers", Ignored),
        ("noowner", Ignored),
        ("nogroup", Ignored),
        ("async", Ignored),
        ("sync", Ignored),
        ("dirsync", Ignored),
        ("atime", Ignored),
        ("noatime", Ignored),
        ("diratime", Ignored),
        ("nodiratime", Ignored),
        ("relatime", Ignored),
        ("norelatime", Ignored),
        ("strictatime", Ignored),
        ("nostrictatime", Ignored),
        ("lazytime", Ignored),
        ("nolazytime", Ignored),
        ("iversion", Ignored),
        ("noiversion", Ignored),
        ("mand", Ignored),
        ("nomand", Ignored),
        ("silent", Ignored),
        ("loud", Ignored),
        ("auto", Ignored),
        ("noauto", Ignored),
        ("nofail", Ignored),
        ("_netdev", Ignored),
        ("_rnetdev", Ignored),
        ("comment", Ignored),
        ("helper", Ignored),
        ("uhelper", Ignored),
        // Of FUSE, as the table of mounts has them: they are what they are.
        ("fd", Ignored),
        ("rootmode", Ignored),
        ("user_id", Ignored),
        ("group_id", Ignored),
        ("fsname", Ignored),
        ("subtype", Ignored),
        ("blkdev", Ignored),
        ("blksize", Ignored),
        ("max_read", Ignored),
        ("allow_other", Ignored),
        ("default_permissions", Ignored),
        ("auto_unmount", Ignored),
        // Of libfuse (mount.fuse3(8)), which is not here: who gets in, how much is asked for at once and what the kernel caches
        // is decided by what the mount shows.
        ("allow_root", Ignored),
        ("nonempty", Ignored),
        ("debug", Ignored),
        ("kernel_cache", Ignored),
        ("auto_cache", Ignored),
        ("noauto_cache", Ignored),
        ("direct_io", Ignored),
        ("entry_timeout", Ignored),
        ("negative_timeout", Ignored),
        ("attr_timeout", Ignored),
        ("ac_attr_timeout", Ignored),
        ("noforget", Ignored),
        ("remember", Ignored),
        ("use_ino", Ignored),
        ("readdir_ino", Ignored),
        ("nopath", Ignored),
        ("hard_remove", Ignored),
        ("intr", Ignored),
        ("intr_signal", Ignored),
        ("large_read", Ignored),
        ("big_writes", Ignored),
        ("max_write", Ignored),
        ("max_readahead", Ignored),
        ("max_background", Ignored),
        ("congestion_threshold", Ignored),
        ("max_idle_threads", Ignored),
        ("max_threads", Ignored),
        ("clone_fd", Ignored),
        ("async_read", Ignored),
        ("sync_read", Ignored),
        ("async_dio", Ignored),
        ("no_async_dio", Ignored),
        ("atomic_o_trunc", Ignored),
        ("writeback_cache", Ignored),
        ("no_writeback_cache", Ignored),
        ("readdirplus", Ignored),
        ("splice_write", Ignored),
        ("no_splice_write", Ignored),
        ("splice_move", Ignored),
        ("no_splice_move", Ignored),
        ("splice_read", Ignored),
        ("no_splice_read", Ignored),
        ("no_remote_lock", Ignored),
        ("no_remote_flock", Ignored),
        ("no_remote_posix_lock", Ignored),
        ("modules", Refused("the tree is shown as the layers have it")),
        ("setuid", Refused(PROGRAM)),
        ("drop_privileges", Refused(PROGRAM)),
        ("context", Label),
        ("fscontext", Label),
        ("defcontext", Label),
        ("rootcontext", Label),
        ("seclabel", Ignored),
        ("remount", Remount),
        ("uid", Refused(OWNERS)),
        ("gid", Refused(OWNERS)),
        ("umask", Refused(OWNERS)),
    ]
};

fn meaning(name: &str) -> Option<Meaning> {
    // For other programs: `x-systemd.…`, `X-mount.…`.
    if name.starts_with("x-") || name.starts_with("X-") {
        return Some(Meaning::Ignored);
    }
    OPTIONS.iter().find(|(option, _)| *option == name).map(|(_, meaning)| *meaning)
}

/// A call of the helper, understood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Words, each of its own.
pub struct Call {
    /// The words after `ffs` that do it.
    pub command: Vec<OsString>,
    /// Only pretend.
    pub fake: bool,
    /// Change the flags of a mount that exists, and nothing else.
    pub remount: bool,
    /// No file can be executed.
    pub noexec: bool,
    /// No symbolic link is followed.
    pub nosymfollow: bool,
    /// Where.
    pub point: OsString,
}

/// Understands the words after `mount.ffs`.
///
/// # Errors
/// A sentence that names the word.
pub fn parse(words: &[OsString]) -> Result<Call, String> {
    let mut call = Call { command: vec!["mount".into()], ..Call::default() };
    let (mut plain, mut options, mut sloppy) = (Vec::new(), Vec::new(), false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = |of: &str| words.next().ok_or_else(|| format!("`{of}` of what?"));
        match word.as_bytes() {
            b"-o" => options.extend(split(value("-o")?.as_bytes())),
            b"-t" | b"-N" => drop(value(&word.to_string_lossy())?),
            [b'-', flags @ ..] if !flags.is_empty() => {
                for flag in flags {
                    match flag {
                        b'f' => call.fake = true,
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
        call.command.extend(["--layer".into(), spec.clone()]);
    }
    for option in options {
        call.take(&option, sloppy)?;
    }
    let flags = [(call.noexec, "--noexec"), (call.nosymfollow, "--nosymfollow")];
    call.command.extend(flags.into_iter().filter(|(asked, _)| *asked).map(|(_, flag)| flag.into()));
    // Whatever it is called.
    call.command.extend(["--".into(), point.clone()]);
    call.point.clone_from(point);
    Ok(call)
}

impl Call {
    fn take(&mut self, option: &[u8], sloppy: bool) -> Result<(), String> {
        let text = String::from_utf8_lossy(option);
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (&*text, None),
        };
        let mut pass = |flag: &str| {
            let value = value.filter(|value| !value.is_empty());
            // From the bytes: a path need not be UTF-8.
            let bytes =
                value.and_then(|_| option.get(name.len() + 1..)).ok_or(format!("`{name}` of what?"))?;
            self.command.extend([flag.into(), OsString::from_vec(bytes.to_vec())]);
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
            "drives" | "passthrough" if value.is_some() => {
                Err(format!("`{name}` takes no value: write `{name}` or leave it out"))
            }
            "drives" => {
                self.command.push("--auto".into());
                Ok(())
            }
            "passthrough" => {
                self.command.push("--passthrough".into());
                Ok(())
            }
            _ => {
                let known = meaning(name);
                if matches!(known, Some(Meaning::Noexec(_) | Meaning::Nosymfollow(_) | Meaning::Remount))
                    && let Some(value) = value.filter(|value| {
                        !USERS.contains(&name) && (known == Some(Meaning::Remount) || !SCOPES.contains(value))
                    })
                {
                    return Err(format!("`{name}` is on or off by its name: leave `={value}` out"));
                }
                match known {
                    Some(Meaning::Ignored) => {}
                    Some(Meaning::Noexec(noexec)) => self.noexec = noexec,
                    Some(Meaning::Nosymfollow(nosymfollow)) => self.nosymfollow = nosymfollow,
                    Some(Meaning::Remount) => self.remount = true,
                    Some(Meaning::Label) => {
                        let label = value.unwrap_or_default().trim_matches('"');
                        self.command.extend(["--label".into(), format!("{name}={label}").into()]);
                    }
                    Some(Meaning::Refused(reason)) => return Err(format!("{reason}: leave `{name}` out")),
                    None if sloppy => {}
                    None => {
                        return Err(format!(
                            "`{text}` is not an option of ffs: there are `layer=NAME=SOURCE`, `drives`, `auto_device=`, \
                         `config=`, `keep_removed=`, `max_memory=`, `event_log=`, `passthrough`, `projection=` and \
                         `socket=`, besides those of mount(8)"
                        ));
                    }
                }
                Ok(())
            }
        }
    }
}

/// Splits options at commas; `\,` is a comma in an option and `\\` a backslash. The `,priority=N` and
/// `,watch=…` after a layer belong to it, and so do commas between the quotes of a label.
fn split(options: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = vec![Vec::new()];
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        // There is always one.
        let Some(last) = parts.last_mut() else { break };
        match byte {
            b'\\' => last.extend(bytes.next()),
            b',' if !is_open_label(last) => parts.push(Vec::new()),
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

/// Whether this is the beginning of a label in quotes: `context="a:b:c:s0:c1`.
fn is_open_label(part: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(part) else { return false };
    text.split_once('=').is_some_and(|(name, value)| {
        meaning(name) == Some(Meaning::Label) && value.starts_with('"') && value.matches('"').count() == 1
    })
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
    fn what_is_on_by_its_name_takes_no_value() {
        for option in [
            "passthrough=0",
            "drives=no",
            "noexec=0",
            "nosymfollow=false",
            "remount=1",
            "passthrough=vfs",
            "noexec=",
            "exec=recursive ",
            "remount=recursive",
        ] {
            let name = option.split_once('=').unwrap().0;
            let error = call(&["x", "/m", "-o", option]).unwrap_err();
            assert!(error.contains(&format!("`{name}`")) && error.contains("leave"), "{error}");
        }
        assert!(call(&["x", "/m", "-o", "user=games,user_id=0,group_id=0,rootmode=40755"]).is_ok());
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
        assert_eq!(words.unwrap(), [&wanted[..], &["--", "/mnt/context"]].concat());
    }

    #[test]
    fn the_spec_may_be_a_layer() {
        let words = call(&["a=dir:/x", "/mnt", "-o", "config=/etc/ffs.toml"]).unwrap();
        assert_eq!(words, ["mount", "--layer", "a=dir:/x", "--config", "/etc/ffs.toml", "--", "/mnt"]);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        for (words, says) in [
            (&["ffs"][..], "usage"),
            (&["ffs", "/mnt", "-o", "uid=1000"], "leave `uid` out"),
            (&["ffs", "/mnt", "-o", "modules=subdir"], "leave `modules` out"),
            (&["ffs", "/mnt", "-o", "setuid=games"], "leave `setuid` out"),
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

    #[test]
    fn the_options_of_mount_are_obeyed_or_ignored() {
        for (options, wanted) in [
            ("defaults", &[][..]),
            ("rw", &[]),
            ("rw,suid,dev,exec,auto,nouser,async", &[]),
            ("noexec", &["--noexec"]),
            ("noexec,exec", &[]),
            ("user", &["--noexec"]),
            ("users,exec", &[]),
            ("exec,user=somebody", &["--noexec"]),
            ("owner", &[]),
            ("group,noexec", &["--noexec"]),
            ("nosymfollow,noexec", &["--noexec", "--nosymfollow"]),
            ("nosymfollow,symfollow", &[]),
            ("ro,sync,dirsync,lazytime,strictatime,nodiratime,mand,iversion,silent,_netdev,noauto", &[]),
            ("x-systemd.requires=/a,X-mount.mkdir,comment=a b,nofail", &[]),
            ("noexec=recursive,nosymfollow=vfs,ro=fs,nosuid=recursive", &["--noexec", "--nosymfollow"]),
            ("noexec,exec=recursive", &[]),
            (
                "max_read=65536,blksize=512,nonempty,fsname=x,subtype=y,auto_unmount,kernel_cache,allow_root",
                &[],
            ),
            ("default_permissions,allow_other,entry_timeout=1.5,remember=3,clone_fd,max_idle_threads=9", &[]),
            ("context=\"u:r:t:s0:c1,c2\",noexec", &["--label", "context=u:r:t:s0:c1,c2", "--noexec"]),
        ] {
            let words = call(&["ffs", "/mnt", "-o", options]).unwrap();
            assert_eq!(words, [&["mount"], wanted, &["--", "/mnt"]].concat(), "{options}");
        }
        let words = ["ffs", "/mnt", "-o", "remount,noexec,rw"].map(OsString::from);
        let call = parse(&words).unwrap();
        assert!(call.remount && call.noexec && !call.nosymfollow && call.point == "/mnt");
    }
}
