"""The sizes of the pages of a parquet file, which its own headers tell before any page is unpacked.

A page is unpacked as a whole, and a few bytes can declare gigabytes. pyarrow does not show these headers.
"""

from __future__ import annotations

from typing import BinaryIO

_WINDOW = 1 << 20  # bytes; a header with statistics is far shorter
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_UNPACKED, _PACKED = 2, 3  # fields of a PageHeader: the bytes of the page, unpacked and in the file


def largest_page(stream: BinaryIO, start: int, stop: int) -> int:
    """Return the size in bytes of the largest page, unpacked, in bytes [start, stop) of a parquet file.

    Args:
        stream: The open file.
        start: Where the first page header of a column chunk lies.
        stop: Where the chunk ends.

    Raises:
        ValueError: If there is no page header where one must be.
    """
    largest = 0
    while start < stop:
        header = _Header(stream, start)
        fields = header.read_struct()
        unpacked, packed = fields.get(_UNPACKED, -1), fields.get(_PACKED, -1)
        if unpacked < 0 or packed < 0:
            raise ValueError(f"no page header at byte {start:,}")
        largest = max(largest, unpacked)
        start += header.place + packed
    return largest


class _Header:
    """A reader of one structure in Thrift's compact protocol, which parquet's headers are written in."""

    def __init__(self, stream: BinaryIO, start: int):
        self.place, self._stream, self._start, self._data = 0, stream, start, b""

    def read_struct(self, depth: int = 0) -> dict[int, int]:
        """Read a structure and return its integers by field number; everything else is skipped."""
        fields: dict[int, int] = {}
        number = 0
        while (kind := self._byte()) & 15 != _STOP:
            number = number + (kind >> 4) if kind >> 4 else self._integer()
            value = self._value(kind & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int, in_list: bool = False) -> int | None:
        if depth > 8:
            raise ValueError(f"no page header at byte {self._start:,}")
        if kind in (_TRUE, _FALSE):
            self._skip(in_list)  # The type of a field is its value.
        elif kind == _BYTE:
            self._skip(1)
        elif kind < _DOUBLE:
            return self._integer()
        elif kind == _DOUBLE:
            self._skip(8)
        elif kind == _BINARY:
            self._skip(self._varint())
        elif kind in (_LIST, _SET):
            size = self._byte()
            for _ in range(self._varint() if size >> 4 == 15 else size >> 4):
                self._value(size & 15, depth + 1, in_list=True)
        elif kind == _STRUCT:
            self.read_struct(depth + 1)
        else:
            raise ValueError(f"no page header at byte {self._start:,}")
        return None

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError(f"no page header at byte {self._start:,}")

    def _byte(self) -> int:
        self._skip(1)
        return self._data[self.place - 1]

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self._data):
            if self.place > _WINDOW:
                raise ValueError(f"no page header at byte {self._start:,}")
            self._stream.seek(self._start)
            self._data = self._stream.read(256 if self.place <= 256 else _WINDOW)
            if self.place > len(self._data):
                raise ValueError(f"no page header at byte {self._start:,}")
