"""An output folder belongs to one run, and to one job at a time; the job's first rank writes for all."""

import contextlib
import functools
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds_distill.config.renamed import read_identity
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import StoredSummary, read_json_object, read_summary, write_json
from ds_distill.utils.lease import LEASE, FolderLock

_locks: dict[Path, FolderLock] = {}  # those that this process holds


@dataclass(frozen=True)
class RunFolder:
    """The output folder of a run, and the names of everything in it."""

    path: Path

    @property
    def identity(self) -> Path:
        """The settings that make two runs different; it binds the folder to one run."""
        return self.path / "run.json"

    @property
    def lock(self) -> Path:
        """The file that the job in progress has locked."""
        return self.path / ".lock"

    @property
    def tokens(self) -> Path:
        """The prepared tokens of the corpus, where the run has made them."""
        return self.path / "tokens"

    @property
    def heldout(self) -> Path:
        """A folder of prepared tokens for each further held-out text."""
        return self.path / "heldout"

    @property
    def model(self) -> Path:
        """The config and the tokenizer of the trained model, from which a checkpoint can be exported."""
        return self.path / "model"

    @property
    def provenance(self) -> Path:
        """What the model is made of, for the model cards of its exports."""
        return self.model / "provenance.json"

    @property
    def checkpoints(self) -> Path:
        """A folder for each checkpoint."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """The event files."""
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """What the other trackers write, and the ids under which they know the run."""
        return self.path / "trackers"

    @property
    def curves(self) -> Path:
        """The figures of every step and every evaluation, once the run is finished."""
        return self.path / "curves.json"

    @property
    def record(self) -> Path:
        """The command, versions, hardware and date of the finished run."""
        return self.path / "record.json"

    @property
    def plot(self) -> Path:
        """The plot of these curves."""
        return self.path / "loss.png"

    @property
    def export(self) -> Path:
        """The trained model, as a Hugging Face folder."""
        return self.path / "export"

    @property
    def summary(self) -> Path:
        """The figures of the finished run."""
        return self.path / "summary.json"

    def check_lock(self) -> None:
        """Raise UserError where this process had the folder's lock, and another job has taken it over."""
        if self.path in _locks:
            _locks[self.path].check()

    def has_model(self) -> bool:
        """Return whether a run has saved its model's config and tokenizer."""
        return (self.model / "config.json").is_file()


# "auto" may resolve to the same value as before. A checkpoint records the value, and refuses
# another.
AUTO_RESOLVED_KEYS = ("training.precision", "training.optimizer")
# Settings of a run's length. A run resumes when one of them grows; its learning rate then follows the longer schedule.
LENGTH_KEYS = ("training.max_tokens", "training.epochs")


@contextlib.contextmanager
def locked_run_folder(
    output: Path,
    identity: dict,
    resume: str = "auto",
    remedy: str = "choose another --output",
    first: Callable | None = None,
    can_grow: bool = False,
):
    """Collective: bind `output` to one run, and to this job while it lasts.

    Args:
        output: The output folder.
        identity: The settings that make two runs different.
        resume: The recipe's training.resume.
        remedy: The end of error messages.
        first: Called before anything is compared, for example to empty the folder.
        can_grow: Whether the run in the folder may have been shorter, by LENGTH_KEYS.

    Raises:
        UserError: The folder holds another run (the message names the difference), another job is
            using it, or it cannot be written.
    """
    # imported here because it loads DeepSpeed, which a lone process need not wait for
    from ds_distill.distributed.process_group import all_gather_object, run_on_rank0, start_distributed

    start_distributed()
    ranks = all_gather_object(identity)
    for rank, rank_identity in enumerate(ranks):
        if changed := _changed(ranks[0], rank_identity):
            raise UserError(
                f"rank {rank} was started with another run than rank 0 ({changed}); "
                "every host needs the same recipe, teacher and tokens"
            )
    with contextlib.ExitStack() as lock:
        run_on_rank0(lambda: _bind(output, identity, lock, resume, remedy, first, can_grow))
        check_shared(RunFolder(output).identity)
        yield


@contextlib.contextmanager
def locked_run_folder_alone(output: Path, identity: dict, remedy: str = "choose another --output"):
    """Do as `locked_run_folder` does, for a process that is no rank of a job."""
    with contextlib.ExitStack() as lock:
        _bind(output, identity, lock, "auto", remedy, None, False)
        yield


