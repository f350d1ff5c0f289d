"""Logs: one line for each decision, on stderr, key=value or JSON."""

from __future__ import annotations

import logging
import sys

import structlog

from mesh.cli.sections import LogSection


def set_up(section: LogSection) -> None:
    """Log as the config says; `auto` is key=value on a terminal and JSON elsewhere."""
    as_json = section.format == "json" or (section.format == "auto" and not sys.stderr.isatty())
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[section.level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
