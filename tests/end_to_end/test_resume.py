"""A run that is killed resumes as if nothing had happened.

Losses, weights and logs are the same, bit for bit.
"""

import itertools
import json
import os
import random
import shutil
import signal
import time
import zlib
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ds_distill.compression.prune_model import prune_model
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import LayerShape, layer_shapes
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from tests.end_to_end.test_faults import assert_same_weights
from tests.start import Process, start_ranks, wait_for

QUICK = [(1, "fp32", 2)]
EVERY = list(itertools.product((0, 1, 2, 3), ("fp32", "bf16"), (1, 2)))
STEPS = 40
OF_THE_MACHINE = (
    "tokens_per_second",
    "data_wait_share",
    "peak_memory_gib",
    "checkpoint/",
    "ranks/",
)  # all other logs depend on the run alone


class Job:
    """The ranks of a run, started with the same command each time."""

    def __init__(self, world: Path, output: Path, ranks: int, *options):
        self.output, self.ranks = output, ranks
        self.arguments = [
            "distill",
            "--teacher",
            world / "teacher",
            "--corpus",
            world / "text.txt",
            "--output",
            output,
            "--data.sequence_length",
            32,
            "--data.heldout_fraction",
            0.05,
            "--training.global_batch_size",
            8,
            "--training.micro_batch_size",
            2,
            "--training.dropout",
            0.1,
            "--training.max_tokens",
            256 * STEPS,
            "--training.eval_every",
            7,
            *options,
        ]
        self.processes: list[Process] = []
        self._seen: set[str] = set()

    def start(self) -> list[Process]:
        self.processes = start_ranks(self.ranks, "ds_distill", *self.arguments)
        return self.processes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()

    def finish(self) -> dict:
        try:
            results = [process.wait() for process in self.processes or self.start()]
        finally:
            self.kill()
            self.processes = []
        for done in results:
            assert done.returncode == 0 and "damaged" not in done.stderr, done.stderr[-3000:]
        return json.loads(results[0].stdout.splitlines()[-1])

    @property
    def ended(self) -> bool:
        """Return whether a rank has ended."""
        return any(process.poll() is not None for process in self.processes)

    @property
    def seen(self) -> set[str]:
        """Return the names of all checkpoints that were there at any of the calls."""
        self._seen |= {path.name for path in self.published}
        return self._seen

    @property
    def published(self) -> list[Path]:
        return sorted((self.output / "checkpoints").glob("step-*"))


def shape(stage: int, precision: str) -> list:
    return ["--training.deepspeed", f"ds_configs/deepspeed/zero{stage}.json", "--training.precision", precision]


def logs(output: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not any(word in tag for word in OF_THE_MACHINE)
    }


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    assert json.loads((one / "curves.json").read_text()) == json.loads((other / "curves.json").read_text())
    assert logs(one) == logs(other)


@pytest.mark.promise(
    "Killed at any moment and started again, a run ends bit-equal: "
    "losses, weights, learning rate, held-out history, TensorBoard"
)
@pytest.mark.parametrize(
    "stage, precision, ranks", [pytest.param(*case, marks=() if case in QUICK else pytest.mark.long) for case in EVERY]
)
def test_killed_at_any_moment(world, tmp_path, record_property, stage, precision, ranks):
    quick = {"steps": 20, "attempts": 1} if (stage, precision, ranks) in QUICK else {}
    kill_and_compare(world, tmp_path, record_property, ranks, shape(stage, precision), **quick)


def seeded_random(record_property) -> random.Random:
    """Return numbers that differ from one run of the tests to the next, and can be had again by the seed."""
    seed = random.randrange(2**32)
    record_property("seed", seed)
    return random.Random(seed)


def kill_and_compare(
    world, tmp_path, record_property, ranks: int, options: list, *, steps: int = STEPS, attempts: int = 2
) -> None:
    """Kill a run up to `attempts` times, start it again, and compare its result with an undisturbed one's."""
    options = [*options, "--training.max_tokens", 256 * steps]
    undisturbed = Job(world, tmp_path / "undisturbed", ranks, *options)
    undisturbed.finish()
    job, kills = Job(world, tmp_path / "killed", ranks, *options, "--training.save_every", 3), 0
    draw = seeded_random(record_property)
    for attempt in range(attempts):
        ranks_of_job = job.start()
        # Checkpoints until the kill do not depend on how busy the machine is, as a time would.
        extra = draw.randint(0, 3)
        goal = len(job.seen) + extra
        # The goal may lie beyond the run's end.
        wait_for(lambda goal=goal: len(job.seen) >= goal or job.ended, *ranks_of_job)
        if attempt:  # the first kill comes at once, before a fast machine is through
            time.sleep(draw.uniform(0, 0.5) if extra else draw.uniform(0, 5))
        kills += ranks_of_job[0].poll() is None
        job.kill()
    if not kills:  # a busy machine has kept this process waiting until the run was through
        shutil.rmtree(job.output)
        job.processes = start_ranks(ranks, "tests.end_to_end.interrupted_worker", "SIGKILL", "step", 5, *job.arguments)
        assert job.processes[-1].wait().returncode == -signal.SIGKILL
        job.kill()
        kills = 1
    job.processes = []
    summary = job.finish()
    assert kills > 0 and summary["steps"] == steps
    assert [step for step, _ in logs(job.output)["loss/total"]] == list(range(1, steps + 1)), "each step once"
    assert_same_run(job.output, undisturbed.output)
    record_property("kills", kills)


