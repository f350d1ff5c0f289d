"""`mesh config`: what the configuration says, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.settings import ConfigErrors, load_settings, render_toml

app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """Look at the configuration."""
    # Without a callback typer would make the only command the whole app.


@app.command()
def check(
    path: Annotated[Path, typer.Option("--config", metavar="PATH", help="The file to check.")],
) -> None:
    """Print the effective settings, or every mistake on a line of its own and exit with 1."""
    try:
        settings = load_settings(path)
    except ConfigErrors as errors:
        for mistake in errors.mistakes:
            # Not rich: it would take [cluster] for markup.
            typer.echo(str(mistake), err=True)
        raise typer.Exit(1) from None
    typer.echo(render_toml(settings), nl=False)
