"""Learns a link from the requests that use it, without sending anything: pure code, its clock is the caller's.

A frame of n bytes that was t milliseconds on its way says t = half the round trip + c + b·n. b, milliseconds per byte,
is the bandwidth; c is what else a frame costs, whatever its size: waking the peer, and the error of the clocks'
offset, which makes one way look longer and the other shorter. The round trip is known from pings. For each way a Kalman
filter of two states, c and b, keeps what the frames so far allow (Kalman 1960; with exponential forgetting, it is
recursive least squares). What follows from that, instead of from rules:

* Frames of different sizes tell c and b apart; of one size, c is held near zero by what is believed of it beforehand.
* A small frame says little about b: its time hardly depends on it. No time is ever divided by a size.
* Each estimate has a standard deviation.

Nothing is forgotten that is not told anew: else a stream of small frames would wear b away ("directional forgetting",
Kulhavý 1987). b changes with the network and is forgotten with the half-life, c more slowly.

Two rules are added. A frame that lies far outside of what is likely is put aside; when three in a row do, the link has
changed, and what was known is given up for them.
"""

from __future__ import annotations

from collections import deque
from math import inf, isfinite, sqrt

from splitpoint.link import Link

#: A frame this many standard deviations off is put aside; this many in a row are a change.
_FAR = 4.0
_CHANGE = 3
#: The noise of a frame's time, until the frames themselves show more: a share of its transfer, a share of the round
#: trip, and some milliseconds.
_SHARE, _TRIP_SHARE, _LEAST_MS = 0.05, 0.02, 0.1
#: How unsure c is, beforehand and at most: a share of the round trip (clocks), and some milliseconds (waking up).
#: Before the first ping the round trip itself is only believed.
_CONSTANT_SHARE, _CONSTANT_SHARE_UNPINGED = 0.25, 1.0
_CONSTANT_MS, _CONSTANT_MS_UNPINGED = 0.3, 50.0
#: Of the answers to "how noisy is it": the share that the newest frame has.
_NEWEST = 0.1
#: c has a half-life so many times as long as b's.
_CONSTANT_LIVES = 5.0
#: How far a bandwidth that was measured may be off, as a share (a standard deviation).
_MEASURED = 0.2
#: b is known when its standard deviation is this share of it.
_KNOWN = 0.25
#: Rates are kept within these, ms per byte: 100 Gbit/s and 80 bit/s.
_FASTEST, _SLOWEST = 8e-8, 1e2
#: What is observed and lies beyond is no observation.
_MOST_NBYTES, _MOST_MS = 1e12, 1e7
#: Pings that are kept, for how many half-lives, and of which age at least the newest three are used.
_PINGS, _PING_LIVES, _PINGS_LEAST = 64, 2.0, 3


