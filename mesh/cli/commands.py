"""All commands of `mesh`, one module each."""

from __future__ import annotations

import typer

from mesh.cli import (
    config,
    demo,
    info,
    job,
    keygen,
    mount,
    peer,
    pin,
    refresh,
    ring,
    stats,
    status,
    warmup,
)

app = typer.Typer(
    help="A peer-to-peer, node-local cache mesh for GPU clusters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(peer.peer)
app.command()(mount.mount)
app.command()(mount.umount)
app.command()(status.status)
app.command()(info.info)
app.command()(stats.stats)
app.command()(warmup.warmup)
app.command()(pin.pin)
app.command()(pin.unpin)
app.command()(refresh.refresh)
app.command()(demo.demo)
app.command()(keygen.keygen)
app.add_typer(job.app, name="job")
app.add_typer(ring.app, name="ring")
app.add_typer(config.app, name="config")
