"""Runs a command and says what it cost: wall seconds, CPU seconds and peak memory of its whole tree of processes.

A tree is more than children: Ray starts daemons that leave their parent, and renames its workers, which overwrites the
environment that /proc shows. So a process belongs to the run if it carries the run's mark in its environment, or if its
parent belongs; whoever was seen once is remembered. CPU seconds are the last ones seen of every process; where all processes
were waited for, the kernel's own sum is exact and larger, and is taken instead.

Memory is PSS: what processes share is divided among them, and counts once. Reading it costs time in proportion to the memory,
so the meter pauses 50 times as long as each reading took: at most 2 % of one core, for every contestant alike.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MARK = "AFTERIMAGE_BENCHMARK_RUN"
SWEEP_SECONDS = 0.1
PAUSE = 50
LINGER_SECONDS = 30.0

_TICKS = os.sysconf("SC_CLK_TCK")
Identity = tuple[int, int]


class CommandFailed(Exception):
    """A contestant ended with an error; its last lines are in the message."""


@dataclass(frozen=True)
class Usage:
    """What a run cost. `seconds` end at its result, a JSON object on a line of its own: what a process does after that,
    such as Ray's shutdown, is not held against it."""

    seconds: float
    seconds_to_exit: float
    cpu_seconds: float
    peak_bytes: int
    processes: int
    result: dict[str, Any]
    meter_seconds: float = 0.0  # what the meter itself took of the CPU meanwhile

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s, CPU {self.cpu_seconds:.1f} s, at most {self.peak_bytes / 2**20:,.0f} MiB"


@dataclass(frozen=True)
class Seen:
    """One line of /proc/PID/stat."""

    identity: Identity
    parent: int
    cpu_seconds: float


class Tree:
    """The processes of one run, as they were seen so far."""

    def __init__(self, mark: str, root: int) -> None:
        self._mark = f"{MARK}={mark}".encode()
        first = _stat(root)
        self._begun = first.identity[1] if first is not None else 0
        self._cpu: dict[Identity, float] = {} if first is None else {first.identity: 0.0}
        self.alive: set[Identity] = set(self._cpu)

    def sweep(self) -> None:
        """Look at all processes; parents come before children, because they began before them."""
        self.alive = set()
        for seen in sorted(_processes(), key=lambda one: one.identity[1]):
            if self._belongs(seen):
                self._cpu[seen.identity] = seen.cpu_seconds
                self.alive.add(seen.identity)

    @property
    def cpu_seconds(self) -> float:
        """Of every process ever seen."""
        return sum(self._cpu.values())

    @property
    def processes(self) -> int:
        """How many were ever seen."""
        return len(self._cpu)

    def memory(self) -> int:
        """Bytes of those that live now."""
        return sum(_memory(pid) for pid, _ in self.alive)

    def _belongs(self, seen: Seen) -> bool:
        if seen.identity in self._cpu:
            return True
        if seen.identity[1] < self._begun:
            return False
        return any(pid == seen.parent for pid, _ in self.alive) or self._mark in _environment(seen.identity[0])


def run(command: Sequence[str], environment: Mapping[str, str], log: Path, timeout: float = 3600.0) -> Usage:
    """Run a command to its end, and to the end of everything that it left behind. Raises CommandFailed."""
    mark = uuid.uuid4().hex
    with open(log, "wb") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env={**environment, MARK: mark}, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        watch = _Watch(process, Tree(mark, process.pid), started)
        try:
            return watch.to_the_end(started + timeout)
        except TimeoutError:
            raise CommandFailed(f"{' '.join(command)} did not end in {timeout:.0f} s. {_tail(log)}") from None
        except CommandFailed as error:
            raise CommandFailed(f"{' '.join(command)} {error}. {_tail(log)}") from None
        finally:
            watch.end()


class _Watch:
    """Follows one process until nothing of its tree is left."""

    def __init__(self, process: subprocess.Popen[bytes], tree: Tree, started: float) -> None:
        self.process, self.tree, self.started = process, tree, started
        self.peak = 0
        self.own_seconds = time.process_time()
        self.next_reading = 0.0
        self.result: tuple[float, dict[str, Any]] | None = None
        assert process.stdout is not None
        self.reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        self.reader.start()

    def to_the_end(self, deadline: float) -> Usage:
        waited = 0.0
        while True:
            pid, status, rusage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                waited = rusage.ru_utime + rusage.ru_stime
                break
            if time.perf_counter() > deadline:
                raise TimeoutError
            self._look()
            time.sleep(SWEEP_SECONDS)
        exited = time.perf_counter() - self.started
        self._linger()
        self.reader.join(timeout=1)  # what was left behind may hold the stream open
        if self.process.returncode != 0 or self.result is None:
            raise CommandFailed(
                f"ended with {self.process.returncode}" if self.process.returncode else "gave no result"
            )
        seconds, result = self.result
        cpu = max(self.tree.cpu_seconds, waited)
        meter_seconds = time.process_time() - self.own_seconds
        return Usage(seconds, exited, cpu, self.peak, self.tree.processes, result, meter_seconds)

    def end(self) -> None:
        """Whatever of this run still lives is ended, process by process."""
        self.tree.sweep()
        for pid, begun in self.tree.alive:
            found = _stat(pid)
            if found is not None and found.identity == (pid, begun):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self.process.returncode is None:
            self.process.wait()

    def _linger(self) -> None:
        """Daemons may outlive the process that started them by some seconds."""
        deadline = time.perf_counter() + LINGER_SECONDS
        self._look()
        while self.tree.alive and time.perf_counter() < deadline:
            time.sleep(SWEEP_SECONDS)
            self._look()

    def _look(self) -> None:
        self.tree.sweep()
        now = time.perf_counter()
        if now >= self.next_reading:
            self.peak = max(self.peak, self.tree.memory())
            done = time.perf_counter()
            self.next_reading = done + PAUSE * (done - now)

    def _read(self, stream: IO[bytes]) -> None:
        for line in stream:
            if line.startswith(b"{"):
                self.result = time.perf_counter() - self.started, json.loads(line)


def _processes() -> Iterator[Seen]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            seen = _stat(int(name))
            if seen is not None:
                yield seen


def _stat(pid: int) -> Seen | None:
    """None where it has ended meanwhile. The name of a process may hold anything, so fields count from its last bracket."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in "ZX":  # ended; a container's init may never fetch it
        return None
    return Seen((pid, int(fields[19])), int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS)


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _memory(pid: int) -> int:
    """PSS; RSS where the kernel does not tell it."""
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
                if line.startswith(field):
                    return int(line.split()[1]) * 1024
    return 0


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return "Its last lines:\n" + "\n".join(lines)
