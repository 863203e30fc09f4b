"""The part of a model card that says how to load the bundle, with lorabake and without."""

from __future__ import annotations

import json

from ..runtime.manifest import Manifest
from ..runtime.plan import Constant

VIDEO = ("wan",)
"""Families whose models make videos; their names start like this."""

_APPS = ("sd15", "sd2", "sdxl", "flux")
"""Families whose bundles ComfyUI, Forge and InvokeAI all open; docs/apps.md has the others."""


def exact(manifest: Manifest) -> bool:
    """Whether a loader that knows no plan applies just what lorabake applies."""
    return ones(manifest) and manifest.guidance is None and manifest.half == "both"


def ones(manifest: Manifest) -> bool:
    """Whether every layer applies what it has, all the time and as it is."""
    return all(
        isinstance(layer.rule, Constant)
        and all(
            gate == 1 or not rank for gate, rank in zip(layer.rule.gates, layer.ranks, strict=True)
        )
        for layer in manifest.layers
    )


def howto(manifest: Manifest, repo: str, base: str | None, prompt: str | None) -> list[str]:
    """Markdown blocks with code for this bundle.

    Args:
        manifest: Of the bundle.
        repo: Where it is, `user/repo`.
        base: Base model on the hub; None if it is not known.
        prompt: What to paint; None if nothing is known.
    """
    video = manifest.family.startswith(VIDEO)
    call = f"pipe({_quoted(prompt or 'your prompt')})" + (".frames[0]" if video else ".images[0]")
    made = "video" if video else "image"
    # Not `torch_dtype` or `dtype`: no version of diffusers takes both.
    start = (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n\n"
        f"pipe = DiffusionPipeline.from_pretrained({_quoted(base or 'the base model')})\n"
        'pipe.to("cuda", torch.bfloat16)\n'
    )
    replayed = f"import lorabake\n{start}bundle = lorabake.load({_quoted(repo)})\n" + (
        f"with bundle.attach({', '.join(['pipe', *_encoders(manifest)])}):\n    {made} = {call}"
    )
    stock = f"{start}pipe.load_lora_weights({_quoted(repo)})\n{made} = {call}"
    return [
        "## With lorabake", *_live(manifest), f"```python\n{replayed}\n```",
        "## Without lorabake", _difference(manifest), f"```python\n{stock}\n```", *_apps(manifest),
    ]  # fmt: skip


def _quoted(text: str) -> str:
    """A text as a string of Python, which JSON's strings all are."""
    return json.dumps(text, ensure_ascii=False)


def _encoders(manifest: Manifest) -> list[str]:
    if manifest.guidance is None:
        return []
    return ['encoders=lorabake.encoders(bundle, device="cuda")']


def _live(manifest: Manifest) -> list[str]:
    found: list[str] = []
    if manifest.live:
        found.append(
            "The choice between the two LoRAs is made live, in each layer at each step, from the "
            "features of the image in the making. `lorabake record` turns this bundle into one "
            "with a fixed plan, which is faster."
        )
    if manifest.guidance is not None:
        found.append(
            "The latents are guided by two image encoders, CLIP and DINO, which are loaded beside "
            "the base model: if `lorabake.encoders` does not find them, give it `clip=` and "
            "`dino=`, or leave `encoders=` out and attach with `guidance=False`."
        )
    if manifest.half == "conditional":
        found.append(
            "The LoRAs act in the conditional half of classifier-free guidance alone; with "
            '`bundle.attach(pipe, half="both")` they act in both halves.'
        )
    return found


def _difference(manifest: Manifest) -> str:
    if exact(manifest):
        how = ", its trained coefficients included" if manifest.columns else ""
        return f"Any loader of LoRAs applies this file exactly as lorabake does{how}."
    lacking = ["choose between the two LoRAs"] if not ones(manifest) else []
    lacking += ["guide the latents"] if manifest.guidance is not None else []
    lacking += ["leave one half of guidance without them"] if manifest.half != "both" else []
    return (
        "To other loaders this file is an ordinary LoRA, the direct merge: they apply both LoRAs "
        f"in every layer at every step and do not {' or '.join(lacking)}, so the image is another "
        "one. If it is too much, lower the strength."
    )


def _apps(manifest: Manifest) -> list[str]:
    if manifest.family not in _APPS:
        return []
    return [
        "In ComfyUI, Forge and InvokeAI, download `pytorch_lora_weights.safetensors`, give it a "
        "name of your own and put it where the other LoRAs are (ComfyUI: `models/loras`, Forge: "
        "`models/Lora`, InvokeAI: by its model manager). What was said above holds there too."
    ]
