"""Reads 10,000 damaged LoRA files, in a process of its own that may use little memory.

    python -m tests.lora.mutations [COUNT]

Whatever is read must be read or refused with a `LorabakeError`. The process may take no more memory
than it has after its imports, plus 200 MB and one and a half times the largest file; an allocation
beyond that fails here as a `MemoryError` would for a user.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorabake.errors import LorabakeError
from lorabake.lora import read

LAYOUTS = Path(__file__).with_name("layouts")
LARGEST = 1 << 18
"""Bytes of the largest file that is written here."""
SEEDS = 5
"""Files for each of hypothesis' examples, which take longer to find than a file to read."""

Tensors = dict[str, Tensor]
_ENDINGS = (
    "lora_A.weight", "lora_B.weight", "lora_A.default.weight", "lora_down.weight", "lora_up.weight",
    "lora_mid.weight", "alpha", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1",
    "hada_t2", "lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "diff", "diff_b", "dora_scale", "lora.down.weight", "lora.up.weight", "weight", "", "ünì",
)  # fmt: skip
_STARTS = (
    "", "lora_unet_", "lora_te1_", "lora_transformer_", "lycoris_", "diffusion_model.", "unet.",
    "transformer.", "base_model.model.", "text_encoder.", "text_encoders.clip_l.transformer.",
)  # fmt: skip
_DTYPES = (
    torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool,
    torch.uint8, torch.float8_e4m3fn, torch.complex64,
)  # fmt: skip
_CODES = {
    torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64",
    torch.int8: "I8", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8",
    torch.float8_e4m3fn: "F8_E4M3", torch.complex64: "C64",
}  # fmt: skip
_NUMBERS = (0.0, -1.0, float("nan"), float("inf"), 1e38, 65504.0, 1e-45)
_METADATA = (
    {"lora_adapter_metadata": "{"},
    {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": "x"})},
    {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 1e400})},
    {"lora_adapter_metadata": json.dumps({"lora_alpha": 2, "alpha_pattern": {"(": 3}})},
    {"ss_tag_frequency": "[" * 5000},
    {"modelspec.trigger_phrase": "\x00" * 50, "ss_base_model_version": "sdxl flux1 sd_v1"},
)


