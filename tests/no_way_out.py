"""Run a command where no packet can leave, and write down where to each one wanted.

    unshare --net --mount python tests/no_way_out.py FILE COMMAND ...

The only way out of the new network is a tunnel whose other end is this process, which reads what comes and answers nothing.
Loopback works. Names are asked of a server beyond the tunnel, so that a look-up is seen as well. FILE gets a JSON list.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

_TUNSETIFF, _TUN, _NO_PACKET_INFORMATION = 0x400454CA, 0x0001, 0x1000


def main() -> int:
    """Set up the network, run the command, write the list; the command's exit code."""
    file, command = sys.argv[1], sys.argv[2:]
    wanted: list[str] = []
    threading.Thread(target=_read, args=(_tunnel(), wanted), daemon=True).start()
    _ask_beyond_the_tunnel()
    # Whoever gives up waiting for this process must not leave the command behind.
    code = subprocess.run(command, check=False, preexec_fn=_end_with_me).returncode
    Path(file).write_text(json.dumps(wanted + _to_version_6()), encoding="utf-8")
    return code


def _end_with_me() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _tunnel() -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(handle, _TUNSETIFF, struct.pack("16sH", b"out", _TUN | _NO_PACKET_INFORMATION))
    # The kernel would say good day to its neighbours by itself.
    Path("/proc/sys/net/ipv6/conf/out/disable_ipv6").write_text("1", encoding="ascii")
    for words in (
        "link set lo up",
        "address add 192.0.2.1/24 dev out",
        "link set out up",
        "route add default via 192.0.2.2 dev out",
    ):
        subprocess.run(["ip", *words.split()], check=True)
    return handle


def _ask_beyond_the_tunnel() -> None:
    with tempfile.NamedTemporaryFile("w", delete=False) as resolver:
        resolver.write("nameserver 192.0.2.53\noptions timeout:1 attempts:1\n")
    Path(resolver.name).chmod(0o644)
    subprocess.run(["mount", "--bind", resolver.name, "/etc/resolv.conf"], check=True)


def _read(handle: int, wanted: list[str]) -> None:
    while True:
        wanted.append(destination(os.read(handle, 65_536)))


def destination(packet: bytes) -> str:
    """Where an IPv4 packet wants to go, as ADDRESS:PORT, with the name that a DNS query asks for."""
    length, protocol = (packet[0] & 15) * 4, packet[9]
    where = socket.inet_ntoa(packet[16:20])
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return f"{where} protocol {protocol}"
    port = int.from_bytes(packet[length + 2 : length + 4], "big")
    if (protocol, port) == (socket.IPPROTO_UDP, 53):
        return f"{where}:53 asks for {_name(packet[length + 20 :])}"
    return f"{where}:{port}"


def _name(question: bytes) -> str:
    parts = []
    while question and question[0]:
        parts.append(question[1 : question[0] + 1].decode(errors="replace"))
        question = question[question[0] + 1 :]
    return ".".join(parts)


def _to_version_6() -> list[str]:
    """IPv6 has no way at all: the kernel counts what found none."""
    lines = Path("/proc/net/snmp6").read_text(encoding="ascii").splitlines()
    lost = next(int(line.split()[1]) for line in lines if line.startswith("Ip6OutNoRoutes"))
    return [f"{lost} packets to IPv6"] if lost else []


if __name__ == "__main__":
    sys.exit(main())