TERMS = {
    "relation": "{loss: relation, of: [query, key, value, query_key], layers: [[1, 2]], heads: 4}",
    "attention": "{loss: attention, layers: uniform}",
    "hidden": "{loss: mse, of: [embeddings, hidden], layers: span_ends, normalize: true}",
    "cosine": "{loss: cosine, of: embeddings, normalize: true}",
}
# a layer that runs twice, in factors
SHARED = ["--student.num_hidden_groups", 1, "--student.embedding_size", 8, "--student.linear_rank", 4]
NARROW = ["--student.hidden_size", 16]  # a projection between the widths is trained, too


@pytest.mark.promise("Killed and started again, a run with any term of losses.match ends bit-equal")
@pytest.mark.parametrize(
    ("terms", "options"),
    [
        (["relation", "hidden"], [*shape(1, "fp32"), *NARROW, *SHARED]),
        *(
            pytest.param([term], [*shape(stage, precision), *narrow], marks=pytest.mark.long)
            for term in TERMS
            for stage, precision in ((0, "fp32"), (2, "bf16"), (3, "fp32"))
            for narrow in ([],) + ((NARROW,) if term != "attention" else ())
        ),
    ],
)
def test_killed_with_terms_between_what_lies_inside(world, tmp_path, record_property, terms, options):
    """Its documents do not see each other."""
    written = f"[{', '.join(TERMS[term] for term in terms)}]"
    options = [*options, "--losses.match", written, "--data.attend_across_documents", "false"]
    kill_and_compare(world, tmp_path, record_property, 2, options, steps=12, attempts=1)


