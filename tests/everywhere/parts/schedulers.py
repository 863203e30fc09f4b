"""Every scheduler that a pipeline may be given, made as users do: from another one's config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_heun_discrete import (
    FlowMatchHeunDiscreteScheduler,
)
from diffusers.schedulers.scheduling_flow_match_lcm import FlowMatchLCMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

Make = Callable[[], Any]

# Of StableDiffusion's model folder, which has a PNDM.
CONFIG: dict[str, Any] = dict(
    PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    ).config
) | {"clip_sample": False}
NOISES = ("beta", "exponential", "karras")
# Fewer steps raise an error in diffusers, or give an image that the model has no part in.
FEWEST = {f"DEISMultistep, {noise} sigmas": 2 for noise in NOISES} | {"PNDM, Runge-Kutta": 4}
NEEDS = {"DPMSolverSDEScheduler": "torchsde", "LMSDiscreteScheduler": "scipy"}


def ask_for(kind: Any, options: dict[str, Any]) -> None:
    """Skip the test where diffusers needs a package that is not there."""
    names = {NEEDS.get(kind.__name__), "scipy" if "use_beta_sigmas" in options else None}
    for package in sorted(filter(None, names)):
        pytest.importorskip(package, reason=f"{kind.__name__} of diffusers needs {package}")


@cache  # some take a tenth of a second
def as_configured(kind: Any, **options: Any) -> Any:
    """A scheduler for StableDiffusion."""
    ask_for(kind, options)
    return kind.from_config(CONFIG, **options)


@cache
def of_flow(kind: Any, **options: Any) -> Any:
    """A scheduler for flow matching, which has no config in common."""
    ask_for(kind, options)
    return kind(**options)


def for_noise() -> dict[str, Make]:
    """What diffusers calls compatible with StableDiffusion's, plain and with other sigmas."""
    kinds: set[Any] = {*EulerDiscreteScheduler().compatibles, LCMScheduler, TCDScheduler}
    found: dict[str, Make] = {}
    for kind in kinds:
        name: str = kind.__name__.removesuffix("Scheduler")
        found[name] = partial(as_configured, kind)
        known = inspect.signature(kind.__init__).parameters
        for noise in NOISES:
            option = f"use_{noise}_sigmas"
            # Where a package lacks, diffusers has a dummy, of which no options are known.
            if option in known or kind.__name__ in NEEDS:
                found[f"{name}, {noise} sigmas"] = partial(as_configured, kind, **{option: True})
    return found


PREDICTS_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
RUNGE_KUTTA = {"PNDM, Runge-Kutta": partial(as_configured, PNDMScheduler, skip_prk_steps=False)}
NOISE: dict[str, Make] = dict(sorted((for_noise() | RUNGE_KUTTA).items()))

EULER: dict[str, dict[str, Any]] = {
    "": {},
    ", shift": {"shift": 3.0},
    ", dynamic shift": {"use_dynamic_shifting": True},
    ", stochastic": {"stochastic_sampling": True},
} | {f", {noise} sigmas": {f"use_{noise}_sigmas": True} for noise in NOISES}
FLOW: dict[str, Make] = {
    f"FlowMatchEulerDiscrete{name}": partial(of_flow, FlowMatchEulerDiscreteScheduler, **options)
    for name, options in EULER.items()
} | {
    "FlowMatchHeunDiscrete": partial(of_flow, FlowMatchHeunDiscreteScheduler),
    "FlowMatchLCM": partial(of_flow, FlowMatchLCMScheduler),
    "UniPCMultistep, flow": partial(of_flow, UniPCMultistepScheduler, **PREDICTS_FLOW),
    "DPMSolverMultistep, flow": partial(of_flow, DPMSolverMultistepScheduler, **PREDICTS_FLOW),
}
