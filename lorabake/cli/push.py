"""`lorabake push`: a bundle onto the Hugging Face hub."""

from __future__ import annotations

import sys

import click

from . import options
from .outcome import say


@click.command()
@click.argument("bundle")
@click.argument("repo")
@click.option(
    "--image", "images", multiple=True, metavar="FILE", help="Picture for the page; repeatable."
)
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT",
    help="What the pictures show: once for all or once for each (default: the instance prompt).",
)  # fmt: skip
@click.option(
    "--instance-prompt", metavar="TEXT",
    help="What calls both LoRAs (default: their trigger words, `subject in style`).",
)  # fmt: skip
@click.option(
    "--license", metavar="ID",
    help="Licence of the bundle (default: the stricter of the two LoRAs').",
)  # fmt: skip
@click.option("--private", is_flag=True, help="For your eyes only, if the repository is new.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to (default: the main one).")
@click.option("--create-pr", is_flag=True, help="Open a pull request.")
@click.option("--dry-run", is_flag=True, help="Only write the folder that would be pushed.")
@click.option(
    "-o", "--output", metavar="DIR", help="That folder (default: named like the repository)."
)
@options.force
@options.quiet
@options.as_json
def push(
    bundle: str,
    repo: str,
    images: tuple[str, ...],
    prompts: tuple[str, ...],
    instance_prompt: str | None,
    license: str | None,
    private: bool,
    revision: str | None,
    create_pr: bool,
    dry_run: bool,
    output: str | None,
    force: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Put BUNDLE on the Hugging Face hub as REPO (user/repo), with a model card.

    The card names the base model, both LoRAs, their licences and how to load the bundle. Log in
    with `hf auth login` before. What lorabake did not write is replaced there only with --force.
    """
    from ..bundle.push import push as pushed

    if output is not None and not dry_run:
        raise click.UsageError("-o is for --dry-run.", click.get_current_context())
    result = pushed(
        bundle, repo, images=images, prompts=prompts[0] if len(prompts) == 1 else prompts,
        instance_prompt=instance_prompt, license=license, private=private, revision=revision,
        create_pr=create_pr, folder=(output or repo.rpartition("/")[2]) if dry_run else None,
        force=force, bars=not quiet and sys.stderr.isatty(),
    )  # fmt: skip
    say(result, quiet=quiet, as_json=as_json)
