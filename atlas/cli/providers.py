"""``atlas providers``: what is configured, what answers, with which models."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import click

from atlas.cli.options import json_option
from atlas.core.registry import Registry
from atlas.providers.base import Provider
from atlas.providers.selection import (
    Choice,
    ProviderStatus,
    choose,
    inspect_provider,
    provider_registry,
)

MODELS_SHOWN = 4


@click.command()
@json_option
def providers(*, as_json: bool) -> None:
    """Show every provider: is it configured, does it answer, which models has it.

    Asks each configured provider for its models; nothing is generated and nothing is billed.
    """
    choice = choose()
    statuses = asyncio.run(inspect_all())
    if as_json:
        click.echo(
            json.dumps(
                {
                    "default": dataclasses.asdict(choice),
                    "providers": [dataclasses.asdict(status) for status in statuses],
                },
                ensure_ascii=False,
                indent=2,
            )
        )
        return
    for status in statuses:
        show(status, default=status.name == choice.provider)
    explain(choice)


async def inspect_all() -> list[ProviderStatus]:
    """Ask all providers at once."""
    registry: Registry[Provider] = provider_registry()
    try:
        asked = (inspect_provider(registry, name) for name in registry.names())
        return list(await asyncio.gather(*asked))
    finally:
        await registry.aclose()


def show(status: ProviderStatus, *, default: bool) -> None:
    """Print one provider's line, and below it what stands in its way."""
    if status.reachable:
        mark, colour, word = "●", "green", "ready"
    elif status.configured:
        mark, colour, word = "○", "red", "does not answer"
    elif status.installed:
        mark, colour, word = "○", "yellow", "not configured"
    else:
        mark, colour, word = "·", "bright_black", "not installed"
    click.secho(f"{mark} {status.name:<12}", fg=colour, nl=False)
    click.echo(f"{word:<16}", nl=False)
    shown = ", ".join(status.models[:MODELS_SHOWN])
    more = len(status.models) - MODELS_SHOWN
    click.echo(shown + (f" and {more} more" if more > 0 else ""), nl=False)
    click.secho("  ← default" if default else "", fg="cyan")
    if status.problem:
        click.secho(f"    {status.problem}", fg="bright_black")


def explain(choice: Choice) -> None:
    """Print which provider is used when none is named, and why."""
    model = f" with model {choice.model}" if choice.model else ""
    click.echo(f"\nWithout --provider, {choice.provider}{model} is used: {choice.reason}.")
