"""No network, and no file outside one folder, for a process and all that it starts: what a response makes a parser do stays
there.

Linux has two means for it that need no rights. Landlock (kernel 5.13; the more, the newer) lets files be written beneath the
folder alone, and from 6.12 on signals be sent to the process's own children alone. seccomp refuses the system calls that open a
socket, reach into another process, or change a file's mode and owner, which Landlock leaves alone. Both refuse with
PermissionError. Reading files is not limited. `lacking` says what a machine does not have.
"""

import ctypes
import errno
import os
import platform
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

# ------------------------------------------------------------------------------------------------------------- Landlock

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _ASK_VERSION = 444, 445, 446, 1
# Rights by the version that brought them (uapi/linux/landlock.h): WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_*; then REFER;
# TRUNCATE; IOCTL_DEV.
_FILE_RIGHTS = {1: [1, 4, 5, 6, 7, 8, 9, 10, 11, 12], 2: [13], 3: [14], 5: [15]}
_OF_A_FILE = (1 << 1) | (1 << 14) | (1 << 15)  # those that make sense for what is no folder
_NETWORK, _SCOPE = 0b11, 0b11  # bind and connect over TCP (4); abstract sockets and signals to others (6)
_NETWORK_VERSION, _SCOPE_VERSION = 4, 6
_PATH_BENEATH = 1

# --------------------------------------------------------------------------------------------------------------- seccomp

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES
_NUMBER_AT, _MACHINE_AT, _X32 = 0, 4, 0x40000000
# Of a machine: its number, and those of socket, ptrace, process_vm_readv and -writev, (f)chmod*, (f)chown*, *setxattr,
# *removexattr. The same everywhere: io_uring_setup (which opens sockets its own way), pidfd_getfd, fchmodat2.
_EVERYWHERE = (425, 438, 452)
_MACHINES = {
    "x86_64": (
        0xC000003E,
        (41, 101, 310, 311, 90, 91, 268, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199),
    ),
    "aarch64": (0xC00000B7, (198, 117, 270, 271, 52, 53, 54, 55, 5, 6, 7, 14, 15, 16)),
}


class _Rules(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scope")]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("rights", ctypes.c_uint64), ("place", ctypes.c_int32)]


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("then", ctypes.c_uint8),
        ("otherwise", ctypes.c_uint8),
        ("value", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("instructions", ctypes.POINTER(_Instruction))]


def confine(folder: Path) -> None:
    """From now on this thread, and all that it starts, writes no file outside `folder` and opens no socket, as far as the kernel
    can hold it to that; for good. /dev/null stays writable.
    """
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    if version := _landlock_version():
        _restrict_files(folder, version)
    if _filters():
        _filter_calls(*_MACHINES[platform.machine()])


def lacking() -> list[str]:
    """What `confine` cannot take away on this machine, in words; empty on a recent kernel."""
    found, version = [], _landlock_version()
    if not version:
        found.append("writing files (no Landlock: Linux 5.13 or newer, switched on)")
    elif version < 3:
        found.append("cutting files short (Landlock of Linux 6.2 or newer)")
    if version < _SCOPE_VERSION:
        found.append("ending other processes of this user (Landlock of Linux 6.12 or newer)")
    if not _filters():
        found.append(f"opening sockets (no seccomp, or none for the machine {platform.machine()})")
    return found


def _filters() -> bool:
    """Whether there is a filter for this machine and a kernel that takes one: it then complains of the program's place alone."""
    _libc.prctl(_SET_SECCOMP, _FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT and platform.machine() in _MACHINES


def _landlock_version() -> int:
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _ASK_VERSION))


def _restrict_files(folder: Path, version: int) -> None:
    rights = sum(1 << bit for since, bits in _FILE_RIGHTS.items() if since <= version for bit in bits)
    rules = _Rules(rights, _NETWORK if version >= _NETWORK_VERSION else 0, _SCOPE if version >= _SCOPE_VERSION else 0)
    size = 24 if version >= _SCOPE_VERSION else 16 if version >= _NETWORK_VERSION else 8
    handle = _checked(_libc.syscall(_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(size), 0))
    try:
        for place, granted in ((folder, rights), (Path(os.devnull), rights & _OF_A_FILE)):
            opened = os.open(place, os.O_PATH | os.O_CLOEXEC)
            try:
                rule = _Beneath(granted, opened)
                _checked(_libc.syscall(_ADD_RULE, handle, _PATH_BENEATH, ctypes.byref(rule), 0))
            finally:
                os.close(opened)
        _checked(_libc.syscall(_RESTRICT_SELF, handle, 0))
    finally:
        os.close(handle)


def _filter_calls(machine: int, refused: tuple[int, ...]) -> None:
    numbers = refused + _EVERYWHERE
    steps = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_IF_EQUAL, 1, 0, machine),
        (_RETURN, 0, 0, _REFUSE),  # the calls of another machine have other numbers
        (_LOAD, 0, 0, _NUMBER_AT),
        (_IF_AT_LEAST, len(numbers) + 1, 0, _X32),
        *((_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    instructions = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    _checked(_libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(_Program(len(steps), instructions)), 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
