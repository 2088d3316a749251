//! The guest's reaction to a new context: re-attach the volume through the server that it names.
//!
//! One script does the first mount and every later one, so that what a migration triggers is what was
//! tested before it. It can run at any time and as often as it likes: two at once take turns, and
//! when the volume is mounted through the server that the context names, and answers, nothing is done.

use super::volfile;
use super::{ClientOptions, Volume};
use crate::exec::quote;

/// The client in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// The file of the context tree that holds the server's address, one line.
    pub context: String,
    /// Where the volume is mounted.
    pub mount: String,
    /// Where the script is kept in the guest.
    pub script: String,
    /// How long an attach may take, in s, before it is given up.
    pub patience: u32,
    /// Options of the mount.
    pub options: ClientOptions,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            context: "/mnt/context/gluster/server".into(),
            mount: "/mnt/gluster".into(),
            script: "/run/gluster-client/attach".into(),
            patience: 60,
            options: ClientOptions::default(),
        }
    }
}

/// Folder of the client's volfile, log, process id and state in the guest.
pub const RUN: &str = "/run/gluster-client";

/// The script of `client`; exits 0 when the volume is attached through the server of the context, 1 when not, 64 when
/// the context names none.
///
/// It writes `/run/gluster-client/state` as `key=value` lines ([`super::ClientState`]), whole or not at all.
pub fn hook(volume: &Volume, client: &Client) -> String {
    let options = &client.options;
    let direct = if options.direct_io { "enable" } else { "disable" };
    let text = volfile::client(volume, "$address", options);
    // Times are seconds since the guest's boot, which a migration does not set back.
    format!(
        r#"#!/bin/sh
# Attaches the volume at {mount} through the server that {context} names. Written by bench.
run={RUN}
mount={mount}
patience={patience}
mkdir -p "$run" /var/log/glusterfs "$mount"
exec 9>"$run/lock"
flock 9

now() {{ cut -d' ' -f1 /proc/uptime; }}
began=$(now)
state() {{
    printf 'state=%s\naddress=%s\nbegan=%s\nended=%s\nlazy=%s\nreason=%s\n' \
        "$1" "$address" "$began" "$(now)" "$lazy" "$2" >"$run/state.new"
    mv "$run/state.new" "$run/state"
}}
fail() {{
    state failed "$1"
    echo "$1" >&2
    exit "${{2:-1}}"
}}
# What did not become a mount leaves none behind, and no process.
give_up() {{
    umount -l "$mount" 2>/dev/null
    test ! -s "$run/client.pid" || kill "$(cat "$run/client.pid")" 2>/dev/null
    fail "$1: $(grep -m 1 -E '\] E ' "$run/client.log")"
}}
answers() {{ timeout "$1" stat -f "$mount" >/dev/null 2>&1 && mountpoint -q "$mount"; }}

lazy=0
address=
IFS= read -r address <{context} 2>/dev/null || test -n "$address" || fail "no server's address in {context}" 64
case $address in
*[!0-9A-Za-z.:-]* | '') address= fail "the server's address in {context} is no address" 64 ;;
esac

if grep -qs " $mount fuse.glusterfs " /proc/mounts; then
    if test "$(cat "$run/address" 2>/dev/null)" = "$address" && answers 10; then
        state attached unchanged
        exit 0
    fi
    pid=$(cat "$run/client.pid" 2>/dev/null)
    # Files that are open keep the old mount, and its process, until they are closed.
    timeout 20 umount "$mount" 2>/dev/null || {{ lazy=1; umount -l "$mount" || fail "cannot unmount $mount"; }}
    if test "$lazy" = 0 && test -n "$pid"; then
        for i in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.05; done
        kill -9 "$pid" 2>/dev/null
    fi
fi

rm -f "$run/address" "$run/client.pid"
cat >"$run/client.vol" <<END-OF-VOLFILE
{text}END-OF-VOLFILE
: >"$run/client.log"
timeout "$patience" glusterfs -f "$run/client.vol" -l "$run/client.log" -p "$run/client.pid" \
    --direct-io-mode={direct} --entry-timeout={entry} --attribute-timeout={attribute} "$mount" 9>&- ||
    give_up "glusterfs does not start"
end=$(($(cut -d. -f1 /proc/uptime) + patience))
until answers 5; do
    test "$(cut -d. -f1 /proc/uptime)" -lt "$end" || give_up "the server $address does not answer"
    sleep 0.1
done
printf '%s\n' "$address" >"$run/address"
state attached new
"#,
        mount = quote(&client.mount),
        context = quote(&client.context),
        patience = client.patience,
        entry = options.entry_timeout,
        attribute = options.attribute_timeout,
    )
}

/// Unmounts the volume and ends its client; not mounted is no error.
pub(super) fn detach(client: &Client) -> String {
    let mount = quote(&client.mount);
    format!(
        "! mountpoint -q {mount} || timeout 30 umount {mount} || exit 1
pid=$(cat {RUN}/client.pid 2>/dev/null)
test -z \"$pid\" || for i in $(seq 100); do kill -0 \"$pid\" 2>/dev/null || break; sleep 0.1; done
rm -f {RUN}/address {RUN}/client.pid
"
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::workload::gluster::ClientState;

    fn volume() -> Volume {
        Volume::new(1, [Ipv4Addr::new(198, 18, 1, 1), Ipv4Addr::new(198, 18, 1, 2)])
    }

    #[test]
    fn the_script() {
        insta::assert_snapshot!(hook(&volume(), &Client::default()));
    }

    #[test]
    fn it_is_valid_shell() {
        for script in [hook(&volume(), &Client::default()), detach(&Client::default())] {
            let status = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
            assert!(status.success(), "{script}");
        }
    }

    /// The refusals need no GlusterFS: the script runs for real, in folders of the test's own.
    #[test]
    fn a_context_without_an_address_is_refused_and_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        for (content, reason) in [
            (None, "no server's address in"),
            (Some(""), "no server's address in"),
            (Some("\n"), "is no address"),
            (Some("198.18.1.1; reboot\n"), "is no address"),
        ] {
            let client = Client { context: at("server"), mount: at("mount"), ..Client::default() };
            let _ = std::fs::remove_file(&client.context);
            if let Some(content) = content {
                std::fs::write(&client.context, content).unwrap();
            }
            let script = hook(&volume(), &client).replace(RUN, &at("run"));
            let script = script.replace("/var/log/glusterfs", &at("log"));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(output.status.code(), Some(64), "{content:?}: {output:?}");
            let state = ClientState::parse(&std::fs::read_to_string(at("run/state")).unwrap()).unwrap();
            assert!(!state.attached && state.reason.contains(reason), "{content:?}: {state:?}");
        }
    }
}
