"""Which systems this runs on: said in one sentence, where else an attribute would be missing."""

from __future__ import annotations

import os
import sys


def require_system() -> None:
    """UnsupportedError on a system without what connections need; the `splitpoint` command ends with the sentence."""
    socket = sys.modules.get("socket")  # not imported for this: the command line starts with next to nothing
    if os.name == "posix" and (socket is None or hasattr(socket, "MSG_DONTWAIT")):
        return
    from splitpoint.errors import UnsupportedError

    said = (
        f"splitpoint needs Linux (macOS is untested), and this Python on {sys.platform} lacks what its connections "
        "use, such as socket.MSG_DONTWAIT: on Windows run it inside WSL 2"
    )
    if os.path.basename(sys.argv[0]).partition(".")[0] == "splitpoint" or sys.orig_argv[1:3] == ["-m", "splitpoint"]:
        print(f"splitpoint: {said}", file=sys.stderr)  # there is no main() yet that would do it
        raise SystemExit(UnsupportedError.exit_code)
    raise UnsupportedError(said)
