"""The command line: one verb a file, each parses, calls the public library, and prints.

Nothing is imported before `script` has begun: until then Ctrl-C is a traceback.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the one of `typing`, whose import takes as long as all of Python's own start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    from splitpoint.cli.verbs import main

    return main(args)


def script() -> NoReturn:
    """The `splitpoint` command."""
    import os
    import sys

    try:
        from splitpoint.cli import signals

        signals.install()
        from splitpoint.cli import stdio as streams

        streams.install()
        status = main()
        signals.finish()
        signals.leave(status)
    except KeyboardInterrupt:  # before there was a handler, or while another one was being told of
        os.write(2, b"splitpoint: interrupted\n")
        os._exit(130)
    sys.exit(status)
