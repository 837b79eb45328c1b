"""The command line: one verb a file, each parses, calls the public library, and prints.

This much is imported at once, and little besides: until `script` has begun, Ctrl-C is a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from splitpoint.cli import signals, streams


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    from splitpoint.cli.verbs import main

    return main(args)


def script() -> NoReturn:
    """The `splitpoint` command."""
    signals.install()
    try:
        streams.install()
        status = main()
        signals.finish()
    except KeyboardInterrupt as exc:  # while another one was being told of
        signals.finish()
        status = signals.status_of(exc)[1]
    sys.exit(status)
