"""Registration of the ops with `torch.library`, so that autograd, `torch.compile` and every device know them.

`define`/`impl` instead of `torch.library.custom_op`: a call through the former costs about a third.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jointmae.ops import native

library = torch.library.Library("jointmae", "DEF")
cuda_implementations: dict[str, Callable[..., Any]] = {}  # by op, also where there is no GPU: tests run them on a CPU


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> None:
    """Registers `torch.ops.jointmae.<name>` for `schema`, "name(Tensor points, ...) -> ...".

    `cpu` and `cuda` call the compiled module and are used where it has kernels for the device; everywhere else
    `reference` is, with a warning. `fake` gives the outputs' shapes for tracing. Arguments have passed the checks of
    the public function. `backward(ctx, *grads)` and `setup_context(ctx, inputs, output)` are the gradient, if it has
    one; they call other registered ops, never the compiled module.
    """
    name = schema[: schema.index("(")]

    def on_any_device(*args: Any) -> Any:
        native.warn_reference(_device_of(args).type)
        return reference(*args)

    def on_cuda(*args: Any) -> Any:
        assert cuda is not None
        device = _device_of(args)
        if not native.serves(device.index):
            return on_any_device(*args)
        if device.index == torch.cuda.current_device():
            return cuda(*args)
        with torch.cuda.device(device):  # kernels are launched on the current one
            return cuda(*args)

    library.define(schema)
    library.impl(name, on_any_device, "CompositeExplicitAutograd")
    if native.kernels is not None:
        library.impl(name, cpu, "CPU")
    if cuda is not None:
        cuda_implementations[name] = cuda
        if native.cuda is not None:
            library.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"jointmae::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(f"jointmae::{name}", backward, setup_context=setup_context, lib=library)


def _device_of(args: tuple[Any, ...]) -> torch.device:
    return next(arg for arg in args if isinstance(arg, Tensor)).device
