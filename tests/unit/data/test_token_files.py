"""Test the files of prepared data: few, mapped when used, and those of the former format converted."""

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ds_distill.cli.app import main
from ds_distill.data import token_files
from ds_distill.data.batch import CollateSpec, collate
from ds_distill.data.convert import convert
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.masking import Masker
from ds_distill.data.run_data import is_prepared, text_statistics, with_prepared_settings
from ds_distill.data.shards import ShardWriter
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError

VOCAB = 50
UINT16 = np.dtype(np.uint16)


def write_shards(folder, sizes, sources=1):
    """Write shards of so many sequences of random lengths; return their entries and sequences, source by source."""
    random, special = np.random.default_rng(0), np.arange(VOCAB) < 5
    entries, sequences = [], [[] for _ in range(sources)]
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        source = number % sources  # as pieces' leftovers do, the shards of a source come in several places
        parts = [np.append(random.integers(5, VOCAB, random.integers(1, 40)), 3) for _ in range(size)]
        writer = ShardWriter(folder / f"part-{number}", special, UINT16)
        writer.add(parts)
        entries.append(writer.close() | {"path": writer.stem, "source": source})
        sequences[source] += parts
    return entries, sequences


def write_folder(folder, entries, sequences, **manifest):
    """Write what belongs to prepared data beside the files of its splits."""
    np.save(folder / "token_counts.npy", np.ones(VOCAB, np.int64))
    known = {"dtype": "uint16", "vocab_size": VOCAB, "mode": "lines", "sequence_length": 40, "characters": {"read": 1}}
    sources = [{"sequences": {"train": len(parts), "heldout": 0}} for parts in sequences]
    (folder / "manifest.json").write_text(json.dumps(known | {"sources": sources} | manifest))


def make_folder(folder, sizes, sources=1):
    entries, sequences = write_shards(folder.with_name(f"{folder.name}-parts"), sizes, sources)
    folder.mkdir()
    merged = token_files.merge(folder, {"train": entries, "heldout": []}, UINT16, "t")
    write_folder(folder, entries, sequences, **merged)
    return [ids for parts in sequences for ids in parts]


def maps_of(folder) -> dict[str, set[str]]:
    """Return the files of a folder that this process maps, with the flags of their maps."""
    flags: dict[str, set[str]] = {}
    name = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            path = line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) > 5 else ""
            name = Path(path).name if path.startswith(f"{folder}/") else None
        elif name and line.startswith("VmFlags:"):
            flags[name] = set(line.split()[1:])
    return flags


@pytest.mark.promise("A run opens few files, however large the corpus, and each when it is first used")
def test_many_shards_become_few_and_the_sequences_of_a_source_are_adjacent(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "SHARD_BYTES", 64)
    monkeypatch.setattr(token_files, "MAX_SHARDS", 7)
    monkeypatch.setattr(token_files, "_CHUNK", 3)
    expected = make_folder(tmp_path / "d", [5, 0, 9, 1, 30, 2] * 9, sources=3)
    store = TokenDataset.open(tmp_path / "d")
    assert len(store.manifest["shards"]["train"]) in (6, 7) and len(store) == len(expected)
    assert all((store.sequence(i) == ids).all() for i, ids in enumerate(expected))
    numbers = np.arange(len(store)).reshape(3, -1)
    assert store.lengths(numbers).tolist() == [[len(expected[i]) for i in row] for row in numbers]
    assert (store.maskable(numbers) == store.lengths(numbers) - 1).all() and store.lengths(numbers).dtype == np.int64
    assert sum(store.source_sizes()) == len(store) and len(set(store.source_sizes())) > 1
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.sequence(77) == expected[77]).all() and len(pickle.dumps(store)) < 500


def test_small_corpora_have_one_shard(tmp_path):
    make_folder(tmp_path / "d", [3] * 40)
    assert sorted(file.name for file in (tmp_path / "d").iterdir()) == [
        *("heldout.lengths", "heldout.rows", "manifest.json", "token_counts.npy"),
        *("train-000.bin", "train.lengths", "train.rows"),
    ]


