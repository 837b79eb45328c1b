"""Shared."""

from __future__ import annotations

from splitpoint.engines import open_engine

ENGINE = open_engine(threads=1)


NAMES = ("fp16", "int8", "int4", "raw+zstd", "int8+zstd", "jpeg:50", "jpeg:95")
