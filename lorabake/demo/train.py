"""Make the toy model again: ``python -m lorabake.demo.train STAGE``.

The stages, in order: vae, decoder, base, ship, loras, scorer, encoders.

Intermediate files and checkpoints go to the folder named by ``LORABAKE_TOY`` (default
``toy-training``); a stage that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from . import loras, ship, train_base, train_encoders, train_scorer, train_vae

HERE = Path(__file__).parent
VAE_PICTURES, BASE_PICTURES, BASE_STEPS = 3_000, 7_000, 7_000


def main(stage: str, *names: str) -> None:
    """Run one stage; ``loras`` and ``encoders`` take the names to train, all by default."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work = Path(os.environ.get("LORABAKE_TOY", "toy-training"))
    work.mkdir(parents=True, exist_ok=True)
    if stage == "vae":
        train_vae.train(work, VAE_PICTURES)
    elif stage == "decoder":
        train_vae.refine(work, BASE_PICTURES)
    elif stage == "base":
        train_base.train(work, BASE_PICTURES, BASE_STEPS)
    elif stage == "ship":
        ship.pack(work, HERE / "model")
    elif stage == "scorer":
        train_scorer.train(work, HERE / "scorer.safetensors")
    elif stage == "loras":
        (HERE / "loras").mkdir(exist_ok=True)
        for recipe in loras.RECIPES:
            if not names or recipe.word in names:
                loras.train(recipe, HERE / "model", HERE / "loras" / f"{recipe.word}.safetensors")
    elif stage == "encoders":
        for name in names or ("clip", "dino"):
            train_encoders.train(work, HERE / "model" / "vae", HERE / "encoders" / name, name)
    else:
        sys.exit(f"no stage {stage!r}: vae, decoder, base, ship, loras, scorer or encoders")


if __name__ == "__main__":
    main(*sys.argv[1:])
