"""Ways in which honest machines compute the same stage, and cheaper ones that are not honest.

    threads 1, 2, 4     torch with so many threads
    math attention      attention from plain products and a softmax instead of the fused kernel
    numpy products      every matrix product by numpy's BLAS; SiLU and softmax rounded from float64
    short sums          every matrix product as a sum of short ones, one after the other, as small tiles add up
    float64             everything between decoding and encoding in float64: nearly exact arithmetic
    cuda                on the first GPU, where there is one

Other hardware differs in the order of sums, in its products' kernels and in its exp: each is varied here by itself. Two
machines that round as fp32 does are as far apart as the distances of both from exact arithmetic, at most. Not honest
are `tf32` and `bf16`, products whose factors are rounded first, as a GPU does when told to: the trainer never asks.

Law: a setting ends with its block; figures are the only thing that depends on it, never shapes or orders of passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from subnet.data.sampling import Batches
from subnet.model.replay import Replay
from subnet.protocol.ids import Stage
from subnet.protocol.run_spec import RunSpec

THREADS = (1, 2, 4)
TILE = 16
"""Products that are summed before the sum goes on, of `short sums`."""

Multiply = Callable[[Tensor, Tensor], Tensor]
_aten = torch.ops.aten


class Double(Replay):
    """A replay in float64; what it is given and what it says is rounded as everybody's."""

    def __init__(self, spec: RunSpec, stage: Stage, device: str, batches: Batches) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            super().__init__(spec, stage, device, batches)
        finally:
            torch.set_default_dtype(before)

    def _decode(self, data: bytes | None, name: str) -> Tensor:
        return super()._decode(data, name).double()


class Setting(NamedTuple):
    """One way to compute."""

    name: str
    threads: int = 1
    multiply: Multiply | None = None
    """None: torch's own products."""
    exact_functions: bool = False
    """Whether SiLU and softmax are rounded from float64."""
    fused_attention: bool = True
    replay: type[Replay] = Replay
    device: str = "cpu"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Compute like this inside the block."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with contextlib.ExitStack() as stack:
                if not self.fused_attention:
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                if self.multiply is not None:
                    stack.enter_context(_Replaced(self.multiply, self.exact_functions))
                yield
        finally:
            torch.set_num_threads(before)


class _Replaced(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Below autograd, so forwards and backwards alike."""

    def __init__(self, multiply: Multiply, exact_functions: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._multiply, self._exact = multiply, exact_functions

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match func:
            case _aten.mm.default | _aten.bmm.default | _aten.mv.default:
                return self._multiply(*args)
            case _aten.mm.out:
                return kwargs["out"].copy_(self._multiply(*args))
            case _aten.addmm_.default:
                return args[0].add_(self._multiply(args[1], args[2]))
        if self._exact and func in _EXACT:
            outputs = func(*[one.double() if isinstance(one, Tensor) else one for one in args])
            return outputs.float()
        return func(*args, **kwargs)


_EXACT = (_aten.silu.default, _aten._softmax.default, _aten.exp.default)


def _by_numpy(a: Tensor, b: Tensor) -> Tensor:
    return torch.from_numpy(np.matmul(a.detach().numpy(), b.detach().numpy()))


def _by_tiles(a: Tensor, b: Tensor) -> Tensor:
    total = a[..., :TILE] @ (b[:TILE] if b.dim() < 3 else b[:, :TILE])
    for start in range(TILE, a.shape[-1], TILE):
        part = slice(start, start + TILE)
        total = total + a[..., part] @ (b[part] if b.dim() < 3 else b[:, part])
    return total


def _rounded(mantissa_bits: int) -> Multiply:
    """Products of factors that keep so many bits, rounded to nearest."""
    drop = 23 - mantissa_bits

    def few_bits(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int32)
        half = (1 << (drop - 1)) - 1 + ((bits >> drop) & 1)
        return (((bits + half) >> drop) << drop).view(torch.float32)

    return lambda a, b: few_bits(a) @ few_bits(b)


def honest() -> tuple[tuple[Setting, ...], tuple[Setting, ...]]:
    """Thread counts, then other arithmetic."""
    threads = tuple(Setting(f"threads {count}", threads=count) for count in THREADS)
    others = [
        Setting("math attention", fused_attention=False),
        Setting("numpy products", multiply=_by_numpy, exact_functions=True, fused_attention=False),
        Setting("short sums", multiply=_by_tiles, fused_attention=False),
        Setting("float64", replay=Double),
    ]
    if torch.cuda.is_available():
        others.append(Setting("cuda", device="cuda"))
    return threads, tuple(others)


CHEAPER = (Setting("tf32", multiply=_rounded(10)), Setting("bf16", multiply=_rounded(7)))


def threads_take_effect() -> tuple[bool, bool]:
    """Whether a sum over many values, and whether a large product, differ between one thread and the most."""
    drawn = np.random.default_rng(0)
    values_N = torch.from_numpy(drawn.standard_normal(1_000_000, np.float32))
    long_NK, long_KN = (
        torch.from_numpy(drawn.standard_normal(shape, np.float32)) for shape in [(64, 4096), (4096, 64)]
    )
    sums, products = [], []
    for count in (THREADS[0], THREADS[-1]):
        with Setting("", threads=count).applied():
            sums.append(float(values_N.sum()))
            products.append(long_NK @ long_KN)
    return sums[0] != sums[1], not torch.equal(*products)
