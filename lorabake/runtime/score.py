"""The score R that refinement lowers: how unlike the two reference images a picture is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import AttachError
from .guidance import Guidance

Encoder = Callable[[Tensor], Tensor]
"""Images `[n, 3, height, width]` in [0, 1], float32 or wider → embeddings `[n, d]`.

It resizes, normalises and casts them itself.
"""


def score(images: Tensor, guidance: Guidance, encoders: Mapping[str, Encoder]) -> Tensor:
    """R = 1 − (w_1·cos(CLIP, CLIP_c) + w_2·cos(CLIP, CLIP_s) + w_3·cos(DINO, DINO_s)) / 3.

    Eq. 19 of arXiv 2602.15539, whose weights are all 1.

    Args:
        images: `[n, 3, height, width]` in [0, 1], in float32 or float64.
        guidance: Gives the embeddings of the references, and the weights.
        encoders: By the names `clip` and `dino`.

    Returns:
        One value per image, `[n]`, in the dtype of the images.

    Raises:
        AttachError: An encoder gives embeddings of another kind than the reference's.
    """
    content, style = guidance.references
    clip, dino = (embed(images, guidance, encoders, name) for name in ("clip", "dino"))
    pairs = ((clip, content.clip), (clip, style.clip), (dino, style.dino))
    found = torch.ones_like(images[:, 0, 0, 0])
    for weight, (embedding, reference) in zip(guidance.weights, pairs, strict=True):
        of = embedding.new_tensor(reference)
        found = found - weight / 3 * functional.cosine_similarity(embedding, of[None])
    return found


def embed(images: Tensor, guidance: Guidance, encoders: Mapping[str, Encoder], name: str) -> Tensor:
    """Embeddings of images by one encoder, in the images' dtype and on their device, `[n, d]`.

    Raises:
        AttachError: They have not the size of the reference's, or no gradient.
    """
    encoder, expected = encoders[name], len(getattr(guidance.references[1], name))
    found = encoder(images.to(place(encoder, images)[0]))
    if not isinstance(found, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - it is the user's
        raise AttachError(
            f"the {name} encoder gives {type(found).__name__} where a tensor of embeddings is due",
            advice="Pass one that gives [n, d] for n images, as lorabake.encoders(bundle) does",
        )
    if tuple(found.shape) != (images.shape[0], expected):
        raise AttachError(
            f"the {name} encoder gives embeddings of shape {list(found.shape)} for "
            f"{images.shape[0]} images, the bundle's references have {expected} numbers each",
            advice=f"Pass the encoder that the bundle names, {getattr(guidance, name)}, "
            "or attach with guidance=False",
        )
    if images.requires_grad and not found.requires_grad:
        raise AttachError(
            f"the {name} encoder lets no gradient through, so it cannot guide",
            advice="Pass one that does not run under torch.no_grad(), or attach with "
            "guidance=False",
        )
    return found.to(images)


def place(model: object, otherwise: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where and in what a model computes; as a tensor is, if it has no weights to tell."""
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    weight = next((w for w in weights if w.is_floating_point()), otherwise)
    # An offloaded model is not yet where it will compute.
    device = getattr(getattr(model, "_hf_hook", None), "execution_device", None)
    if device is None:
        device = otherwise.device if weight.is_meta else weight.device
    # A model of diffusers knows what it computes in, where its weights are stored as another type.
    dtype = getattr(model, "dtype", None)
    return torch.device(device), dtype if isinstance(dtype, torch.dtype) else weight.dtype