@pytest.mark.promise("A run opens few files, however large the corpus, and each when it is first used")
def test_files_are_mapped_when_they_are_used_and_read_at_random_places(tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "SHARD_BYTES", 2000)
    make_folder(tmp_path / "d", [20] * 10)
    folder = (tmp_path / "d").resolve()
    store = TokenDataset.open(folder)
    assert len(store.manifest["shards"]["train"]) > 3 and maps_of(folder) == {}
    store.lengths(np.arange(4))
    assert set(maps_of(folder)) == {"train.lengths"}
    store.sequence(0)
    flags = maps_of(folder)
    assert set(flags) == {"train.lengths", "train.rows", "train-000.bin"}
    # "rr": the kernel was told of random access and reads no pages around the one that is asked for
    assert {name for name, found in flags.items() if "rr" in found} == {"train.rows", "train-000.bin"}


def test_who_needs_the_manifest_alone_reads_no_other_file(tmp_path):
    make_folder(tmp_path / "d", [5])
    for file in (tmp_path / "d").iterdir():
        if file.name != "manifest.json":
            file.unlink()
    assert with_prepared_settings(Recipe(), tmp_path / "d").data.sequence_length == 40
    assert text_statistics(tmp_path / "d") == {"characters": {"read": 1}}


@pytest.mark.promise("A damaged token file is named, with the place")
@pytest.mark.parametrize("kind", ["start", "crc"])
def test_a_damaged_row_is_named(tmp_path, kind):
    make_folder(tmp_path / "d", [5])
    file = tmp_path / "d" / "train.rows"
    rows = np.fromfile(file, token_files.ROWS)
    rows[kind][3] ^= rows[kind].dtype.type(1 << 31)
    rows.tofile(file)
    store = TokenDataset.open(tmp_path / "d")
    store.sequence(2)
    with pytest.raises(UserError, match="train.*damaged at .*sequence 3.*prepare the corpus again"):
        store.sequence(3)


@pytest.mark.promise("A damaged token file is named, with the place")
def test_a_damaged_number_of_maskable_tokens_is_named(tmp_path):
    """Every rank counts a batch's tokens by these numbers, so a wrong one would change the losses without a word."""
    make_folder(tmp_path / "d", [5])
    file = tmp_path / "d" / "train.lengths"
    rows = np.fromfile(file, token_files.LENGTHS)
    rows["maskable"][3] += 30
    rows.tofile(file)
    store = TokenDataset.open(tmp_path / "d")
    masker = Masker(store.token_counts, range(5), 4, VOCAB, seed=0)
    collate(store, masker, np.array([2, 4]), 0, CollateSpec(0))
    with pytest.raises(UserError, match="train.lengths: damaged at sequence 3; .*prepare the corpus again"):
        collate(store, masker, np.array([2, 8]), 0, CollateSpec(0))


MISSING = object()


def is_text_of(folder):
    """Ask whether a folder has the tokens of a text, as `prepare` does before it begins."""
    return is_prepared(folder, [], None, Recipe())


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize(
    "key, value",
    [
        *((key, MISSING) for key in ("shards", "dtype", "vocab_size", "sequence_length", "sources")),
        *(("shards", wrong) for wrong in (None, [], {"train": "x"}, {"train": [{}]}, {"train": [], "heldout": []})),
        *[("dtype", "<i8"), ("vocab_size", "x"), ("sources", []), ("format", "two"), ("format", None), (None, [])],
    ],
)
def test_a_manifest_without_sense_is_answered(tmp_path, key, value, former):
    if former:
        former_folder(tmp_path / "d")
    else:
        make_folder(tmp_path / "d", [5])
    file = tmp_path / "d" / "manifest.json"
    manifest = json.loads(file.read_text()) | {key: value} if key else value
    if value is MISSING:
        del manifest[key]
    file.write_text(json.dumps(manifest))
    for read in (TokenDataset.open, text_statistics, convert, is_text_of):
        with pytest.raises(UserError, match="manifest.json: not a valid manifest .*; remove the folder and prepare"):
            read(tmp_path / "d")


