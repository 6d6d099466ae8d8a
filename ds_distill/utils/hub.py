"""Models of the Hugging Face Hub: in the local cache, or fetched into it once.

A model is written NAME or NAME@REVISION. huggingface_hub is imported only where it is needed,
because a command that names a folder need not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from ds_distill.utils.console import log, progress, spinner
from ds_distill.utils.errors import UserError

NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Files of a repository beside its weights: config, card, tokenizer, and what sentence-transformers
# reads. A pattern's * also matches a slash.
SMALL_FILES = (
    "config.json",
    "README.md",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece*.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "modules.json",
    "*sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "[0-9]_*/model.safetensors",
)
INDEX = "model.safetensors.index.json"
OFFLINE = "HF_HUB_OFFLINE"


def is_offline() -> bool:
    """Return whether the network is not to be used: --offline was given, or HF_HUB_OFFLINE is set."""
    return os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE")


def split_name(name: str) -> tuple[str, str | None]:
    """Return (repository, revision or None) of NAME or NAME@REVISION."""
    repository, at, revision = name.partition("@")
    return repository, revision if at else None


def find_cached(name: str) -> Path | None:
    """Return the cache's folder of a model, whole or not, or None; the network is not used."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, revision = split_name(name)
    try:
        # Without patterns, a snapshot is refused where any file of the repository was not fetched.
        return Path(
            snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=["config.json"])
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        return None


def name_in_cache(folder: Path) -> tuple[str, str] | None:
    """Return (repository, commit) of a folder of the cache, or None for any other folder."""
    storage = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not storage.startswith("models--"):
        return None
    return storage.removeprefix("models--").replace("--", "/"), folder.name


def fetch(name: str, given: str, *, weights: bool = True) -> Path | None:
    """Fetch a model of the Hub into the cache and return its folder there; None where another process has just done so.

    Only safetensors are fetched, never pickled weights or those of other libraries. The weights come
    last, so that a folder that has them has everything. One process at a time fetches a model. One that
    has waited for another fetches nothing itself, and its caller looks into the cache again.

    Args:
        name: NAME or NAME@REVISION.
        given: What errors begin with: the option and the name.
        weights: Whether the weights are needed too, beside config and tokenizer.

    Raises:
        UserError: The Hub cannot be reached, or has no such model, revision or safetensors, or does
            not give the model to this user, or the cache cannot be written.
    """
    from huggingface_hub.utils import validate_repo_id

    repository, revision = split_name(name)
    try:
        validate_repo_id(repository)
        with _one_at_a_time(repository) as waited:
            return None if waited else _fetch(name, given, weights)
    except UserError:
        raise
    except Exception as error:  # the HTTP library below differs among releases, and each has its own classes
        raise _explain(error, repository, revision, given) from error


@contextlib.contextmanager
def _one_at_a_time(repository: str) -> Iterator[bool]:
    """Keep other processes from fetching a repository; yield whether one that did so had to be waited for."""
    from filelock import Timeout
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock

    # beside the library's own locks, each of which is for one file
    file = Path(constants.HF_HUB_CACHE, ".locks", repo_folder_name(repo_id=repository, repo_type="model"), "fetch.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        waited = False
        try:
            held.enter_context(WeakFileLock(file, timeout=0.5))
        except Timeout:
            waited = True
            log(f"another process is fetching {repository} from the Hugging Face Hub; waiting until it has finished")
            with spinner(f"waiting for the process that fetches {repository}"):
                held.enter_context(WeakFileLock(file))
        yield waited


def _fetch(name: str, given: str, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    repository, revision = split_name(name)
    with spinner(f"looking for {name} on the Hugging Face Hub"):
        info = HfApi().model_info(repository, revision=revision, files_metadata=True, timeout=30)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    parts = [_select_small(list(sizes))]
    if weights:
        parts.append(_select_weights(list(sizes), given))
    total = sum(sizes[file] for part in parts for file in part)
    log(f"fetching {name} (commit {(info.sha or '')[:12]}) from the Hugging Face Hub into its cache")
    with progress(total, f"fetching {repository}", "B") as bar:
        for part in filter(None, parts):
            folder = snapshot_download(
                repository, revision=revision, allow_patterns=part, tqdm_class=_forward_bytes(bar)
            )
        bar.update(total - bar.n)  # parts that were in the cache, and counts lost between threads
    return Path(folder)


def _select_small(files: list[str]) -> list[str]:
    """Return the files of a repository that are needed beside the weights."""
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(files, allow_patterns=list(SMALL_FILES)))


def _select_weights(files: list[str], given: str) -> list[str]:
    """Return the safetensors that from_pretrained reads; raise UserError where there are none."""
    if "model.safetensors" in files:
        return ["model.safetensors"]
    if INDEX in files:
        return [INDEX, *(file for file in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", file))]
    others = [file for file in files if file.endswith((".bin", ".h5", ".msgpack", ".pt"))]
    problem = f"only {others[0]}, and such weights are not loaded" if others else "no weights"
    raise UserError(
        f"{given}: the repository has {problem}; give a model with model.safetensors, or a revision that has it "
        "(NAME@REVISION)"
    )


def _forward_bytes(bar: tqdm) -> type[tqdm]:
    """Return a bar class for huggingface_hub that shows nothing itself and moves `bar`.

    The library makes several bars: of files, of bytes received and of bytes written. The bytes that
    are furthest count.
    """

    class Forward(tqdm):
        received: dict[int, float] = {}
        begun = bar.n

        def __init__(self, *arguments, unit: str = "it", **options):
            options.pop("disable", None)
            super().__init__(*arguments, disable=True, unit=unit, **options)
            self.counts_bytes = unit == "B"

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if self.counts_bytes:
                self.received[id(self)] = self.n
                furthest = self.begun + max(self.received.values())
                bar.update(min(furthest, bar.total or furthest) - bar.n)
            return None

    return Forward


def _explain(error: Exception, repository: str, revision: str | None, given: str) -> UserError:
    """Return the error of one sentence for what went wrong."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page, login = f"{constants.ENDPOINT}/{repository}", "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return UserError(f"{given}: access is restricted; accept its conditions at {page}, and {login}")
    # without a token the Hub does not tell a private model from one that does not exist
    unknown = isinstance(error, HfHubHTTPError) and error.response.status_code == 401 and not get_token()
    if unknown or isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{given}: no such folder, and the Hugging Face Hub shows no such model; correct the name, or, if the "
            f"model is private, {login}"
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{given}: {repository} has no revision {revision!r}; its revisions are listed at {page}")
    if isinstance(error, HFValidationError):
        return UserError(f"{given}: no such folder, and not a name of the Hugging Face Hub; correct it")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return UserError(f"{given}: the Hugging Face Hub refuses the token (status {status}); {login}")
        return UserError(f"{given}: the Hugging Face Hub answers with status {status}; try again later")
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
        return UserError(
            f"{given}: the Hugging Face cache {constants.HF_HUB_CACHE} cannot be written ({error.strerror}); free some "
            "space, or set HF_HUB_CACHE to a folder that can"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"{given}: no such folder, not in the Hugging Face cache, and the Hub at {constants.ENDPOINT} cannot be "
        f"reached ({reason}); correct the path, or run `{fetch_command(repository, revision)}` where there is a network"
    )


def fetch_command(repository: str, revision: str | None) -> str:
    """Return the command that puts a model into the cache."""
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")
