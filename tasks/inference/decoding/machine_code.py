"""A Python function as machine code that stays on disk, and is loaded from there without its compiler.

numba compiles a function once on a machine, in about three seconds. Asking numba for what it kept takes 0.8 s of
processor time in every process, most of it for numba itself; llvmlite alone maps the same code in 0.06 s.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks.private import is_private, private_folder, write_whole

log = logging.getLogger(__name__)

Call = Callable[..., None]

# Kinds of arguments, by numba's names.
POINTER, INTEGER, REAL = "voidptr", "int64", "float64"
_IN_C: dict[str, Any] = {POINTER: ctypes.c_void_p, INTEGER: ctypes.c_int64, REAL: ctypes.c_double}

# What numba calls to raise a Python exception. A kernel raises none and runs without an interpreter: such a call ends
# the process instead of jumping nowhere.
_DECLARED = re.compile(r"^declare (?!.*@llvm\.)(.*\))[^)\n]*$", re.MULTILINE)
_OUTSIDE = re.compile(r"= external (?:local_unnamed_addr )?global (\S+)(?:, align \d+)?$", re.MULTILINE)
_TRAP = r"define \1 {\n  call void @llvm.trap()\n  unreachable\n}"

_LOCK = threading.Lock()
_LOADED: dict[Path, Call] = {}
_ENGINES: list[Any] = []  # They own the code, so they last as long as the process.


@dataclass(frozen=True)
class Kernel:
    """A function of numbers and addresses that returns nothing and raises nothing, in Python that numba compiles.

    All of it stands in one module, but for the `constants` that it shares with its caller. The module is imported only to
    be compiled, and compiled anew when its file or a constant changes.
    """

    module: str
    function: str
    arguments: tuple[str, ...]
    constants: tuple[int, ...] = ()

    def kept(self, folder: Path) -> Call | None:
        """What this or another process has compiled on this machine; None where nobody has."""
        with _LOCK:
            file = self._file(folder)
            if file is None or (file not in _LOADED and not (file.exists() and is_private(file))):
                return None
            if file not in _LOADED:
                name, _, rest = file.read_bytes().partition(b"\n")
                digest, _, code = rest.partition(b"\n")
                if hashlib.sha256(code).hexdigest().encode() != digest:
                    log.warning("%s is damaged, and is compiled anew.", file)
                    return None
                _LOADED[file] = self._load(name.decode(), code)
            return _LOADED[file]

    def compiled(self, folder: Path) -> Call:
        """What was kept, or compiled now and kept. Other threads go on meanwhile."""
        found = self.kept(folder)
        if found is not None:
            return found
        name, code = _compile(getattr(import_module(self.module), self.function), self.arguments)
        content = b"\n".join((name.encode(), hashlib.sha256(code).hexdigest().encode(), code))
        with _LOCK:
            file = self._file(folder)
            call = self._load(name, code)
            if file is not None:
                write_whole(file, lambda scratch: scratch.write_bytes(content))
                _LOADED[file] = call
        return call

    def _file(self, folder: Path) -> Path | None:
        """Named by all that the code depends on, the processor included: homes are shared between machines."""
        import llvmlite.binding as llvm

        place = private_folder(folder, "kernels")
        if place is None:
            return None
        made_by = (version("numba"), version("llvmlite"), sys.platform, self.arguments, self.constants)
        made_for = (llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())
        sources = _source(self.module) + _source(__name__)
        key = hashlib.sha256(sources + repr((made_by, made_for)).encode()).hexdigest()
        return place / f"{self.function}-{key[:16]}.o"

    def _load(self, name: str, code: bytes) -> Call:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target(llvm))
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        _ENGINES.append(engine)
        prototype = ctypes.CFUNCTYPE(None, *(_IN_C[argument] for argument in self.arguments))
        return prototype(engine.get_function_address(name))  # ctypes gives the interpreter's lock up for the call


def _source(module: str) -> bytes:
    found = find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).read_bytes()


def _compile(function: Callable[..., None], arguments: tuple[str, ...]) -> tuple[str, bytes]:
    """The name of a C function, and an object file that holds it and wants nothing from outside but the C library."""
    import llvmlite.binding as llvm
    import numba

    # Neighbouring statements in vector registers: a third less time for pictures, and off by default.
    config: Any = numba.config
    config.SLP_VECTORIZE = 1
    callback = numba.cfunc(f"void({', '.join(arguments)})", error_model="numpy")(function)
    text = _OUTSIDE.sub(r"= global \1 zeroinitializer", _DECLARED.sub(_TRAP, callback.inspect_llvm()))
    module = llvm.parse_assembly(f"{text}\ndeclare void @llvm.trap()\n")
    module.verify()
    return callback.native_name, _target(llvm).emit_object(module)


def _target(llvm: Any) -> Any:
    target = llvm.Target.from_default_triple()
    features = llvm.get_host_cpu_features().flatten()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)