@pytest.mark.promise("A token id that is not in the vocabulary is named, with the place")
def test_an_id_beyond_the_vocabulary_is_named(tmp_path):
    """A foreign file may have sound checksums; on a GPU such an id ends the process at some later call."""
    make_folder(tmp_path / "d", [4])
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    store = TokenDataset.open(tmp_path / "d")
    largest = int(max(store.sequence(2)))
    np.save(tmp_path / "d" / "token_counts.npy", np.ones(largest, np.int64))
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest | {"vocab_size": largest}))
    place = 2 * (int(store.lengths([0, 1]).sum()) + int(np.argmax(store.sequence(2))))
    with pytest.raises(UserError, match=rf"-000.bin: token id {largest} at byte {place} \(sequence 2\) is not in the"):
        TokenDataset.open(tmp_path / "d").sequence(2)


def former_folder(folder):
    """Write a folder as the former version did: two files for each piece and split, and no format named."""
    entries, sequences = write_shards(folder, [5, 9, 1], sources=2)
    shards = {"train": [{key: e[key] for key in ("sequences", "tokens", "sha256", "source")} for e in entries]}
    for entry, shard in zip(entries, shards["train"], strict=True):
        shard["file"] = entry["path"].name
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    write_folder(
        folder, entries, sequences, shards=shards | {"heldout": []}, tokenizer_fingerprint="t", fingerprint="f"
    )
    return entries, [ids for parts in sequences for ids in parts]


@pytest.mark.promise("Tokens that an earlier version prepared are refused with the command that converts them")
def test_a_folder_of_the_former_format_is_refused_with_the_command_that_converts_it(tmp_path):
    former_folder(tmp_path / "d")
    for read in (TokenDataset.open, text_statistics):
        with pytest.raises(
            UserError, match=rf"have format 1.* format 2; .*`ds-distill prepare --convert {tmp_path}/d`"
        ):
            read(tmp_path / "d")


@pytest.mark.promise("Tokens that an earlier version prepared are refused with the command that converts them")
def test_conversion_keeps_the_sequences_and_what_else_the_folder_holds(tmp_path):
    entries, sequences = former_folder(tmp_path / "d")
    manifest = convert(tmp_path / "d")
    store = TokenDataset.open(tmp_path / "d")
    assert all((store.sequence(i) == ids).all() for i, ids in enumerate(sequences)) and len(store) == len(sequences)
    assert sorted(file.name for file in (tmp_path / "d").iterdir()) == [
        *("heldout.lengths", "heldout.rows", "manifest.json", "token_counts.npy", "tokenizer"),
        *("train-000.bin", "train.lengths", "train.rows"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    (tmp_path / "n").mkdir()
    (tmp_path / "parts").mkdir()
    again, _ = write_shards(tmp_path / "parts", [5, 9, 1], sources=2)
    fresh = token_files.merge(tmp_path / "n", {"train": again, "heldout": []}, UINT16, "t")
    assert manifest["fingerprint"] == fresh["fingerprint"] != "f"  # as of a corpus that is prepared now
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "d").iterdir()}
    assert convert(tmp_path / "d") == manifest
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "d").iterdir()}


@pytest.mark.parametrize("damage", ["missing", "cut", "fewer tokens"])
def test_a_conversion_that_fails_leaves_the_folder_as_it_was(tmp_path, damage):
    entries, _ = former_folder(tmp_path / "d")
    file = entries[1]["path"].with_suffix(".bin")
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "fewer tokens":
        manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
        manifest["shards"]["train"][1]["tokens"] -= 3
        (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    else:
        file.unlink()
    before = sorted(path.name for path in (tmp_path / "d").iterdir())
    with pytest.raises(UserError, match="part-1.(bin|idx): .*prepare the corpus again"):
        convert(tmp_path / "d")
    assert before == sorted(path.name for path in (tmp_path / "d").iterdir())
    with pytest.raises(UserError, match="manifest.json is missing"):
        convert(tmp_path / "other")
    assert not (tmp_path / ".other.converting").exists()
    shutil.rmtree(tmp_path / ".d.converting")


def test_the_command_converts_alone(tmp_path, capsys):
    former_folder(tmp_path / "d")
    assert main(["prepare", "--convert", str(tmp_path / "d"), "--corpus", "x.txt"]) == 2
    assert "--convert and --corpus: give one of them" in capsys.readouterr().err
    assert (tmp_path / "d" / "part-0.bin").is_file()
