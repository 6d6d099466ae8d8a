"""Masks and order are pure functions of seed and step."""

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_distill.data.batch import compute_cu_seqlens
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.loader import BatchLoader, heldout_batches
from ds_distill.data.masking import IGNORE_INDEX, Masker, masked_count
from ds_distill.data.run_data import with_prepared_settings
from ds_distill.data.shards import ShardWriter
from ds_distill.data.token_files import merge
from ds_distill.data.whole_words import SPACED, Words
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError

VOCAB, LENGTH, SPECIAL, MASK = 100, 32, [0, 1, 2, 3, 4], 4


def make_store(blocks=45, short=10, seed=0, sources=1):
    """Make blocks [CLS] … [SEP] … [SEP], the last one short."""
    ids = np.random.default_rng(seed).integers(5, VOCAB, (blocks, LENGTH))
    ids[:, 0], ids[:, -1] = 2, 3
    ids[::3, 7] = 3  # a separator inside: fewer maskable tokens in every third block
    sequences = list(ids)
    sequences[-1] = np.append(ids[-1, : short - 1], 3) if short < LENGTH else ids[-1]
    return build_store([sequences[i::sources] for i in range(sources)])


def build_store(sources):
    """Make a store whose sources are lists of sequences."""
    folder = Path(tempfile.mkdtemp())
    (folder / "parts").mkdir()
    special = np.isin(np.arange(VOCAB), SPECIAL)
    shards = []
    for number, sequences in enumerate(sources):
        writer = ShardWriter(folder / "parts" / f"train-{number}", special, np.dtype(np.uint16))
        writer.add(sequences)
        shards.append(writer.close() | {"path": writer.stem, "source": number})
    np.save(
        folder / "token_counts.npy",
        np.bincount(np.concatenate([ids for part in sources for ids in part]), minlength=VOCAB),
    )
    manifest = {
        **merge(folder, {"train": shards}, np.dtype(np.uint16), "a tokenizer"),
        "sources": [{"sequences": {"train": len(sequences)}} for sequences in sources],
        "dtype": "uint16",
        "vocab_size": VOCAB,
        "sequence_length": LENGTH,
        "pad_id": 0,
        "sep_id": 3,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return TokenDataset.open(folder)


def make_masker(store, seed=1):
    return Masker(store.token_counts, SPECIAL, MASK, VOCAB, seed)


def order(store, *, micro=2, rank=0, world=1, batch=8, seed=1, **options):
    return BatchLoader(
        store,
        make_masker(store, seed),
        seed=seed,
        global_batch_size=batch,
        micro_batch_size=micro,
        rank=rank,
        world_size=world,
        **options,
    )


def test_every_block_masks_exactly_its_count_and_no_special():
    store = make_store()
    masker = make_masker(store)
    for block in range(len(store)):
        ids = store.sequence(block)
        inputs, labels = masker.mask(ids, epoch=0, block=block)
        maskable = ~np.isin(ids, SPECIAL)
        chosen = labels != IGNORE_INDEX
        assert chosen.sum() == round(0.15 * maskable.sum()) == masker.masked_counts(store.maskable([block]))[0]
        assert not (chosen & ~maskable).any()
        assert (labels[chosen] == ids[chosen]).all() and (inputs[~chosen] == ids[~chosen]).all()
        assert inputs.dtype == labels.dtype == np.int64
    masker_counts = Masker(np.ones(2), [0], 0, 2, 0).masked_counts(np.arange(1, 601))
    assert masker_counts.tolist() == [masked_count(n) for n in range(1, 601)]


def test_a_block_without_enough_tokens_masks_none():
    store = make_store()
    inputs, labels = make_masker(store).mask(np.array([2, 9, 3, 0]), epoch=0, block=0)
    assert inputs.tolist() == [2, 9, 3, 0] and (labels == IGNORE_INDEX).all()


def test_masks_of_single_tokens_are_the_same_for_ever():
    """A run that resumes after an update must draw the masks that it would have drawn before."""
    counts, digest = np.arange(1000) ** 2 % 977, hashlib.sha256()
    for seed, probability, smoothing in ((0, 0.15, 0.7), (7, 0.3, 0.0)):
        masker = Masker(counts, SPECIAL, MASK, 1000, seed, probability, smoothing)
        for block in range(5):
            for epoch in (0, 1, 2**31):
                for part in masker.mask((np.arange(64 + block) * 37 + block) % 1000, epoch=epoch, block=block):
                    digest.update(part.astype("<i8").tobytes())
    assert digest.hexdigest() == "3091beadaaa18aa8256798bbb9a089d28f2484ebeacc4833ae164d7fa1aeac6e"


def test_eighty_ten_ten():
    rng = np.random.default_rng(0)
    masker = Masker(np.ones(10_000, np.int64), SPECIAL, MASK, 10_000, 5)
    kept = masked = total = 0
    drawn = []
    for block in range(300):
        ids = rng.integers(5, 10_000, 512)
        inputs, labels = masker.mask(ids, epoch=0, block=block)
        at = labels != IGNORE_INDEX
        total += at.sum()
        masked += (inputs[at] == MASK).sum()
        kept += (inputs[at] == labels[at]).sum()
        drawn.extend(inputs[at & (inputs != MASK) & (inputs != ids)])
    assert masked / total == pytest.approx(0.8, abs=0.01)  # 2.5 % of 23,100, about four standard deviations
    assert kept / total == pytest.approx(0.1, abs=0.01)
    assert len(drawn) / total == pytest.approx(0.1, abs=0.01)
    assert min(drawn) >= 5 and np.mean(drawn) == pytest.approx(5000, rel=0.06)


def test_rare_tokens_are_preferred_by_count_to_the_minus_smoothing():
    counts = np.full(VOCAB, 1000)
    counts[50:] = 10
    masker = Masker(counts, SPECIAL, MASK, VOCAB, 0)
    ids = np.array([10] * 500 + [60] * 500)
    # Drawing few without replacement is nearly drawing with it: the odds are (1000/10)^0.7 = 25.
    masker.probability = 0.005
    labels = np.concatenate([masker.mask(ids, epoch=0, block=b)[1] for b in range(1000)])
    rare, common = (labels == 60).sum(), (labels == 10).sum()
    assert rare / common == pytest.approx(100**0.7, rel=0.3)


def test_masks_depend_on_seed_epoch_and_block_and_nothing_else():
    store = make_store()
    masker, ids = make_masker(store), store.sequence(0)
    first = [masker.mask(ids, epoch=e, block=b) for e in range(3) for b in range(3)]
    again = [make_masker(store).mask(ids, epoch=e, block=b) for e in reversed(range(3)) for b in reversed(range(3))][
        ::-1
    ]
    assert all((x == y).all() for one, two in zip(first, again, strict=True) for x, y in zip(one, two, strict=True))
    assert len({labels.tobytes() for _, labels in first}) == 9
    assert (make_masker(store, seed=2).mask(ids, epoch=0, block=0)[1] != first[0][1]).any()


def test_batches_are_the_same_at_every_world_size_and_micro_batch():
    store = make_store(short=LENGTH)

    def union(step, world, micro):
        rows = {}
        for rank in range(world):
            batches = order(store, micro=micro, rank=rank, world=world)
            assert len(batches.micro_batches(step)) == batches.accumulation == 8 // (micro * world)
            for m, batch in enumerate(batches.micro_batches(step)):
                assert (
                    batch.input_ids.shape == (micro, LENGTH)
                    and batch.input_ids.dtype == batch.labels.dtype == torch.long
                )
                for j in range(micro):
                    rows[(m * world + rank) * micro + j] = (batch.input_ids[j].tolist(), batch.labels[j].tolist())
        return [rows[i] for i in range(8)]

    for step in (0, 4, 7):
        reference = union(step, 1, 8)
        for world, micro in ((1, 1), (1, 2), (2, 1), (2, 4), (4, 1), (4, 2)):
            assert union(step, world, micro) == reference


def test_counts_are_what_the_batches_hold():
    store = make_store(blocks=40)
    padded = 0
    for step in range(5):
        real = masked = 0
        for rank in range(2):
            for batch in order(store, rank=rank, world=2).micro_batches(step):
                mask = batch.token_mask
                padded += mask is not None
                assert (batch.input_ids == 0).any() == (mask is not None)
                real += batch.input_ids.numel() if mask is None else int(mask.sum())
                masked += int((batch.labels != IGNORE_INDEX).sum())
        assert order(store, world=2).counts(step) == (real, masked, 0)
    assert padded == 1  # the epoch uses every block, and the short one once


def test_an_epoch_is_a_permutation_and_the_next_another():
    store = make_store()
    batches = order(store)
    assert batches.steps_per_epoch == 5  # five of the 45 blocks are left out
    first, second = (np.concatenate([batches.get_indices(s) for s in steps]) for steps in (range(5), range(5, 10)))
    assert len(set(first)) == len(set(second)) == 40
    assert (first != second).any() and (order(store, seed=2).get_indices(0) != batches.get_indices(0)).any()
    assert (order(store).get_indices(7) == batches.get_indices(7)).all() and batches.epoch(7) == 1


def test_impossible_batches_are_refused_with_the_numbers():
    store = make_store()
    with pytest.raises(UserError, match="45 sequences are fewer than one global batch of 64"):
        order(store, batch=64)
    with pytest.raises(UserError, match="rank 2 of 2"):
        order(store, rank=2, world=2)


def test_heldout_masks_never_change_and_cover_every_block():
    store = make_store(blocks=10)
    one, two = list(heldout_batches(store, make_masker(store), 4)), list(heldout_batches(store, make_masker(store), 3))
    assert [len(b.labels) for b in one] == [4, 4, 2]
    assert torch.equal(
        torch.cat([b.labels[b.labels >= 0] for b in one]), torch.cat([b.labels[b.labels >= 0] for b in two])
    )
    assert one[0].token_mask is None and one[-1].token_mask.sum() == LENGTH + 10
    assert sum(len(b.labels) for b in heldout_batches(store, make_masker(store), 4, max_sequences=5)) == 5
    few = list(heldout_batches(store, make_masker(store), 2, max_sequences=2))[
        0
    ]  # from both halves, with their usual masks
    assert torch.equal(few.labels[1], one[1].labels[1])
    moved = one[-1].to("cpu")
    assert torch.equal(moved.token_mask, one[-1].token_mask)
    mask_id = make_masker(store).mask_id
    assert torch.equal(moved.shows_mask, moved.input_ids == mask_id) and moved.shows_mask.any()


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_ranks_share_the_heldout_batches(world, documents):
    store = make_store(blocks=10)
    options = {"document_masking": documents}
    whole = list(heldout_batches(store, make_masker(store), 3, **options))
    shares = [
        list(heldout_batches(store, make_masker(store), 3, **options, rank=rank, world_size=world))
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1, "equal numbers of calls"
    in_order = [share[number] for number in range(len(shares[0])) for share in shares]
    for one, other in itertools.zip_longest(whole, in_order):
        for key, value in vars(one or other).items():
            if one is not None:
                assert value is None or torch.equal(value, getattr(other, key))
        if one is None:
            assert other.labels.shape[0] == 1 and (other.labels < 0).all()
            assert other.attention_mask is None or len(other.attention_mask) == 1


def test_weights_say_how_often_an_epoch_sees_a_source():
    store = make_store(blocks=60, short=LENGTH, sources=3)  # 20 each
    batches = order(store, weights=[2, 0.5, 1])
    assert batches.order.entries == 70 and batches.steps_per_epoch == 8
    entries = np.concatenate([batches.get_indices(step) for step in range(8)])
    assert len(set(entries)) == 64  # a copy of a sequence is an entry of its own, with its own masks
    seen = np.bincount(entries % 60 // 20, minlength=3)
    assert abs(seen - np.array([40, 10, 20])).max() <= 6  # the last step leaves out six entries
    twice = [e for e in entries if e >= 60]
    assert twice and all(e % 60 < 20 for e in twice)
    halves = [
        {int(e) for step in range(8 * epoch, 8 * epoch + 8) for e in batches.get_indices(step) if 20 <= e < 40}
        for epoch in (0, 1)
    ]
    assert halves[0] != halves[1]
    assert (order(store, weights=[1, 1, 1]).get_indices(3) == order(store).get_indices(3)).all()
    for wrong in ([1, 1], [1, 1, -1]):
        with pytest.raises(UserError, match="one number, at least 0, for each of the corpus's 3 sources"):
            order(store, weights=wrong)


def ragged_store(count=2000):
    lengths = np.random.default_rng(0).integers(12, 33, count)
    return build_store([[np.concatenate(([2], np.full(n - 2, 50), [3])) for n in lengths]])


def test_grouped_batches_waste_little_on_padding_and_are_the_same_for_every_rank():
    store = ragged_store()
    batches = order(store, batch=16, micro=4, world=2, by_length=True)
    other = order(store, batch=16, micro=4, world=2, rank=1, by_length=True)
    entries = np.concatenate([batches.get_indices(step) for step in range(125)])
    assert (
        sorted(entries) == list(range(2000))
        and (entries == np.concatenate([other.get_indices(step) for step in range(125)])).all()
    )
    lengths = store.lengths(entries).reshape(-1, 4)
    assert lengths.sum() / (lengths.max(1) * 4).sum() > 0.97
    firsts = store.lengths(entries.reshape(-1, 16)[:, 0])
    assert (np.diff(firsts) < 0).any() and (np.diff(firsts) > 0).any()  # batches do not come sorted
    first_batch, second_batch = batches.micro_batches(3)[0], other.micro_batches(3)[0]
    assert abs(first_batch.input_ids.shape[1] - second_batch.input_ids.shape[1]) <= 1  # no rank waits for a longer one
    real, masked, clean = batches.counts(3)
    assert clean == 0
    every = [b for rank in (batches, other) for b in rank.micro_batches(3)]
    assert real == sum(int((b.input_ids != 0).sum()) for b in every) and masked == sum(
        int((b.labels != IGNORE_INDEX).sum()) for b in every
    )


def test_documents_of_a_block_do_not_see_each_other():
    store = build_store([[np.array([2, 10, 11, 3, 12, 13, 3]), np.array([2, 14, 3])]])
    batch = next(heldout_batches(store, make_masker(store), 2, document_masking=True))
    sees = batch.attention_mask
    assert sees.shape == (2, 1, 7, 7) and sees.dtype == torch.bool
    assert sees[0, 0].int().tolist() == [[1, 1, 1, 1, 0, 0, 0]] * 4 + [[0, 0, 0, 0, 1, 1, 1]] * 3
    assert (
        sees[1, 0].int().tolist() == [[1, 1, 1, 0, 0, 0, 0]] * 3 + [[1, 0, 0, 0, 0, 0, 0]] * 4
    )  # padding sees [CLS], but nothing sees padding
    assert next(heldout_batches(store, make_masker(store), 2)).attention_mask.shape == (2, 7)


def test_whole_words_are_masked_together_and_the_count_is_exact():
    continues = np.zeros(VOCAB, bool)
    continues[60:] = True
    masker = Masker(
        np.full(VOCAB, 100), SPECIAL, MASK, VOCAB, 0, words=Words(np.where(continues, 0, SPACED).astype(np.uint8))
    )
    ids = np.array([2] + [20, 60, 61, 30, 40, 62] * 20 + [3])
    word = np.array(
        [-1] + [x for i in range(20) for x in (3 * i, 3 * i, 3 * i, 3 * i + 1, 3 * i + 2, 3 * i + 2)] + [-1]
    )
    masked_words = 0
    for block in range(50):
        _, labels = masker.mask(ids, epoch=0, block=block)
        chosen = labels != IGNORE_INDEX
        assert chosen.sum() == round(0.15 * 120)
        parts = [chosen[word == w] for w in set(word[chosen])]
        assert sum(not part.all() for part in parts) <= 1  # only the last word may be cut short
        masked_words += len(parts)
    assert masked_words < 50 * 12  # single tokens would spread over about 16 words


@pytest.mark.promise("A damaged token file is named, with the place")
def test_a_flipped_bit_is_named_with_file_and_offset():
    store = make_store(blocks=10)
    file = store.path / "train-000.bin"
    data = bytearray(file.read_bytes())
    data[3 * LENGTH * 2 + 5] ^= 1
    file.write_bytes(data)
    damaged = TokenDataset.open(store.path)
    damaged.sequence(2)
    with pytest.raises(UserError, match=r"train-000.bin: damaged at byte 192 \(checksum of sequence 3\)"):
        damaged.sequence(3)


def test_where_documents_start():
    store = build_store([[np.array([2, 10, 11, 3, 12, 13, 3]), np.array([2, 14, 3])]])
    starts = next(heldout_batches(store, make_masker(store), 2, document_masking=True)).cu_seqlens
    assert (
        starts.dtype == torch.int32 and starts.tolist() == [0, 4, 7, 10] + [14] * 60
    )  # the padding of the second is a document too
    many = np.arange(200).reshape(2, 100)
    assert compute_cu_seqlens(many).tolist() == [*range(200)] + [200] * 56
    assert next(heldout_batches(store, make_masker(store), 2)).cu_seqlens is None


def test_a_recipe_tells_what_prepared_tokens_were_made_with(capsys):
    store = make_store()
    used = {"mode": "lines", "sequence_length": 48, "heldout_fraction": 0.25}
    (store.path / "manifest.json").write_text(json.dumps(store.manifest | used))
    recipe = Recipe()
    told = with_prepared_settings(recipe, store.path)
    assert {key: getattr(told.data, key) for key in used} == used and recipe.data.heldout_fraction == 0.02
    assert "data.heldout_fraction = 0.02: ignored" in capsys.readouterr().err
    recipe.data.heldout_fraction = 0.25
    assert recipe.identity() == Recipe().identity(), "the data's fingerprint tells it"
