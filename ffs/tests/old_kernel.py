#!/usr/bin/python3
"""Runs a program as on a kernel that lacks fsopen(2): the call fails with ENOSYS.

    old_kernel.py PROGRAM [ARGUMENT...]
"""

import ctypes
import errno
import os
import struct
import sys

FSOPEN = 430
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.ENOSYS

# linux/filter.h: load the number of the call; allow it unless it is fsopen.
rules = [(0x20, 0, 0, 0), (0x15, 1, 0, FSOPEN), (0x06, 0, 0, ALLOW), (0x06, 0, 0, FAIL)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(rules), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
for call in [(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0)]:
    if libc.prctl(call[0], *(ctypes.c_ulong(argument) for argument in call[1:])) != 0:
        sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
os.execv(sys.argv[1], sys.argv[1:])