def _bind(
    output: Path,
    identity: dict,
    lock: contextlib.ExitStack,
    resume: str,
    remedy: str,
    first: Callable | None,
    can_grow: bool,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    _locks[output] = lock.enter_context(FolderLock(output))
    lock.callback(_locks.pop, output)
    if first:
        first()
    before = run_in(output, remedy)
    if before is None:
        write_json(RunFolder(output).identity, identity)
        lock.push(functools.partial(_release_unused, output))
        return
    grown = longer_by(before, identity) if can_grow else {}
    _check_same(output, before | grown, identity, resume, remedy)
    for key, value in grown.items():
        log(f"{output}: {key} was {before[key]}, is {value}: the run continues at the learning rates of the longer one")
    if grown:
        write_json(RunFolder(output).identity, before | grown)


def _release_unused(output: Path, kind: type[BaseException] | None, *_: object) -> None:
    """Leave no claim on a folder where a mistake was found before anything was made: the corrected run is another."""
    if kind is None or not issubclass(kind, UserError):
        return
    folder = RunFolder(output)
    made = [file for file in output.iterdir() if file not in (folder.identity, folder.lock)]
    if all(file.name.startswith(LEASE) for file in made):
        with contextlib.suppress(UserError):  # another job has taken the folder over
            folder.check_lock()
            folder.identity.unlink(missing_ok=True)


def check_run_identity(output: Path, identity: dict, resume: str) -> None:
    """Raise UserError where `output` holds another run, judged by the part of its identity that is known so far.

    `locked_run_folder` would find the same later.
    """
    before = run_in(output, "choose another --output")
    if before is not None:
        known = {key: before.get(key) for key in identity} | longer_by(before, identity)
        _check_same(output, known, identity, resume, "choose another --output")


def run_in(output: Path, remedy: str) -> dict | None:
    """Return the identity of the run in a folder, if there is one."""
    file = RunFolder(output).identity
    if not file.is_file() and (output / "config.json").is_file():
        raise UserError(f"{output} holds a model, not a run: {remedy}")
    try:
        return read_identity(read_json_object(file)) if file.is_file() else None
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): {remedy}") from error


def _check_same(output: Path, before: dict, identity: dict, resume: str, remedy: str) -> None:
    if changed := _changed(before, identity):
        raise UserError(f"{output} holds another run ({changed}): {remedy}")
    if resume == "never":
        raise UserError(f"{output} holds this run already; training.resume = auto resumes it")


def longer_by(before: dict, now: dict) -> dict:
    """Return the settings of a run's length that have grown from one identity to another, with their new values."""
    return {key: now[key] for key in LENGTH_KEYS if before.get(key) and now.get(key) and now[key] > before[key]}


def _changed(before: dict, now: dict) -> str:
    """Return in words what makes two identities two runs; empty where they are the same."""
    keys = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    keys = [key for key in keys if not (key in AUTO_RESOLVED_KEYS and "auto" in (before.get(key), now.get(key)))]
    return "; ".join(f"{key} was {before.get(key)}, is {now.get(key)}" for key in keys[:3])


def read_finished(output: Path, result: Path, **places: Path) -> StoredSummary | None:
    """Return the summary of a job that has nothing left to do, and say so; None where it is not finished.

    Args:
        output: The job's folder. It may have been moved since, so the summary gets its path of now.
        result: The file without which the job is not finished, whatever its summary says.
        **places: Further paths that the summary has, by their keys.
    """
    summary = read_summary(output)
    if summary is None or not result.is_file():
        return None
    log(f"{output}: finished before, nothing to do")
    return StoredSummary(summary | {key: str(place) for key, place in ({"output": output} | places).items()})


def check_shared(file: Path) -> None:
    """Collective: raise UserError where a rank's host does not see what the first rank wrote."""
    from ds_distill.distributed.process_group import all_gather_object

    deadline = time.monotonic() + 30  # a network file system may take that long
    while not file.is_file() and time.monotonic() < deadline:
        time.sleep(0.5)
    blind = sorted({host for host in all_gather_object(None if file.is_file() else socket.gethostname()) if host})
    if blind:
        raise UserError(
            f"{file.parent}: not visible on {', '.join(blind)}; --output must be on a file system that all hosts share"
        )


def folder_of_model(model: str) -> Path:
    """Return where `export` writes if it is not told: beside the model.

    Raises:
        UserError: It is a model of the Hub, because it is in a cache.
    """
    if not Path(model).is_dir():
        raise UserError(
            f"--model {model}: no such folder here; for a model in the Hugging Face cache, give --output too, the "
            "folder to write to"
        )
    return find_model(Path(model))


def find_model(folder: Path) -> Path:
    """Return the folder of the model that `folder` stands for.

    That is `folder` itself, or a folder in it where `folder` is the --output of a command. A run's
    summary names its model by the path at that time. The folder may have been moved since, so the
    end of that path is looked up in it.
    """
    if (folder / "config.json").is_file():
        return folder
    try:
        export = Path(read_json_object(RunFolder(folder).summary)["export"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder
    ends = (folder.joinpath(*export.parts[start:]) for start in range(len(export.parts)))
    return next((end for end in ends if (end / "config.json").is_file()), folder)
