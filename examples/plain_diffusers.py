"""A bundle without lorabake: an ordinary LoRA for diffusers, and what its manifest tells.

    python plain_diffusers.py bundle.safetensors my-model -o out.png

The picture is that of the direct merge (of ZipLoRA and B-LoRA: the exact result). To replay a plan,
see vendored_runtime.py or app_snippet.py.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

RULES = {
    "gates": "apply both LoRAs all the time",
    "scores": "switch from one LoRA to the other, at a progress of their own",
    "select": "choose one of the LoRAs by a table over progress",
    "live": "choose while the image is made",
}


def manifest(path: str) -> dict[str, Any]:
    """All that is in a bundle beside tensors: JSON under one key of the file's metadata."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "lorabake" not in metadata:
        raise SystemExit(f"{path} is no bundle: its metadata has no key `lorabake`")
    return json.loads(metadata["lorabake"])


def described(of: dict[str, Any]) -> str:
    """The manifest in a few lines."""
    lines = [f"{of['method']} for {of['family']}, base model {of['base'] or 'not named'}"]
    for source in of["sources"]:
        words = ", ".join(source["trigger_words"]) or "none"
        lines.append(f"{source['role']}: {source['name']}; trigger words: {words}")
    counts = Counter(rule for layer in of["layers"] for rule in RULES if rule in layer)
    return "\n".join([*lines, *(f"{n} layers {RULES[rule]}" for rule, n in counts.items())])


def main(arguments: list[str] | None = None) -> None:
    """Print what the manifest says, and paint with the file as with any LoRA."""
    parser = argparse.ArgumentParser(description="Use a lorabake bundle as an ordinary LoRA.")
    parser.add_argument("bundle")
    parser.add_argument("base", help="folder or hub id of the base model")
    parser.add_argument("--prompt", help="the trigger words if not given")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    of = manifest(given.bundle)
    print(described(of))
    prompt = given.prompt or ", ".join(
        word for source in of["sources"] for word in source["trigger_words"]
    )
    pipe = DiffusionPipeline.from_pretrained(given.base)
    pipe.load_lora_weights(given.bundle)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(given.seed)
    image = pipe(prompt, num_inference_steps=given.steps, generator=generator).images[0]
    image.save(given.output)


if __name__ == "__main__":
    main()
