//! The servers' commands: scripts that are safe to run again.

use super::Volume;
use super::volfile;
use crate::exec::quote;

/// Folder of volfile, log and process id in a server.
pub(super) const RUN: &str = "/run/gluster-server";

/// Makes an empty brick: a file system in memory with the volume's id on it. What was there is gone.
pub fn prepare(volume: &Volume) -> String {
    let brick = quote(&volume.brick);
    format!(
        "set -e
command -v setfattr glusterfsd >/dev/null || {{ echo 'the image needs the packages attr and glusterfs-server' >&2; exit 69; }}
{stop}
! mountpoint -q {brick} || umount {brick}
mkdir -p {brick} {RUN} /var/log/glusterfs
mount -t tmpfs -o size={mib}m,mode=0755 gluster-brick {brick}
mkdir -p {brick}/.glusterfs/indices
setfattr -n trusted.glusterfs.volume-id -v 0x{id:032x} {brick}
",
        stop = stop(),
        mib = volume.brick_mib,
        id = volume.id,
    )
}

/// Starts server `own` and returns when it listens.
pub fn start(volume: &Volume, own: usize) -> String {
    let text = volfile::server(volume, own);
    let port = volume.port;
    format!(
        "set -e
mkdir -p {RUN} /var/lib/glusterd
cat >{RUN}/server.vol <<'END-OF-VOLFILE'
{text}END-OF-VOLFILE
: >{RUN}/server.log
glusterfsd -f {RUN}/server.vol -l {RUN}/server.log -p {RUN}/server.pid
for i in $(seq 300); do
    ss -Hltn 'sport = :{port}' | grep -q . && exit 0
    kill -0 \"$(cat {RUN}/server.pid)\" 2>/dev/null || break
    sleep 0.1
done
echo 'glusterfsd does not listen; the end of its log:' >&2
tail -n 4 {RUN}/server.log >&2
exit 1
"
    )
}

/// Waits until a started server has its peer's brick.
pub fn await_peer() -> String {
    format!(
        "for i in $(seq 300); do
    grep -q '0-peer: Connected, attached to remote volume' {RUN}/server.log && exit 0
    sleep 0.1
done
echo 'the peer does not answer; the end of the log:' >&2
tail -n 4 {RUN}/server.log >&2
exit 1
"
    )
}

/// Stops the server, at most 10 s after its signal by force; none running is no error.
pub fn stop() -> String {
    format!(
        "if test -s {RUN}/server.pid; then
    pid=$(cat {RUN}/server.pid)
    kill \"$pid\" 2>/dev/null || :
    for i in $(seq 100); do kill -0 \"$pid\" 2>/dev/null || break; sleep 0.1; done
    kill -9 \"$pid\" 2>/dev/null || :
    rm -f {RUN}/server.pid
fi"
    )
}

/// Prints what waits for healing in this brick: `pending N`, `dirty N` (entries of the index) and
/// `changelog N` (files whose changelog attributes are not zero).
///
/// AFR marks a file dirty while it writes and takes the mark away about a second after
/// the last write (`post-op-delay-secs`): a mark that goes away by itself is no damage.
pub fn heal(volume: &Volume) -> String {
    let brick = quote(&volume.brick);
    format!(
        "cd {brick} || exit 1
for kind in xattrop:pending dirty:dirty; do
    index=.glusterfs/indices/${{kind%:*}}
    # The entry named after the index itself is the file that the others are links of.
    printf '%s %s\\n' \"${{kind#*:}}\" \"$(ls \"$index\" 2>/dev/null | grep -vc \"^${{kind%:*}}-\")\"
done
printf 'changelog %s\\n' \"$(find . -path ./.glusterfs -prune -o -print0 | xargs -0 getfattr -h -d -m '^trusted[.]afr[.]' -e hex -- 2>/dev/null | grep '=0x' | grep -vc '=0x0*$')\"
"
    )
}

/// Prints one line for everything in this brick but GlusterFS's own: SHA-256 and name of a file,
/// type, target and name of anything else, sorted.
pub fn list(volume: &Volume) -> String {
    let brick = quote(&volume.brick);
    format!(
        "set -e
cd {brick}
{{
    find . -path ./.glusterfs -prune -o -type f -exec sha256sum {{}} +
    find . -path ./.glusterfs -prune -o ! -type f -printf '%y %l %p\\n'
}} | sort
"
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn volume() -> Volume {
        Volume::new(0x7a0c_2f1e, [Ipv4Addr::new(198, 18, 1, 1), Ipv4Addr::new(198, 18, 1, 2)])
    }

    #[test]
    fn a_server_from_nothing_to_listening() {
        insta::assert_snapshot!("prepare", prepare(&volume()));
        insta::assert_snapshot!("heal", heal(&volume()));
    }

    #[test]
    fn the_scripts_are_valid_shell() {
        let volume = volume();
        for script in
            [prepare(&volume), start(&volume, 1), await_peer(), stop(), heal(&volume), list(&volume)]
        {
            let status = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
            assert!(status.success(), "{script}");
        }
    }
}
