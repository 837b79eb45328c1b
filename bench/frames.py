"""What differences between the frames of a still camera would save: klt at a cut of EfficientNet-Lite0, and video.

    python -m bench.frames [--photos DIR] [--video FILE.avi]    # H.264 and FILE need PyAV; opencv-doc has vtest.avi

Nothing of the product sends differences: this measures whether it should (docs/design/codecs.md). Scenes are photos
with sensor noise, light that changes by 5 % in 100 frames and two moving objects, none of which calibrates, and what
FILE shows. A frame is coded as its difference from the last decoded coefficients, with plain klt's step and codes, the
classes moved by whole octaves (the best is chosen) and those below `--zone` of a step left out; every difference
is decoded, so errors add up as they would. KL is the divergence of the answers from those of the uncut network on the
frame that was not compressed: bytes compare at equal KL. First frames, which are whole, are left out everywhere.
"""

from __future__ import annotations

import argparse
import importlib
import io
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.common import header
from bench.klt import MODEL, crossing
from bench.photos import photos
from splitpoint.codecs.klt import Klt, learn
from splitpoint.codecs.klt_tables import step_of
from splitpoint.engines import open_engine
from splitpoint.inputs import read_inputs
from splitpoint.models import load
from splitpoint.segments import Halves
from splitpoint.tensors import Array

CUT = "blocks.5.project.norm"
SCENES, FRAMES = 6, 10
LEVELS, QUALITIES, CRFS = (24, 36, 48), (90, 95), (12, 16, 20)
#: By how many sixteenths of an octave a difference's classes may be below a whole frame's.
MOVED = range(0, 113, 16)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.frames", description="Differences between frames.")
    parser.add_argument("--photos", type=Path, help="where bench.photos keeps them")
    parser.add_argument("--video", type=Path, help="of a still camera: its first 50 frames")
    parser.add_argument("--zone", type=float, nargs="+", default=[0.5, 0.75], help="steps below which nothing is sent")
    options = parser.parse_args(arguments)
    print(header(), flush=True)
    model, engine = load(MODEL), open_engine(threads=1)
    cut, whole = Halves(model, model.graph.cut(CUT), engine), engine.compile(model.whole())
    name, output = model.inputs[0].name, model.outputs[0].name
    pictures = [read_inputs(model, path)[name][0] for path in photos("calibration", options.photos)]
    tables = learn([crossing(cut, {name: p[None]}) for p in pictures[::2]])
    kinds = {f"noise {s}": [list(scene(pictures[1::2], k, s)) for k in range(SCENES)] for s in (2, 4)}
    if options.video:
        kinds[options.video.name] = [shown(options.video)]

    def answer(picture: Array) -> Array:
        return whole.run({name: picture[None]})[output][0]

    assert cut.tail
    tail, crosses = cut.tail, cut.cut.crossing[0].name
    for kind, scenes in kinds.items():
        print(f"\n{kind}: {len(scenes)} scenes of {len(scenes[0])} frames; bytes a frame, KL, same top-1", flush=True)
        wanted = [answer(picture) for frames in scenes for picture in frames[1:]]
        features = [[crossing(cut, {name: picture[None]}) for picture in frames] for frames in scenes]
        for level in LEVELS:
            klt = Klt(f"klt:{level}", tables)
            for zone in (None, *options.zone):
                sent = [one for scene in features for one in list(differences(klt, scene, zone))[1:]]
                answers = [tail.run({crosses: f})[output][0] for _, f in sent]
                report(klt.name + (f", differences from {zone}" if zone else ""), [n for n, _ in sent], answers, wanted)
        for label, coder in pixel_coders():
            coded = [one for frames in scenes for one in list(coder(frames))[1:]]
            report(label, [n for n, _ in coded], [answer(p) for _, p in coded], wanted)


