"""How numbers are kept and kernels chosen: bf16 autocast, fused optimisers, `torch.compile`, and steps that never wait.

Our decision throughout: weights, gradients, features, heads and losses stay float32; only the backbone's forward and
backward pass may run in bfloat16. Nothing here changes a bit of a float32 run on a CPU. On a GPU the attention's
backward pass adds in no fixed order (remembered): runs agree closely there, and bit for bit only on a CPU.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from cilkit.errors import UserError

if TYPE_CHECKING:
    import torch

    from cilkit.backbones import Backbone

T = TypeVar("T")
PRECISIONS = ("float32", "bf16")


def check(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")


def prepare(backbone: Backbone, precision: str = "float32", compile: bool = False) -> Backbone:
    """The backbone itself, told how to run.

    precision: "bf16" runs its forward pass under autocast, on a CPU too; its features come out float32.
    compile:   `torch.compile`, block by block where it is a transformer: equal blocks are compiled once, and once more
               with what hooks in later (LoRA, prompts). The first steps take longer; rounding differs; its names in
               state_dict, and copies of it, stay as they are.
    UserError for an unknown precision, and where the GPU has no bfloat16 of its own.
    """
    import torch

    check(precision)
    wanted = precision == "bf16" and backbone.device.type == "cuda"
    if wanted and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(backbone.device)
        raise UserError(f"{name} does not compute in bfloat16; set precision to 'float32'")
    backbone.precision = precision
    if compile:
        # Else dynamo keeps what it compiled when LoRA, adapters or prompts hook in later, and leaves them out silently.
        import torch._dynamo

        torch._dynamo.config.skip_nnmodule_hook_guards = False
        for part in backbone.blocks or [backbone.model]:
            part.compile()
    return backbone


def keep_freed_memory() -> None:
    """glibc gives large freed blocks back to the system and has them zeroed again, step after step: a sixth of a
    ResNet-32's pass over 64 images of 32 x 32 on a CPU (measured). From here on this process keeps up to 1 GiB for its
    next blocks. No bit changes; elsewhere nothing happens."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(threshold, 1 << 30)


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context of a forward pass; the caller turns what comes out of it into float32."""
    if precision == "float32":
        return nullcontext()
    import torch

    return torch.autocast(device.type, torch.bfloat16)


def sgd(groups: Any, device: torch.device, **settings: Any) -> torch.optim.Optimizer:
    """`torch.optim.SGD`, in one kernel on a GPU."""
    return _optimiser("SGD", groups, device, settings)


def adam(groups: Any, device: torch.device, **settings: Any) -> torch.optim.Optimizer:
    """`torch.optim.Adam`, in one kernel on a GPU."""
    return _optimiser("Adam", groups, device, settings)


def adamw(groups: Any, device: torch.device, **settings: Any) -> torch.optim.Optimizer:
    """`torch.optim.AdamW`, in one kernel on a GPU."""
    return _optimiser("AdamW", groups, device, settings)


def _optimiser(name: str, groups: Any, device: torch.device, settings: dict[str, Any]) -> torch.optim.Optimizer:
    import torch

    fused = True if torch.device(device).type == "cuda" else None  # None: torch's own choice, whose bits stay
    return getattr(torch.optim, name)(groups, fused=fused, **settings)


def on_own_stream(prepare: Callable[..., T], device: torch.device) -> Callable[..., T]:
    """`prepare`, which makes a tensor or an object with tensors, on a stream of its own where the device is a GPU.

    Its copies to the GPU wait for the work queued before them. Beside the steps, not behind them, that is almost
    nothing, and the next batch is ready when a step ends. What comes out is complete: any stream may use it.
    """
    import torch

    if torch.device(device).type != "cuda":
        return prepare
    own, main = torch.cuda.Stream(device), torch.cuda.default_stream(device)

    def prepared(*arguments: Any, **named: Any) -> T:
        with torch.cuda.stream(own):
            made = prepare(*arguments, **named)
        own.synchronize()
        for value in (made,) if isinstance(made, torch.Tensor) else vars(made).values():
            if isinstance(value, torch.Tensor):
                value.record_stream(main)  # else its memory could be given away while queued steps still read it
        return made

    return prepared


def attention_without_sdpa(model: torch.nn.Module) -> list[str]:
    """Attention layers of timm's that do not use F.scaled_dot_product_attention, by name; expected to be none."""
    return [name for name, module in model.named_modules() if not getattr(module, "fused_attn", True)]


@contextmanager
def no_waiting(device: torch.device | str = "cpu") -> Iterator[None]:
    """Inside, RuntimeError for whatever makes, or on a GPU would make, the program wait for the device: `.item()`,
    `float(tensor)`, `if tensor`, indexing by a mask, `nonzero`, and on a GPU also copies to the host.

    For tests and measurements. Without a GPU it sees operators only: `.cpu()` and `.numpy()` pass unnoticed.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    waiting = {f"aten.{name}" for name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")}
    by_mask = {"aten.index", "aten.index_put", "aten.index_put_", "aten._unsafe_index", "aten._index_put_impl_"}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            name = str(operator.overloadpacket)
            masked = name in by_mask and any(
                one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
            )
            if name in waiting or masked:
                raise RuntimeError(f"{name}{' by a mask' if masked else ''} waits for the device")
            return operator(*args, **(kwargs or {}))

    gpu = torch.device(device).type == "cuda"
    before = torch.cuda.get_sync_debug_mode() if gpu else 0
    try:
        if gpu:
            torch.cuda.set_sync_debug_mode("error")
        with Watch():
            yield
    finally:
        if gpu:
            torch.cuda.set_sync_debug_mode(before)
