#!/bin/sh
# First program of every machine of a testbed. Lays three file systems over each other and starts systemd:
#   memory (what the machine writes)  over  seed disk (what this machine alone has)  over  root disk (the image).
# Disks are found by the serial number that the testbed gives them, since the order of vda and vdb is nobody's promise.
#
# Kernel command line:
#   bench.root=SERIAL|/dev/NAME   the image (default: root)
#   bench.seed=SERIAL|/dev/NAME   must be there when it is named; without this, a disk `seed` is used when there is one
#   bench.upper=SIZE              most that the machine may write, as tmpfs takes it (default: 60%)
#   bench.wait=SECONDS            how long to wait for a disk (default: 30)

export PATH=/bin

fail() {
    echo "bench-init: failed: $*" >/dev/console
    [ -z "$refused" ] || echo "bench-init: drivers that did not load:$refused" >/dev/console
    echo "bench-init: disks seen: $(cd /sys/block 2>/dev/null && for d in *; do
        [ "$d" = '*' ] || echo "$d($(cat "$d/serial" 2>/dev/null))"; done | tr '\n' ' ')" >/dev/console
    # So that the line is out before the machine is gone.
    sleep 1
    poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev || fail "the kernel has no devtmpfs"

root=root seed= upper=60% wait=30
for word in $(cat /proc/cmdline); do
    case $word in
        bench.root=*) root=${word#*=} ;;
        bench.seed=*) seed=${word#*=} ;;
        bench.upper=*) upper=${word#*=} ;;
        bench.wait=*) wait=${word#*=} ;;
    esac
done

# One image boots on several hypervisors, and a driver of another one refuses to load: what counts is that the disks appear.
refused=
for module in $(cat /etc/modules); do
    modprobe "$module" 2>/dev/null || refused="$refused $module"
done

# Prints the device of a serial number; fails when there is none.
disk() {
    case $1 in
        /dev/*) [ -b "$1" ] && echo "$1" && return ;;
    esac
    for block in /sys/block/*; do
        [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${block##*/}" && return
    done
    return 1
}

# The same, within the time limit; looks 20 times a second.
await() {
    tries=$((wait * 20))
    until disk "$1"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        usleep 50000
    done
}

device=$(await "$root") || fail "no disk with the serial number '$root' within $wait s"
mount -t ext4 -o ro "$device" /lower/root || fail "$device (serial '$root') does not mount as ext4"
lower=/lower/root

if [ -n "$seed" ]; then
    device=$(await "$seed") || fail "no disk with the serial number '$seed' within $wait s"
else
    # All disks that were there at boot are known when the first one is.
    device=$(disk seed) || device=
fi
if [ -n "$device" ]; then
    mount -t ext4 -o ro "$device" /lower/seed || fail "$device (the seed) does not mount as ext4"
    lower=/lower/seed:$lower
fi

mount -t tmpfs -o "size=$upper,mode=0755" upper /upper || fail "no memory file system of size $upper"
mkdir /upper/data /upper/work
mount -t overlay -o "lowerdir=$lower,upperdir=/upper/data,workdir=/upper/work" root /new || fail "overlay"
[ -x /new/sbin/init ] || fail "the image has no /sbin/init"

for kept in proc sys dev; do
    mount --move /$kept /new/$kept
done
exec switch_root /new /sbin/init