def scene(pictures: Sequence[Array], number: int, noise: float) -> Iterator[Array]:
    """Frames uint8[224, 224, 3] of one photo, with patches of another that move 3 or 4 pixels a frame."""
    rng = np.random.default_rng([17, number, int(noise)])
    still, other = (pictures[(8 * number + k) % len(pictures)].astype(float) for k in (0, 21))
    for t in range(FRAMES):
        frame = still.copy()
        for y, x, by in ((20, 150, 4), (160, 60, -3)):
            at = (x + by * t) % 196
            frame[at : at + 28, y : y + 28] = other[100:128, 60:88]
        frame = frame * (1 + 0.05 * np.sin(2 * np.pi * t / 100)) + rng.normal(0, noise, frame.shape)
        yield np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def differences(klt: Klt, features: Sequence[Array], zone: float | None) -> Iterator[tuple[int, Array]]:
    """(bytes, what is decoded) of each frame: whole ones where `zone` is None, else whole once."""
    transform, codes, order = klt._transform, klt._codes, klt._places
    last: Array | None = None
    at = round(16 * np.log2(klt.step))
    for array in features:
        values = transform.forward(array).reshape(-1)[order] / np.float32(klt.step)
        before = np.zeros_like(values) if last is None or zone is None else last
        change = values - before
        steps = np.rint(change)
        if last is not None and zone is not None:
            steps[np.abs(change) < zone] = 0
        coded = [(codes.write(steps.copy(), at + m), at + m) for m in (MOVED if before.any() else (0,))]
        data, moved = min(coded, key=lambda one: len(one[0]))
        decoded = np.empty_like(values)
        codes.read(data, moved, decoded)
        last = before + decoded
        back = (last * np.float32(step_of(at))).take(klt._sorted).reshape(-1, 1, klt.tables.channels)
        yield len(data) + 4, transform.inverse(back)


def pixel_coders() -> Iterator[tuple[str, Callable[[Sequence[Array]], Iterator[tuple[int, Array]]]]]:
    for quality in QUALITIES:
        yield f"jpeg:{quality}", lambda frames, q=quality: (_jpeg(f, q) for f in frames)
    try:
        av = importlib.import_module("av")
    except ImportError:
        print("  (no H.264: PyAV is not installed)")
        return
    for crf in CRFS:
        yield f"H.264 crf {crf}", lambda frames, c=crf: h264(av, frames, c)


def _jpeg(picture: Array, quality: int) -> tuple[int, Array]:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "JPEG", quality=quality)
    return data.tell(), np.asarray(Image.open(data))


def h264(av: Any, frames: Sequence[Array], crf: int) -> Iterator[tuple[int, Array]]:
    """x264, veryfast, no frame waits for another; 4:2:0, as cameras send it."""
    encoder, decoder = av.CodecContext.create("libx264", "w"), av.CodecContext.create("h264", "r")
    encoder.height, encoder.width = frames[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 10), 10
    encoder.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency", "g": "1000"}
    sizes, pictures = [], []
    for number, frame in enumerate([*frames, None]):
        picture = None if frame is None else av.VideoFrame.from_ndarray(frame, format="rgb24")
        if picture:
            picture.pts = number
        for packet in encoder.encode(picture):
            sizes.append(packet.size)
            pictures += [p.to_ndarray(format="rgb24") for p in decoder.decode(packet)]
    pictures += [p.to_ndarray(format="rgb24") for p in decoder.decode(None)]
    yield from zip(sizes, pictures, strict=True)


def shown(path: Path) -> list[Array]:
    """The middle square of a video's first 50 frames, at 224 x 224."""
    av, frames = importlib.import_module("av"), []
    for frame in av.open(str(path)).decode(video=0):
        picture = frame.to_image()
        side, (width, height) = min(picture.size), picture.size
        left, top = (width - side) // 2, (height - side) // 2
        frames.append(np.asarray(picture.crop((left, top, left + side, top + side)).resize((224, 224))))
        if len(frames) == 50:
            break
    return frames


def report(label: str, sizes: Sequence[int], answers: Sequence[Array], wanted: Sequence[Array]) -> None:
    """One line: mean bytes, mean divergence in nats, and the share of equal top-1."""
    p, q = _logs(np.array(wanted)), _logs(np.array(answers))
    apart = (np.exp(p) * (p - q)).sum(axis=1)
    rng = np.random.default_rng(0)
    low, high = np.percentile(apart[rng.integers(0, apart.size, (2000, apart.size))].mean(axis=1), [2.5, 97.5])
    same = (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    print(f"  {label:<32}{np.mean(sizes):>8.0f}{apart.mean():>10.4f} ({low:.4f} to {high:.4f}){same:>8.1%}", flush=True)


def _logs(logits: Array) -> Array:
    logits = logits.astype(float) - logits.max(axis=1, keepdims=True)
    logs: Array = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logs


if __name__ == "__main__":
    main()
