"""Many layers on few cores: one layer per core at a time, each computed by a single thread.

Layers are too small to be worth splitting among threads, and a layer that is always computed by
one thread gives the same bits on every number of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def each(
    work: Callable[[T], R],
    items: Sequence[T],
    device: torch.device,
    progress: Callable[[int, int], None],
) -> list[R]:
    """`[work(item) for item in items]`, on as many threads as torch may use.

    Args:
        work: Torch code on `device`; must not depend on other items.
        items: The work's inputs.
        device: An accelerator has one queue, so one thread feeds it.
        progress: Called as `progress(done, total)` in this thread.
    """
    results: list[R] = []
    with _single_threaded(device) as workers, ThreadPoolExecutor(workers) as pool:
        try:
            for result in pool.map(work, items):
                results.append(result)
                progress(len(results), len(items))
        except BaseException:  # Ctrl-C as well: do not finish the queue first
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


@contextmanager
def _single_threaded(device: torch.device) -> Generator[int]:
    """Plain float32 products, one thread per operation; yields how many workers to use."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield threads if device.type == "cpu" else 1
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