def small(name: str) -> Tensors:
    """A few modules of a layout, its numbers in braces cut to the first ones, its widths shrunk."""
    table = json.loads(Path(LAYOUTS, f"{name}.json").read_text(encoding="utf-8"))
    tensors: Tensors = {}
    for row, shape in table["tensors"].items():
        key = row
        while "{" in key:
            start, end = key.index("{"), key.index("}")
            first = key[start + 1 : end].replace("-", ",").split(",")[0]
            key = key[:start] + first + key[end + 1 :]
        sizes = [max(2, size // 512) if size > 64 else min(size, 4) for size in shape]
        tensors[key] = torch.ones(sizes)
    return dict(list(tensors.items())[:24])


BASES = [small(path.stem) for path in sorted(LAYOUTS.glob("*.json"))]


def _drop(tensors: Tensors, key: str, chance: random.Random) -> None:
    del tensors[key]


def _rename(tensors: Tensors, key: str, chance: random.Random) -> None:
    tensor, stem = tensors.pop(key), key
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(stem) + 1)
        stem = chance.choice(
            [stem[:at] + stem[at + 1 :], stem[:at] + chance.choice("._0q/é") + stem[at:]]
        )
    tensors[stem] = tensor


def _restyle(tensors: Tensors, key: str, chance: random.Random) -> None:
    module = key.removesuffix(".weight").rpartition(".")[0]
    ending = chance.choice(_ENDINGS)
    tensors[f"{chance.choice(_STARTS)}{module}.{ending}"] = tensors.pop(key)


def _add(tensors: Tensors, key: str, chance: random.Random) -> None:
    module = key.removesuffix(".weight").rpartition(".")[0]
    for ending in chance.sample(_ENDINGS, chance.randint(1, 4)):
        tensors[f"{module}.{ending}"] = torch.ones(
            chance.choices(range(1, 6), k=chance.randint(0, 4))
        )


def _rekind(tensors: Tensors, key: str, chance: random.Random) -> None:
    """Another kind of adapter in the place of a layer, of sizes that may go far when multiplied."""
    module = key.removesuffix(".weight").rpartition(".")[0]
    for one in [k for k in tensors if k.startswith(f"{module}.")]:
        del tensors[one]
    kinds = (
        "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        "lokr_w1 lokr_w2",
        "lokr_w1 lokr_w2_a lokr_w2_b",
        "diff",
    )
    rank = chance.choice((1, 2, 50))
    for ending in chance.choice(kinds).split():
        wide = chance.choice((1, 3, 100))
        shape = (wide, rank) if ending.endswith("_a") else (rank, wide)
        tensors[f"{module}.{ending}"] = torch.ones(shape if ending[-1] in "ab" else (wide, 100))


def _reshape(tensors: Tensors, key: str, chance: random.Random) -> None:
    sizes = chance.choices((0, 1, 2, 3, 4, 6, 8), k=chance.randint(0, 5))
    tensors[key] = torch.ones(sizes)


def _turn(tensors: Tensors, key: str, chance: random.Random) -> None:
    tensors[key] = tensors[key].flatten(1).T.contiguous() if tensors[key].ndim > 1 else tensors[key]


def _retype(tensors: Tensors, key: str, chance: random.Random) -> None:
    if not tensors[key].is_complex():
        tensors[key] = tensors[key].to(chance.choice(_DTYPES))


def _fill(tensors: Tensors, key: str, chance: random.Random) -> None:
    if tensors[key].is_floating_point() and tensors[key].itemsize > 1:
        tensors[key] = torch.full_like(tensors[key], chance.choice(_NUMBERS))


def _mix(tensors: Tensors, key: str, chance: random.Random) -> None:
    other = chance.choice(BASES)
    tensors |= dict(chance.sample(list(other.items()), min(4, len(other))))


CHANGES: list[Callable[[Tensors, str, random.Random], None]] = [
    _drop, _rename, _restyle, _add, _rekind, _reshape, _turn, _retype, _fill, _mix,
]  # fmt: skip


def _file(tensors: Tensors, metadata: dict[str, str] | None) -> bytearray:
    """As safetensors writes it, which takes longer for checks that nothing here needs."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    body = bytearray()
    for key in sorted(tensors, key=lambda key: (-tensors[key].itemsize, key)):
        tensor, start = tensors[key], len(body)
        body += tensor.flatten().view(torch.uint8).numpy().tobytes()
        place = [start, len(body)]
        code, shape = _CODES[tensor.dtype], list(tensor.shape)
        header[key] = {"dtype": code, "shape": shape, "data_offsets": place}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return bytearray(len(head).to_bytes(8, "little")) + head + body


def damaged(base: int, changes: list[int], seed: int) -> bytes:
    """The bytes of a file with these changes; a third of them is damaged as bytes as well."""
    chance = random.Random(seed)
    tensors = dict(BASES[base])
    for change in changes:
        if tensors:
            CHANGES[change](tensors, chance.choice(sorted(tensors)), chance)
    data = _file(tensors, chance.choice(_METADATA) if chance.random() < 0.1 else None)
    if chance.random() < 0.3:
        head = 8 + int.from_bytes(data[:8], "little")
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(chance.choice((8, head, len(data))))] = chance.randrange(256)
        if chance.random() < 0.5:
            del data[chance.randrange(len(data)) :]
    return bytes(data)


def outcome(path: Path, svd_rank: int | None) -> str:
    """Whether the file was read or refused, in one line that starts with its path."""
    try:
        read(path, svd_rank=svd_rank)
    except LorabakeError as error:
        if "\n" in str(error) or not str(error).startswith(str(path)):
            raise AssertionError(f"no one-line message: {error!r}") from error
        return "refused"
    return "read"


def main(count: int) -> None:
    """Read them all; a traceback or a failed allocation ends the process."""
    outcomes = {"read": 0, "refused": 0}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        path = Path(folder, "lora.safetensors")

        @settings(
            max_examples=count // SEEDS, derandomize=True, database=None, deadline=None,
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        )  # fmt: skip
        @given(
            st.integers(0, len(BASES) - 1),
            st.lists(st.integers(0, len(CHANGES) - 1), max_size=3),
            st.integers(0, 2**32),
            st.sampled_from((None, 1, 4)),
        )
        def several(base: int, changes: list[int], seed: int, svd_rank: int | None) -> None:
            for each in range(seed, seed + SEEDS):
                data = damaged(base, changes, each)
                if len(data) > LARGEST:
                    raise ValueError(f"{len(data)} bytes are more than the limit is made for")
                path.write_bytes(data)
                outcomes[outcome(path, svd_rank)] += 1

        _limit_memory()
        several()
    sys.stdout.write(json.dumps(outcomes))


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 200 * 2**20 + LARGEST * 3 // 2
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
