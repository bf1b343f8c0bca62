"""Where training runs: one CPU, one GPU, or several processes that torchrun starts.

machine = Machine.here()
x = torch.zeros(3, device=machine.device, dtype=machine.dtype)
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from compile.errors import CompileError
from edge_llm.cpu import host

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's mallopt
CPU_TEXTS, GPU_TEXTS = 64, 2048  # written at once: one pass over the weights serves them all
TEXTS_SHARE = 0.25  # of a GPU's free memory, for their keys and values
FAST_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # CPUs on which it halves a product's time


@dataclass(frozen=True)
class Machine:
    """A process's share of the machine.

    Attributes:
        device: of all tensors.
        dtype: of products: bfloat16 where that is fast.
        rank, processes: which of how many processes this is.
    """

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    processes: int = 1

    @classmethod
    def here(cls) -> Machine:
        """This process's, joined with the others if torchrun started it.

        CompileError where torchrun has started more than there are GPUs.
        """
        rank, processes, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
        cuda = torch.cuda.is_available()
        if cuda and local >= (there := torch.cuda.device_count()):
            raise CompileError(
                f"process {local + 1} on a machine with {there} GPUs: give torchrun "
                f"--nproc-per-node={there}"
            )
        if processes > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if cuda else "gloo")
        if cuda:
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
            # cuDNN plans anew for every length that a cache grows to, which takes a step's time
            torch.backends.cuda.enable_cudnn_sdp(False)
            return cls(device, torch.bfloat16, rank, processes)
        keep_memory()
        fast = bool(FAST_BFLOAT16 & set(host().features))
        return cls(torch.device("cpu"), torch.bfloat16 if fast else torch.float32, rank, processes)

    def texts(self, cache_bytes: int) -> int:
        """How many texts are written at once, if each takes so much for its keys and values.

        A power of two, so that other programs' small use of the GPU does not change a sample.
        """
        if self.device.type != "cuda":
            return CPU_TEXTS
        free, _ = torch.cuda.mem_get_info(self.device)
        fit = max(1, int(free * TEXTS_SHARE) // cache_bytes)
        return min(GPU_TEXTS, 1 << (fit.bit_length() - 1))

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.processes == 1:
            return
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= self.processes

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number; none goes on before all have asked."""
        mean = torch.tensor(float(number), dtype=torch.float64, device=self.device)
        self.average([mean])
        return float(mean) == number

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """As if one process had seen every process's share of the batch."""
        self.average(p.grad for p in parameters if p.grad is not None)


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """CompileError where memory ends within the block: ``what`` is there too much of."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise CompileError(f"there is no memory for {what}") from None


def keep_memory() -> None:
    """Let glibc keep what is freed: every step needs as much again, and fresh pages are cleared.

    That takes a quarter of a step on a CPU. Without glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