class LinkEstimator:
    """A `Link` that follows real requests. `start` is believed until they know better: a link that was `measured` just
    now, or one of which nothing is known but that the first request is more likely to be right.

    What was observed `half_life_s` ago counts half. Times are on any one clock that does not run backwards.

    >>> estimator = LinkEstimator(Link(5.85, 20, 40))
    >>> for k in range(5):  # the link is slower than it was thought: 150 kB took 600 ms beside half the round trip
    ...     estimator.observe(k, up_nbytes=150_000, up_ms=620, down_nbytes=200, down_ms=20)
    >>> f"{estimator.link.up_mbps:.1f} Mbit/s"
    '2.0 Mbit/s'
    """

    def __init__(self, start: Link, half_life_s: float = 10.0, *, measured: bool = False) -> None:
        self._start = start
        self._half_life_s = half_life_s
        self._pings: deque[tuple[float, float]] = deque(maxlen=_PINGS)
        self._now = 0.0
        self._up = _OneWay(8e-3 / start.up_mbps, half_life_s, measured)
        self._down = _OneWay(8e-3 / start.down_mbps, half_life_s, measured)

    def observe(self, now_s: float, up_nbytes: float, up_ms: float, down_nbytes: float, down_ms: float) -> None:
        """A request that ended at `now_s`: whole frames, and how long each was on its way.

        That is from the moment it was handed over until its last byte was there; not the time in `send`, which a
        socket's buffer hides. A way of 0 bytes was not used; values that cannot be (negative, NaN, hours) are ignored.
        """
        self._advance(now_s)
        rtt_ms, jitter_ms = self._round_trip()
        if self._pings:
            most_ms = max(_CONSTANT_SHARE * rtt_ms, _CONSTANT_MS, jitter_ms)
        else:
            most_ms = max(_CONSTANT_SHARE_UNPINGED * rtt_ms, _CONSTANT_MS_UNPINGED, jitter_ms)
        noise_ms = max(_TRIP_SHARE * rtt_ms, _LEAST_MS, jitter_ms / 2)
        for way, nbytes, ms in ((self._up, up_nbytes, up_ms), (self._down, down_nbytes, down_ms)):
            if 1 <= nbytes <= _MOST_NBYTES and 0 <= ms <= _MOST_MS:
                way.observe(self._now, nbytes, ms - rtt_ms / 2, most_ms, noise_ms)

    def ping(self, now_s: float, round_trip_ms: float) -> None:
        """The round trip of an empty message that came back at `now_s`, without the time at the server."""
        self._advance(now_s)
        if 0 <= round_trip_ms <= _MOST_MS:
            self._pings.append((self._now, round_trip_ms))

    @property
    def link(self) -> Link:
        """The link as it is believed to be now. Once frames tell of it, what software costs is in `overhead_ms`."""
        software_ms = 0.0 if self._up.frames or self._down.frames else self._start.software_ms
        return Link(self._up.mbps, self._down.mbps, *self._round_trip(), self._start.name, software_ms)

    @property
    def overhead_ms(self) -> float:
        """What a request costs beyond the link's round trip and bytes."""
        return self._up.constant_ms + self._down.constant_ms

    def _advance(self, now_s: float) -> None:
        if isfinite(now_s):
            self._now = max(self._now, now_s)

    def _round_trip(self) -> tuple[float, float]:
        """(least round trip, how far above it nine of ten lie) of the recent pings, ms."""
        if not self._pings:
            return self._start.rtt_ms, self._start.jitter_ms
        oldest = self._now - _PING_LIVES * self._half_life_s
        recent = sorted(ms for at, ms in self._pings if at >= oldest)
        if len(recent) < _PINGS_LEAST:
            recent = sorted([ms for _, ms in self._pings][-_PINGS_LEAST:])
        return recent[0], recent[round(0.9 * (len(recent) - 1))] - recent[0]


