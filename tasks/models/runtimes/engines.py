"""TensorRT's engines: built from a file of ONNX once for a machine, and kept.

An engine is machine code, so it is loaded only from the folder of private.py. It holds for one kind of GPU, one version of
TensorRT and one batch size, and its name says so. The network is strongly typed: each layer computes in the type that the
graph says, which is the bundle's precision, and TensorRT chooses among kernels only. TF32, which keeps 10 bits of a float's
mantissa, is off.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.errors import ModelError
from tasks.extras import require
from tasks.models.runtimes.programs import Program, Target
from tasks.private import is_private, write_whole

log = logging.getLogger(__name__)

SCHEME = 1  # rises when the way of building changes

# A build times kernels on the device: another one beside it would be timed with it.
_BUILDING = threading.Lock()


class NoMemory(Exception):
    """The device has not enough memory for an engine of this batch size."""


@dataclass(frozen=True)
class Engine:
    """TensorRT's ICudaEngine for batches of exactly `batch` images, and the runtime that must outlive it."""

    native: Any
    runtime: Any
    batch: int


def tensorrt() -> Any:
    """TensorRT's Python module. Raises ConfigurationError, which says what to install, where it is not there."""
    return require("tensorrt", "The runtime tensorrt, which networks in ONNX take on a GPU,")


def engine_file(target: Target, batch: int, version: str) -> Path | None:
    """Where an engine is kept; None where there is no folder that is this user's alone."""
    if target.folder is None:
        return None
    return target.folder / f"{target.key(scheme=SCHEME, tensorrt=version, batch=batch)}.engine"


def open_engine(network: Path, target: Target, batch: int) -> Engine:
    """The engine for batches of exactly `batch` images, from the folder or built now.

    Raises ModelError where TensorRT does not take the network, and NoMemory.
    """
    trt = tensorrt()
    logger = collecting_logger(trt)
    runtime = trt.Runtime(logger)
    file = engine_file(target, batch, trt.__version__)
    with _BUILDING, torch.cuda.device(target.device):
        plan = kept_plan(file)
        engine = runtime.deserialize_cuda_engine(plan) if plan is not None else None
        if engine is None:
            log.info("building %s for batches of %d: once on this machine", target.identity[:16], batch)
            plan = _build(trt, logger, network, batch)
            engine = runtime.deserialize_cuda_engine(plan)
            if engine is not None and file is not None:
                _keep(file, plan)
    if engine is None:
        raise _failed(logger, network)
    return Engine(engine, runtime, batch)


def kept_plan(file: Path | None) -> bytes | None:
    """An engine that was built before, as bytes; one that others may have written is removed and not read."""
    if file is None or not file.exists():
        return None
    if not is_private(file):
        file.unlink()
        return None
    return file.read_bytes()


def _keep(file: Path, plan: bytes) -> None:
    """A disk that is full costs the next worker a build, and this one nothing."""
    try:
        write_whole(file, lambda scratch: scratch.write_bytes(plan))
    except OSError as error:
        log.warning("%s cannot be written: %s. The engine is built again next time.", file, error)


def _build(trt: Any, logger: Any, network: Path, batch: int) -> bytes:
    """Parse, and build for full batches only: a lane fills them up, and kernels for one size are the fastest."""
    builder = trt.Builder(logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse(network.read_bytes()):
        errors = [parser.get_error(number).desc() for number in range(parser.num_errors)]
        raise ModelError(
            f"TensorRT {trt.__version__} does not take {network}: {'; '.join(errors)[:500]}. Use a bundle in safetensors, which "
            "the runtime torch runs, or export the network with other operators."
        )
    pixels = definition.get_input(0)
    shape = (batch, *tuple(pixels.shape)[1:])
    profile = builder.create_optimization_profile()
    profile.set_shape(pixels.name, shape, shape, shape)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise _failed(logger, network)
    return bytes(plan)


def _failed(logger: Any, network: Path) -> Exception:
    """What TensorRT logged last, as an error: it says none itself."""
    said = "; ".join(logger.errors[-3:]) or "it says no reason"
    if "memory" in said.lower():
        return NoMemory(said)
    return ModelError(
        f"TensorRT builds no engine of {network}: {said[:500]}. Use a bundle in safetensors, which the runtime torch runs."
    )


def collecting_logger(trt: Any) -> Any:
    """A logger for TensorRT that keeps errors, for messages, and hands warnings on to ours."""

    class Collecting(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                log.debug("TensorRT: %s", message)

    return Collecting()


def engine_program(engine: Engine, device: torch.device) -> Program:
    """One context of an engine, for one lane: it reads and writes tensors of torch's, on the stream that is current.

    Raises NoMemory where the device has no room for the layers' results.
    """
    trt, native = tensorrt(), engine.native
    names = [native.get_tensor_name(number) for number in range(native.num_io_tensors)]
    (pixels,) = (name for name in names if native.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    (logits,) = (name for name in names if native.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT)
    with torch.cuda.device(device):
        context = native.create_execution_context()
        if context is None:
            raise NoMemory(f"no execution context for batches of {engine.batch}")
        context.set_input_shape(pixels, (engine.batch, *tuple(native.get_tensor_shape(pixels))[1:]))
        found = torch.empty(tuple(context.get_tensor_shape(logits)), dtype=torch.float32, device=device)
    context.set_tensor_address(logits, found.data_ptr())

    def forward(given: Tensor, _alive: Engine = engine) -> Tensor:
        context.set_tensor_address(pixels, given.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(device).cuda_stream):
            raise RuntimeError("TensorRT could not start a forward pass; its messages are in the log at level DEBUG")
        return found

    return Program("engine", forward)
