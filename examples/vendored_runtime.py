"""An app that replays bundles and needs no lorabake: it ships a copy of lorabake/runtime.

    mkdir painter
    cp -r lorabake/runtime painter/runtime
    cp examples/vendored_runtime.py painter/__main__.py
    python -m painter bundle.safetensors my-model --prompt "a fox in ink style" -o out.png

The copy may have any name and place. It imports torch, safetensors and the standard library; keep
LICENSE (Apache-2.0) beside it.
"""

from __future__ import annotations

import argparse
import sys

import torch
from diffusers import DiffusionPipeline

from .runtime import AttachError, BundleError, read


def main(arguments: list[str] | None = None) -> int:
    """Paint one picture; 0 if that worked."""
    parser = argparse.ArgumentParser(description="Paint with a lorabake bundle.")
    parser.add_argument("bundle")
    parser.add_argument("base", help="folder or hub id of the base model")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        bundle = read(given.bundle, verify=True)
        pipe = DiffusionPipeline.from_pretrained(given.base)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        generator = torch.Generator().manual_seed(given.seed)
        with bundle.attach(pipe) as replay:
            result = pipe(given.prompt, num_inference_steps=given.steps, generator=generator)
            print(replay)
    except (BundleError, AttachError) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    result.images[0].save(given.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
