"""`mesh peer`: run one peer until a signal comes."""

from __future__ import annotations

import asyncio
import signal

import structlog
import uvloop

from mesh.cli.exits import ConfigPath, one_line, settings_of, tune_gc, tune_malloc
from mesh.cli.logs import set_up
from mesh.cli.quantities import is_loopback
from mesh.cli.rooms import peer_settings
from mesh.cli.settings import Settings
from mesh.peer.peer import running_peer

log = structlog.get_logger()


def peer(config: ConfigPath) -> None:
    """Run one peer in the foreground, until Ctrl-C or SIGTERM."""
    settings = settings_of(config)
    set_up(settings.log)
    tune_malloc()
    with one_line():
        uvloop.run(_run(settings))


async def _run(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    told = peer_settings(settings)
    async with running_peer(told) as running:
        if not is_loopback(told.listen) and told.tls is None:
            log.warning("no TLS", listen=told.listen, because="security.insecure = true")
        log.info(
            "peer serves",
            peer=told.me.name,
            cluster=told.cluster,
            listen=told.listen,
            blocks=running.store.block_count,
            used_bytes=running.store.used_bytes,
        )
        tune_gc()
        await stop.wait()
        log.info("peer stops", peer=told.me.name)
