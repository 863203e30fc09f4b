"""The command line: one file per command, each parses, calls and prints.

Commands import the library inside their bodies, so that `lorabake --help` waits for click alone.
"""

from __future__ import annotations

import click

from .bench import bench
from .compare import compare
from .demo import demo
from .evaluate import evaluate
from .export import export
from .frame import Frame
from .generate import generate
from .inspect import inspect
from .make import make
from .plot import plot
from .presets import presets
from .push import push
from .record import record
from .verify import verify


@click.group(cls=Frame, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lorabake", message="lorabake %(version)s")
def cli() -> None:
    """Bake a content LoRA and a style LoRA into one file that carries its own fusion plan."""


for command in (
    make, inspect, plot, generate, compare, evaluate, record, bench, verify, export, push,
    presets, demo,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit with its status."""
    cli()
