"""The `mesh` command: words typed by people become calls."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""128 + SIGINT, as a shell says it."""


def main() -> None:
    """Run the command line."""
    try:
        # Only now: what a command imports takes long enough for a Ctrl-C to come.
        from mesh.cli.commands import app_for

        app_for(sys.argv[1:])()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
