"""What a sandboxed process may not ask of the kernel, as a program for its filter. Pure.

Namespaces hide things; they do not limit how many processes there are, or memory that no process
owns. So there are no processes or threads to be had, no shared memory and no sockets, and none of
the calls that most holes of the kernel were found behind (linux/audit.h, linux/filter.h).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

_LOAD_WORD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL_PROCESS, _NOT_PERMITTED = 0x7FFF0000, 0x80000000, 0x00050001
_NUMBER_AT, _MACHINE_AT = 0, 4
_X32_BIT = 0x40000000

# Numbers that all machines have in common, since Linux 5.
_COMMON = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442, "memfd_secret": 447,
}  # fmt: skip


@dataclass(frozen=True)
class _Machine:
    audit_number: int
    denied: Mapping[str, int]
    has_x32: bool = False


_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        {
            "clone": 56, "fork": 57, "vfork": 58, "socket": 41, "socketpair": 53, "shmget": 29,
            "shmat": 30, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319,
            "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
            "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155,
            "chroot": 161, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250,
            "add_key": 248, "request_key": 249, "name_to_handle_at": 303,
            "open_by_handle_at": 304, "init_module": 175, "finit_module": 313,
            "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320, "personality": 135,
            "quotactl": 179, "swapon": 167, "reboot": 169, "syslog": 103, "acct": 163,
            "vmsplice": 278,
        },
        has_x32=True,
    ),
    "aarch64": _Machine(
        0xC00000B7,
        {
            "clone": 220, "socket": 198, "socketpair": 199, "shmget": 194, "shmat": 196,
            "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279, "ptrace": 117,
            "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "unshare": 97,
            "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51, "bpf": 280,
            "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217,
            "request_key": 218, "name_to_handle_at": 264, "open_by_handle_at": 265,
            "init_module": 105, "finit_module": 273, "delete_module": 106, "kexec_load": 104,
            "kexec_file_load": 294, "personality": 92, "quotactl": 60, "swapon": 224,
            "reboot": 142, "syslog": 116, "acct": 89, "vmsplice": 75,
        },
    ),
}  # fmt: skip
KNOWN_MACHINES = tuple(_MACHINES)


def filter_program(machine: str) -> bytes:
    """Return the filter for a machine (`platform.machine()`): bytes of `struct sock_filter`.

    Raises:
        KeyError: there is none for this machine.
    """
    of = _MACHINES[machine]
    numbers = sorted({*of.denied.values(), *_COMMON.values()})
    guards = [_step(_IF_AT_LEAST, _X32_BIT, len(numbers) + 2, 0)] if of.has_x32 else []
    checks = [
        _step(_IF_EQUAL, number, len(numbers) - place, 0) for place, number in enumerate(numbers)
    ]
    return b"".join([
        _step(_LOAD_WORD, _MACHINE_AT),
        _step(_IF_EQUAL, of.audit_number, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD_WORD, _NUMBER_AT),
        *guards,
        *checks,
        _step(_RETURN, _ALLOW),
        _step(_RETURN, _NOT_PERMITTED),
        _step(_RETURN, _KILL_PROCESS),
    ])  # fmt: skip


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