@pytest.mark.promise("A student of pruned layers that is killed and started again ends bit-equal")
@pytest.mark.long
@pytest.mark.parametrize("stage, precision", [(3, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32")])
def test_killed_with_pruned_layers(world, tmp_path, record_property, stage, precision):
    teacher = find_model_folder(str(world / "teacher"))
    model = load_masked_lm(teacher)
    full = layer_shapes(model.config)
    prune_model(model, [LayerShape(1, shape.feed_forward // 3) for shape in full[:-1]] + [LayerShape(0, 0)], "first")
    save_model_folder(model, teacher.tokenizer, tmp_path / "pruned")
    options = ["--student.from", tmp_path / "pruned", "--losses.match", "[{loss: mse, of: hidden, layers: uniform}]"]
    kill_and_compare(world, tmp_path, record_property, 2, [*shape(stage, precision), *options], steps=12, attempts=1)
    export = load_masked_lm(str(tmp_path / "killed"))
    assert layer_shapes(export.config) == layer_shapes(model.config)


def born(folder: Path) -> int:
    """Return when a folder was made, in ns, or 0 if there is none."""
    try:
        return folder.stat().st_ctime_ns if folder.is_dir() else 0
    except FileNotFoundError:
        return 0


def entries_in(folder: Path) -> int:
    """Return how many files and folders are in a folder, or -1 if it is gone."""
    try:
        return len(list(folder.rglob("*"))) if folder.is_dir() else -1
    except FileNotFoundError:
        return -1


def assert_sound(checkpoint: Path) -> None:
    for name, (size, crc) in json.loads((checkpoint / "manifest.json").read_text())["files"].items():
        content = (checkpoint / name).read_bytes()
        assert (len(content), zlib.crc32(content)) == (size, crc), checkpoint / name


@pytest.mark.promise("A checkpoint is complete or absent, whenever its writing is killed")
@pytest.mark.parametrize("wanted", [2, pytest.param(20, marks=pytest.mark.long)])
def test_killed_while_a_checkpoint_is_written(world, tmp_path, record_property, wanted):
    usual = [*shape(2, "fp32"), "--training.max_tokens", 256 * (20 if wanted == 2 else STEPS)]
    undisturbed = Job(world, tmp_path / "undisturbed", 2, *usual)
    undisturbed.finish()
    options = [*usual, "--training.save_every", 1, "--training.save_total_limit", 1]
    job, draw, kills, seen = Job(world, tmp_path / "killed", 2, *options), seeded_random(record_property), 0, set()
    had = 0  # published checkpoints; after the first, there must always be one
    partial = job.output / "checkpoints" / ".partial"
    while kills < wanted:
        left, killed = born(partial), False  # `left` comes from the previous kill
        ranks = job.start()
        while not killed:
            enough = draw.randint(0, 7)  # may exceed the entries: then after the last byte, before the rename
            wait_for(lambda left=left: born(partial) not in (0, left), *ranks, pause=0.001)
            until = time.monotonic() + 1
            while 0 <= entries_in(partial) < enough and time.monotonic() < until:
                pass
            for rank in ranks:
                rank.signal(signal.SIGSTOP)
            if born(partial):  # the ranks have stopped in the middle of the write
                seen.add(entries_in(partial))
                job.kill()
                killed = True
            else:
                for rank in ranks:
                    rank.signal(signal.SIGCONT)
        kills += 1
        for checkpoint in job.published:
            assert_sound(checkpoint)
        assert len(job.published) >= had, "none was deleted before the next was whole"
        had = min(1, len(job.published))
    job.processes = []
    job.finish()
    assert wanted < 20 or len(seen) > 1, "killed at different moments of the write"
    assert_same_run(job.output, undisturbed.output)
    record_property("kills", kills)


@pytest.mark.promise("SIGTERM saves and exits, also within a held-out evaluation; the same command resumes, bit-equal")
@pytest.mark.parametrize("precision, compiled", [("fp32", "off"), pytest.param("bf16", "on", marks=pytest.mark.long)])
def test_asked_to_end(world, tmp_path, precision, compiled):
    options = [*shape(1, precision), "--training.compile", compiled]
    undisturbed = Job(world, tmp_path / "undisturbed", 2, *options)
    undisturbed.finish()
    job = Job(world, tmp_path / "asked", 2, *options, "--training.save_every", 1000)
    job.processes = start_ranks(2, "tests.end_to_end.interrupted_worker", "SIGTERM", "step", 2, *job.arguments)
    results = [rank.wait() for rank in job.processes]  # one rank is asked, which is enough
    assert [done.returncode for done in results] == [75, 75]
    assert "".join(done.stderr for done in results).count("the same command resumes from") == 1
    assert len(job.published) == 1
    done = int(job.published[0].name.removeprefix("step-"))
    for steps in sorted({min((done // 7 + 1) * 7, STEPS), STEPS}):  # within the next evaluation, and within the last
        job.processes = start_ranks(
            2, "tests.end_to_end.interrupted_worker", "SIGTERM", "evaluation", steps, *job.arguments
        )
        assert [rank.wait().returncode for rank in job.processes] == [75, 75]
        assert job.published[-1].name == f"step-{steps:09d}"
    job.processes = []
    job.finish()
    assert_same_run(job.output, undisturbed.output)


def resident(pid: int) -> int:
    """Return the bytes that a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
@pytest.mark.promise(
    "A long run's memory and file handles stay flat (within 1 %), and kills leave no trace in its result"
)
def test_soak(world, tmp_path, record_property):
    steps, options = (
        4000,
        ["--training.max_tokens", 256 * 4000, "--training.eval_every", 500, "--training.save_every", 100],
    )
    undisturbed = Job(world, tmp_path / "undisturbed", 1, *shape(1, "fp32"), *options)
    (process,) = undisturbed.start()
    rows = []
    while process.poll() is None:
        if (undisturbed.output / "checkpoints" / "step-000000100").exists() or rows:
            try:
                rows.append((resident(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))))
            except OSError:
                break
        time.sleep(0.2)
    assert undisturbed.finish()["steps"] == steps
    rows = rows[: -len(rows) // 20]  # the last is the export
    quarter = len(rows) // 4
    early, late = (
        [sorted(column)[quarter // 2] for column in zip(*part, strict=True)]
        for part in (rows[quarter : 2 * quarter], rows[-quarter:])
    )
    assert late[0] <= 1.01 * early[0] and late[1] <= early[1], (early, late)
    job, draw, kills = Job(world, tmp_path / "killed", 1, *shape(1, "fp32"), *options), random.Random(), 0
    while kills < 10:
        (process,) = job.start()
        newest, extra = int(job.published[-1].name.removeprefix("step-")) if job.published else 0, draw.randint(1, 5)
        if newest + 100 * (extra + 1) > steps:
            break
        goal = job.output / "checkpoints" / f"step-{newest + 100 * extra:09d}"
        wait_for(goal.is_dir, process)
        time.sleep(draw.uniform(0, 3))
        job.kill()
        kills += 1
    job.processes = []
    job.finish()
    assert_same_run(job.output, undisturbed.output)
    record_property("steps", steps)
    record_property("kills", kills)
    record_property("memory grown by %", round(100 * (late[0] / early[0] - 1), 2))
