#!/usr/bin/python3
"""Tries to change what a mount shows, in every way that a program has.

    attack.py MOUNT NAME [no-commands]

NAME is a file at the top of MOUNT. Prints one line for each way: its name and the error that it met, or DONE. What may fail only
later (a store into a shared map) is DONE when no call has failed; whoever runs this looks at the content afterwards.
"""

import ctypes
import errno
import mmap
import os
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
mount, name = sys.argv[1:3]
commands = "no-commands" not in sys.argv
path = os.path.join(mount, name)
new = os.path.join(mount, "forged")
EVIL = b"EVIL"


def attempt(what, run, *arguments, **options):
    try:
        run(*arguments, **options)
        result = "DONE"
    except OSError as error:
        result = errno.errorcode.get(error.errno, str(error.errno))
    print(what, result, flush=True)


def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def opened(flags):
    os.close(os.open(path, flags))


def with_file(run):
    def attack():
        file = os.open(path, os.O_RDWR)
        try:
            run(file)
        finally:
            os.close(file)
    return attack


def store(file):
    shared = mmap.mmap(file, 0)
    shared[: len(EVIL)] = EVIL
    shared.flush()
    shared.close()


def fallocate(file):
    PUNCH_HOLE_KEEP_SIZE = 3
    call(libc.fallocate, file, PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(4096))


def copy(file):
    source = os.memfd_create("evil")
    os.write(source, EVIL)
    os.copy_file_range(source, file, len(EVIL), 0, 0)


def through_proc():
    """A descriptor for reading, opened again for writing."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.close(os.open(f"/proc/self/fd/{file}", os.O_RDWR))
    finally:
        os.close(file)


attempt("open-write", opened, os.O_WRONLY)
attempt("open-both", opened, os.O_RDWR)
attempt("open-append", opened, os.O_WRONLY | os.O_APPEND)
attempt("open-truncate", opened, os.O_WRONLY | os.O_TRUNC)
attempt("open-ioctl", opened, 3)
attempt("open-direct", opened, os.O_RDWR | os.O_DIRECT)
attempt("open-again", through_proc)
attempt("write", with_file(lambda file: os.write(file, EVIL)))
attempt("store", with_file(store))
attempt("ftruncate", with_file(lambda file: os.ftruncate(file, 1)))
attempt("fallocate", with_file(fallocate))
attempt("copy", with_file(copy))
attempt("truncate", os.truncate, path, 1)
attempt("chmod", os.chmod, path, 0o777)
attempt("chown", os.chown, path, os.getuid(), os.getgid())
attempt("utime", os.utime, path, (1, 1))
attempt("setxattr", os.setxattr, path, "user.forged", EVIL)
attempt("removexattr", os.removexattr, path, "user.forged")
attempt("create", lambda: os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600)))
attempt("create-temporary", lambda: os.close(os.open(mount, os.O_TMPFILE | os.O_WRONLY, 0o600)))
attempt("mkdir", os.mkdir, new)
attempt("mknod", os.mknod, new, stat.S_IFIFO | 0o600)
attempt("symlink", os.symlink, "/etc/passwd", new)
attempt("link", os.link, path, new)
attempt("rename", os.rename, path, new)
attempt("replay", os.rename, os.path.join(mount, ".ffs", "now-1"), path)
attempt("unlink", os.unlink, path)
attempt("rmdir", os.rmdir, os.path.join(mount, "dir"))
if commands:
    hidden = os.path.join(mount, ".ffs")
    attempt("command-layers", os.setxattr, hidden, "user.ffs.layers", b"+<h=dir:/root")
    attempt("command-reload", os.setxattr, hidden, "user.ffs.cmd.reload", b"")
    attempt("command-branches", os.setxattr, os.path.join(mount, ".mergerfs"), "user.mergerfs.branches", b"+</root")
