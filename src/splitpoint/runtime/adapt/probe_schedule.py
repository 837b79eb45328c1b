"""When an edge probes its link, and with how many bytes. Pure: time is an argument.

Requests that use the link show how it is, and nothing else is sent. An idle link is probed with 1 % of what it carries.
While everything runs on the device, one real request in so many is sent to the server as well: a small message shows
little of what a large one will take, and nothing of the server's load. What surprises is soon looked at again, so that
a single probe need not be believed.
"""

from __future__ import annotations

from math import inf

#: The share of the link's bytes that probes may take, and for how many seconds it can be saved.
SHARE, SAVED_S = 0.01, 4.0
#: The largest probe (a request that comes at that moment waits for it), and the smallest that shows anything.
MOST_NBYTES, LEAST_NBYTES = 16_384, 512
#: A probe takes this part of what is saved, so that some is left for the next ones.
_PART = 1 / 3
#: A frame's time surprises if it is off by this factor and by so many ms. Then `_AGAIN` probes follow, `_SOON_S` apart.
#: That happens once in `_CALM_S` at most: on a noisy link every frame surprises.
_SURPRISE, _SURPRISE_MS = 1.4, 2.0
_AGAIN, _SOON_S, _CALM_S = 3, 0.1, 1.0
#: After this an extra request whose answer has not come is taken for lost, and the next one may be sent.
_LOST_S = 10.0


class ProbeSchedule:
    """When to probe (`probe_every_s` 0: never), and when to send an extra request (`explore_every` 0: never)."""

    def __init__(self, probe_every_s: float, explore_every: int) -> None:
        self._every_s, self._every = probe_every_s, explore_every
        self._saved_nbytes = 0.0  # what probes may take, as of
        self._asked_s = inf
        self._used_s = self._probed_s = self._alone_s = self._surprised_s = self._not_before_s = -inf
        self._beside_s: float | None = None  # when the extra request was sent whose answer is waited for
        self._alone = self._again = 0

    def used(self, now_s: float) -> None:
        """A request used the link just now; an extra one has been answered."""
        self._used_s, self._beside_s = now_s, None

    def ran_alone(self, now_s: float) -> None:
        """A request was run on the device, as planned."""
        self._alone_s = now_s
        self._alone += 1

    def saw(self, now_s: float, believed_ms: float, seen_ms: float) -> None:
        """A frame was `seen_ms` on its way, and `believed_ms` were believed."""
        low, high = sorted((believed_ms, seen_ms))
        surprise = high > _SURPRISE * low and high - low > _SURPRISE_MS
        if surprise and now_s - self._surprised_s >= _CALM_S:
            self._surprised_s, self._again = now_s, _AGAIN

    def wants_request(self, now_s: float, *, hurry: bool = False) -> bool:
        """Whether the next request that runs on the device should be sent to the server too; `hurry`: the server was
        away, and the next request will do."""
        waits = self._beside_s is not None and now_s - self._beside_s < _LOST_S
        if not self._every or waits or now_s < self._not_before_s:
            return False
        return self._alone >= self._every or ((hurry or self._again > 0) and self._alone > 0)

    def sent_request(self, now_s: float) -> None:
        self._beside_s, self._alone = now_s, 0
        self._again = max(0, self._again - 1)

    def not_sent(self, now_s: float) -> None:
        """It could not be sent: the next one is tried soon."""
        self._beside_s, self._not_before_s = None, now_s + _CALM_S
        self._alone += self._every

    def probe_nbytes(self, now_s: float, mbps: float) -> int:
        """How many bytes to probe a link of `mbps` with now; 0 for not at all."""
        rate = SHARE * mbps * 125e3
        # On a slow link seconds are not enough to save up for the smallest probe.
        most = max(rate * SAVED_S, LEAST_NBYTES / _PART)
        self._saved_nbytes = min(self._saved_nbytes + rate * max(0.0, now_s - self._asked_s), most)
        self._asked_s = now_s
        if not self._every_s or now_s - self._used_s < self._every_s or self._beside_s is not None:
            return 0
        again = self._again > 0 and not (self._every and now_s - self._alone_s < self._every_s)
        if now_s - self._probed_s < (_SOON_S if again else self._every_s):
            return 0
        nbytes = int(min(MOST_NBYTES, self._saved_nbytes * _PART))
        return nbytes if nbytes >= LEAST_NBYTES else 0

    def sent_probe(self, now_s: float, nbytes: int) -> None:
        """A probe was sent, with all that belongs to it."""
        self._probed_s = now_s
        self._saved_nbytes -= nbytes
        self._again = max(0, self._again - 1)
