"""Make the emoji world again: `python -m benchmarks.emoji.train STAGE`.

The stages, in order: vae, decoder, base, ship, loras, fewstep, scorer, encoders, truths. Drawings
are fetched from the npm registry and rendered with resvg (`pip install resvg-py`). Intermediate
files go to `--work`; a stage that was interrupted goes on from its last checkpoint.

Another subject or style, trained and judged with the same recipe:

    python -m benchmarks.emoji.train loras --out mine --subject snail=animal --style mine=openmoji
    python -m benchmarks.emoji.train scorer --out mine --subject snail=animal --style mine=openmoji
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from . import loras, ship, train_base, train_encoders, train_fewstep, train_scorer, train_vae
from .data import Drawings
from .things import SHIPPED
from .world import NEW_STYLES, STYLE_WORDS, SUBJECTS

HERE = Path(__file__).parent
MODEL = HERE / "model"
BASE_STEPS = 12_000
FREE_WORD = "xjy"
"""The trigger of a style that is not of the world: a word of the tokenizer without a meaning."""


def parser() -> argparse.ArgumentParser:
    """What the command understands."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.emoji.train", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("stage", choices=[*STAGES])
    parser.add_argument("--work", type=Path, default=Path("world-training"))
    parser.add_argument("--sources", type=Path, help="folder of the sets (default: WORK/sources)")
    parser.add_argument("--out", type=Path, default=HERE, help="where LoRAs and scorer are written")
    parser.add_argument("--subject", action="append", default=[], metavar="THING=KIND")
    parser.add_argument("--style", action="append", default=[], metavar="NAME=SET")
    parser.add_argument("--pictures", type=int, default=0, help="how many a LoRA is shown")
    parser.add_argument("--seed", type=int, default=5, help="of the LoRAs' training")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def _named(given: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (name, sign, value) in zip(given, pairs, strict=True)
                 if not (name and sign and value)]:  # fmt: skip
        sys.exit(f"{wrong[0]!r} is not NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _drawings(options: argparse.Namespace) -> Drawings:
    return Drawings.of(options.sources or options.work / "sources", _named(options.style))


def _vae(options: argparse.Namespace) -> None:
    train_vae.train(options.work, _drawings(options))


def _decoder(options: argparse.Namespace) -> None:
    train_vae.refine(options.work, _drawings(options))


def _base(options: argparse.Namespace) -> None:
    vae = AutoencoderKL.from_pretrained(options.work / "vae").eval()
    train_base.train(options.work, _drawings(options), vae, BASE_STEPS)


def _loras(options: argparse.Namespace) -> None:
    """Fragile and robust ones of what is named, by default of all that ships."""
    drawings, folder = _drawings(options), options.out / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    subjects, styles = _named(options.subject), _named(options.style)
    if not subjects and not styles:
        subjects, styles = {name: SUBJECTS[name] for name in SHIPPED}, NEW_STYLES
    wanted = [(name, "", kind) for name, kind in subjects.items()]
    wanted += [(name, STYLE_WORDS.get(name, FREE_WORD), "") for name in styles]
    for robust in (True, False):
        for name, trigger, kind in wanted:
            path = folder / f"{name}-{'robust' if robust else 'fragile'}.safetensors"
            if not path.exists():
                recipe = loras.recipe(
                    name, robust=robust, trigger=trigger, kind=kind, pictures=options.pictures
                )
                loras.train(recipe, drawings, MODEL, path, options.seed)


def _fewstep(options: argparse.Namespace) -> None:
    train_fewstep.train(MODEL, options.out / "loras" / "fewstep.safetensors")


def _scorer(options: argparse.Namespace) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").eval()
    more = tuple(name for name in _named(options.subject) if name not in SUBJECTS)
    train_scorer.train(_drawings(options), vae, more, options.out / "scorer.safetensors")


def _encoders(options: argparse.Namespace) -> None:
    train_encoders.train(options.work, _drawings(options), MODEL / "vae", options.out / "encoders")


def _truths(options: argparse.Namespace) -> None:
    subjects = {**SUBJECTS, **_named(options.subject)}
    styles = {**NEW_STYLES, **_named(options.style)}
    ship.truths(_drawings(options), [*subjects], [*styles], options.out / "truths")


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "vae": _vae,
    "decoder": _decoder,
    "base": _base,
    "ship": lambda options: ship.pack(options.work, MODEL),
    "loras": _loras,
    "fewstep": _fewstep,
    "scorer": _scorer,
    "encoders": _encoders,
    "truths": _truths,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    STAGES[options.stage](options)


if __name__ == "__main__":
    main()
