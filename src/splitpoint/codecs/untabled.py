"""klt:LEVEL before it has the tables of a tensor: what people, plans and command lines name."""

from __future__ import annotations

from splitpoint.codecs import FLOATS, Codec, dims
from splitpoint.codecs.klt_tables import KltTables
from splitpoint.errors import UsageError
from splitpoint.tensors import Array, TensorSpec

#: Bits a value at level 50, and in how many levels there are twice as many: until a calibration measures them.
_BITS, _DOUBLED = 1.1, 16


class Untabled(Codec):
    """Says what it takes and about how many bytes that has; it encodes and decodes `with_tables` alone."""

    sized = False

    def __init__(self, name: str) -> None:
        self.name = name
        self._level = int(name.partition(":")[2])

    def with_tables(self, tables: KltTables) -> Codec:
        """The codec of this level for the tensor that `tables` were learnt from."""
        from splitpoint.codecs.klt import Klt

        return Klt(self.name, tables)

    def accepts(self, spec: TensorSpec) -> bool:
        return spec.dtype in FLOATS and len(spec.shape) > 1

    def nbytes(self, spec: TensorSpec) -> int:
        bits = _BITS * 2 ** ((self._level - 50) / _DOUBLED)
        return 64 * dims(spec)[0] + round(spec.elements * min(bits, 32.0) / 8)

    def most(self, spec: TensorSpec) -> int:
        return 1024 * dims(spec)[0] + 4 * spec.elements

    def encode(self, array: Array) -> Array:
        raise UsageError(f"{self.name} needs the tables of the very tensor: splitpoint calibrate-codecs learns them")

    def decode(self, data: Array, spec: TensorSpec) -> Array:
        raise UsageError(f"{self.name} needs the tables of tensor {spec.name}: splitpoint calibrate-codecs learns them")
