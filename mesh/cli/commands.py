"""All commands of `mesh`, one module each; only that of the word that was typed is imported.

A command that asks a peer something starts in half of the time when it does not also
import what the peer is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import typer

COMMANDS = {
    "peer": "peer",
    "mount": "mount",
    "umount": "mount",
    "status": "status",
    "info": "info",
    "stats": "stats",
    "warmup": "warmup",
    "distribute": "swarm",
    "swarm": "swarm",
    "pin": "pin",
    "unpin": "pin",
    "refresh": "refresh",
    "uploads": "uploads",
    "flush": "uploads",
    "demo": "demo",
    "keygen": "keygen",
    "job": "job",
    "ring": "ring",
    "config": "config",
}
"""The module of each command, in the order in which help shows them."""

GROUPS = ("job", "ring", "config")


def app_for(words: Sequence[str] = ()) -> typer.Typer:
    """Return the command line for *words*: all of it, unless they begin with a command."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

    @app.callback()
    def mesh() -> None:
        # Without it an app with one command would take the command's name for an argument.
        """A peer-to-peer, node-local cache mesh for GPU clusters."""

    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module = import_module(f"mesh.cli.{COMMANDS[name]}")
        if name in GROUPS:
            app.add_typer(module.app, name=name)
        else:
            app.command()(getattr(module, name))
    return app