class _OneWay:
    """One direction: c (`constant_ms`) and b (`_slope`, ms per byte), and how far each may be off (variances)."""

    def __init__(self, slope: float, half_life_s: float, measured: bool) -> None:
        self.constant_ms = 0.0
        self.frames = 0
        self._slope = slope
        self._usual = slope  # b when it was known last: what it is near as long as nothing is
        self._half_life_s, self._measured = half_life_s, measured
        # Variances of c and b, and their covariance. Not knowing b is a standard deviation as large as itself.
        self._cc, self._cb, self._bb = 0.0, 0.0, (slope * (_MEASURED if measured else 1.0)) ** 2
        # How much noisier than expected the frames are, a factor on their variance; and the most since the last change.
        self._noise = self._noisiest = 1.0
        # What the frames told of b, fading: one over its variance.
        self._told = 1 / self._bb if measured else 0.0
        self._at = 0.0
        self._aside: list[tuple[float, float, float]] = []

    def observe(self, now_s: float, nbytes: float, ms: float, most_ms: float, noise_ms: float) -> None:
        """A frame of `nbytes` took `ms` beyond half the round trip; c is within `most_ms`."""
        self.frames += 1
        # As if all that is beyond c were transfer: of a link of which nothing is known yet, it may well be.
        unknown = noise_ms**2 + (_SHARE * max(self._slope * nbytes, ms - most_ms)) ** 2
        if self.frames == 1:
            self._at, self._cc = now_s, most_ms**2
            if not self._measured:
                self._change([(nbytes, ms, unknown)], most_ms)
                return
        variance = noise_ms**2 + (_SHARE * self._slope * nbytes) ** 2
        self._forget(now_s, nbytes, variance * self._noise, most_ms)
        spread = self._cc + 2 * nbytes * self._cb + nbytes * nbytes * self._bb  # variance of what is predicted
        surprise = (ms - self._predict(nbytes)) ** 2
        far = surprise > _FAR * _FAR * (spread + variance * self._noise)
        # A far one counts too, so that noise which was taken for a change is not taken for one for ever.
        self._hear(min(max(0.0, surprise - spread) / variance, _FAR * _FAR))
        if far:
            self._aside.append((nbytes, ms, unknown))
            if len(self._aside) == _CHANGE:
                self._change(self._aside, most_ms)
        else:
            self._aside = []
            self._learn(nbytes, ms, variance)

    @property
    def mbps(self) -> float:
        """The bandwidth that b is, in Mbit/s."""
        return 8e-3 / self._slope

    def _predict(self, nbytes: float) -> float:
        return self.constant_ms + self._slope * nbytes

    def _unsure(self) -> float:
        """Standard deviation of b; half of b itself when nothing is known."""
        most = max(self._slope, self._usual) / 2
        return min(most, sqrt(max(self._bb, 1 / self._told))) if self._told else most

    def _kept(self, seconds: float) -> float:
        """The share of what was known that is left after `seconds`."""
        halved: float = 0.5 ** min(max(0.0, seconds) / self._half_life_s, 40.0)
        return halved

    def _hear(self, noise: float) -> None:
        """`noise` is how noisy the newest frame was; where it is more than ever, the last ones told less."""
        self._noise = max(1.0, self._noise + _NEWEST * (noise - self._noise))
        if (more := self._noise / self._noisiest) > 1:
            self._noisiest = self._noise
            self._cc, self._cb, self._bb = self._cc * more, self._cb * more, self._bb * more
            self._told /= more

    def _forget(self, now_s: float, nbytes: float, variance: float, most_ms: float) -> None:
        """Of what is known of each state, if the other were known, as much fades as a frame of `nbytes` tells anew."""
        age = now_s - self._at
        self._at = now_s
        self._told *= self._kept(age)
        most = max(self._slope, self._usual)
        shrink_c = min(1.0, most_ms / sqrt(self._cc)) if self._cc > 0 else 1.0
        shrink_b = min(1.0, most / sqrt(self._bb)) if self._bb > 0 else 1.0
        self._cc *= shrink_c * shrink_c
        self._bb *= shrink_b * shrink_b
        self._cb *= shrink_c * shrink_b
        # What was believed before anything was known (b near the usual, c near 0) is told again for its share in that.
        grown, again = _faded(self._bb, self._cb, self._cc, variance / nbytes**2, most * most, 1 - self._kept(age))
        self._bb += grown
        self._step(0.0, 1.0, self._usual, again)
        fades = 1 - self._kept(age / _CONSTANT_LIVES)
        grown, again = _faded(self._cc, self._cb, self._bb, variance, most_ms * most_ms, fades)
        self._cc += grown
        self._step(1.0, 0.0, 0.0, again)

    def _change(self, frames: list[tuple[float, float, float]], most_ms: float) -> None:
        """The link is as these frames say: what was known is given up. c is within `most_ms`; b is as unsure as it is
        large, or as the largest frame shows it to be."""
        self._aside = []
        nbytes, ms, variance = max(frames)
        self._cc = most_ms * most_ms
        beyond = ms - self._predict(nbytes) - 2 * sqrt(self._cc + variance)
        self._bb = max(self._slope, beyond / nbytes) ** 2
        self._cb = self._told = 0.0
        self._noise = self._noisiest = 1.0
        for nbytes, ms, variance in frames:
            self._learn(nbytes, ms, variance)

    def _learn(self, nbytes: float, ms: float, variance: float) -> None:
        variance *= self._noise
        self._step(1.0, nbytes, ms, variance)
        self._told += nbytes * nbytes / variance
        if self._unsure() < _KNOWN * self._slope:
            self._usual = self._slope

    def _step(self, c: float, b: float, ms: float, variance: float) -> None:
        """The filter's step: `c` times the constant and `b` times the slope was measured to be `ms`."""
        gain_c, gain_b = self._cc * c + self._cb * b, self._cb * c + self._bb * b
        total = c * gain_c + b * gain_b + variance
        step = (ms - c * self.constant_ms - b * self._slope) / total
        self.constant_ms += gain_c * step
        # Noise may point below zero: one frame makes a link ten times as fast at most.
        self._slope = min(max(self._slope + gain_b * step, self._slope / 10, _FASTEST), _SLOWEST)
        self._cc = max(0.0, self._cc - gain_c * gain_c / total)
        self._cb -= gain_c * gain_b / total
        self._bb = max(0.0, self._bb - gain_b * gain_b / total)


def _faded(own: float, shared: float, other: float, told: float, first: float, fades: float) -> tuple[float, float]:
    """(by how much a state's variance grows, with which variance its first belief is told again).

    `own` is its variance, `other` the other state's, `shared` their covariance; a frame tells it with the variance
    `told`; it was believed with the variance `first`; the share `fades` is forgotten at most.
    """
    alone = own - shared * shared / other if other > 0 else own
    if alone <= 0:
        return 0.0, inf
    forgotten = min(fades / alone, 1 / told)
    if forgotten <= 0:
        return 0.0, inf
    return 1 / (1 / alone - forgotten) - alone, first / (alone * forgotten)
