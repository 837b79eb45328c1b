"""What a server's connections share: the parts of one server that runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from splitpoint.runtime.events import OnEvent
from splitpoint.runtime.server import TailRunner
from splitpoint.runtime.server.accounts import Ledger
from splitpoint.runtime.server.catalogue import Catalogue
from splitpoint.runtime.server.profile_jobs import Profiling
from splitpoint.runtime.server.weight_sharing import Sharing
from splitpoint.runtime.server.worker_pool import Compute
from splitpoint.wire import Limits


@dataclass(frozen=True)
class Services:
    """`builders` are the workers for what is slow (planning and compiling tails); `pause` waits, less long if the
    server ends meanwhile. `profiling` is None where tails are not computed by this process."""

    limits: Limits
    catalogue: Catalogue
    sharing: Sharing
    ledger: Ledger
    runner: TailRunner
    builders: Compute
    profiling: Profiling | None
    tell: OnEvent
    pause: Callable[[float], object]
