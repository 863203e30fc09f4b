"""What a bundle says about itself to other tools: `modelspec.*` and `ss_network_dim`.

The field names are those of https://github.com/Stability-AI/ModelSpec, version 1.0.1. No date: the
same inputs give the same bytes.
"""

from __future__ import annotations

from ..runtime.manifest import Manifest


def modelspec(manifest: Manifest, architecture: str, rank: int) -> dict[str, str]:
    """Metadata for other tools.

    Args:
        manifest: Of the bundle.
        architecture: ModelSpec's name for the kind of model, for example
            `stable-diffusion-xl-v1-base/lora`.
        rank: Of the denoiser's layers in the file.
    """
    names = [source.name for source in manifest.sources]
    words = [word for source in manifest.sources for word in source.trigger_words]
    licences = sorted({source.license for source in manifest.sources if source.license})
    found = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": f"{' + '.join(names)} ({manifest.method})",
        "modelspec.description": (
            "Two LoRAs in one file, baked by lorabake. Loaders that do not know its plan apply "
            "both all the time."
        ),
        "modelspec.trigger_phrase": ", ".join(dict.fromkeys(words)),
        "modelspec.merged_from": ", ".join(names),
        "modelspec.license": ", ".join(licences),
        "ss_network_dim": str(rank),
    }
    return {key: value for key, value in found.items() if value}
