"""What trackers have kept of a run, read from their own files."""

import json
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest

from ds_distill.tracking.choice import LIBRARIES

INSTALLED = [name for name in LIBRARIES if find_spec(name)]
Figure = tuple[str, str, int, float]  # (run's id, name, step, value)


def each_library() -> list:
    """Return the trackers with a library as parameters of a test; it is skipped for one that is not installed."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(name not in INSTALLED, reason=f"{name} is not installed"))
        for name in LIBRARIES
    ]


def figures(name: str, folder: Path) -> list[Figure]:
    """Return the figures that a tracker has kept below a run's folder of trackers, in sorted order."""
    return sorted({"wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow}[name](folder))


def _mlflow(folder: Path) -> list[Figure]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        return database.execute("SELECT run_uuid, key, step, value FROM metrics").fetchall()


def _trackio(folder: Path) -> list[Figure]:
    with closing(sqlite3.connect(folder / "trackio" / "ds-distill.db")) as database:
        rows = database.execute("SELECT run_id, step, metrics FROM metrics").fetchall()
    return [(id, key, step, value) for id, step, values in rows for key, value in json.loads(values).items()]


def _wandb(folder: Path) -> list[Figure]:
    from wandb.proto.wandb_internal_pb2 import Record

    kept = []
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        id = file.stem.removeprefix("run-")
        for text in _leveldb_records(file.read_bytes()):
            record = Record.FromString(text)
            if record.WhichOneof("record_type") == "history":
                row = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                values = {key: float(value) for key, value in row.items() if not key.startswith("_")}
                step = int(values.pop("train/global_step"))
                kept += [(id, key, step, value) for key, value in values.items()]
    return kept


def _leveldb_records(log: bytes) -> Iterator[bytes]:
    """Yield the records of a log in the format of LevelDB, behind the seven bytes of wandb's own header."""
    at, parts, block, header = 7, b"", 32768, 7
    while at + header <= len(log):
        if block - at % block < header:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", log[at : at + header])
        parts += log[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""
