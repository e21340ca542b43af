"""A process that decodes images which may kill it: `python -m tasks.inference.decoding.child SPEC`, SPEC in JSON.

SPEC holds the preprocessing, the folder of compiled code and the limits. On standard input each image is its length in 8
bytes and its bytes; each answer is a byte and what belongs to it: READY once, PIXELS with uint8 RGB [crop, crop, 3], or
ERROR with the length of a JSON object in 8 bytes and the object, {"reason", "message"}. It ends with its input.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tasks.errors import ImageError
from tasks.inference.decoding.policies import Decoder
from tasks.models.spec import Preprocessing

READY, PIXELS, ERROR = b"r", b"p", b"e"


def serve(spec: dict[str, Any], given: BinaryIO, answers: BinaryIO) -> None:
    """Decode what comes, one image after the other."""
    preprocessing = Preprocessing(**spec["preprocessing"])
    decoder = Decoder(preprocessing, Path(spec["compiled"]), pictures=0)
    pixels = np.empty((preprocessing.crop, preprocessing.crop, 3), np.uint8)
    limit_memory(spec["memory_bytes"])
    answers.write(READY)
    answers.flush()
    while length := given.read(8):
        data = given.read(int.from_bytes(length, "big"))
        limit_processor(spec["cpu_seconds"])
        try:
            decoder.decode(data, pixels)
        except ImageError as error:
            answers.write(_error(error.reason, str(error)))
        except MemoryError:
            most = spec["memory_bytes"] // 2**20
            answers.write(
                _error("decoder_crash", f"Decoding takes more than {most:,} MiB of memory. Scale the image down.")
            )
        else:
            answers.write(PIXELS + pixels.tobytes())
        answers.flush()


def _error(reason: str, message: str) -> bytes:
    told = json.dumps({"reason": reason, "message": message}).encode()
    return ERROR + len(told).to_bytes(8, "big") + told


def limit_memory(further: int) -> None:
    """Let this process map so many bytes more than it has by now, and leave no core file behind."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    most = pages * resource.getpagesize() + further
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_processor(seconds: int) -> None:
    """Let this process spend so many seconds more; then SIGXCPU ends it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Serve standard input. Whatever a library prints must not come between the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    serve(json.loads(sys.argv[1]), sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
