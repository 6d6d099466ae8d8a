"""Uploading an exported folder to the Hugging Face Hub, with huggingface_hub."""

from __future__ import annotations

import shlex
from pathlib import Path

from ds_distill.reporting.card_edits import for_repository
from ds_distill.utils.console import log, spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_atomically

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
# what a command keeps in a folder beside the model
OWN_FILES = ["summary.json", ".*", "*.partial"]


def check_token(name: str) -> None:
    """Raise UserError where this machine has no token of the Hub to upload to the repository `name` with."""
    from huggingface_hub import get_token

    if not get_token():
        raise UserError(f"--push_to_hub {name}: no token of the Hugging Face Hub on this machine; {LOGIN}")


def make_repository(name: str, private: bool) -> str:
    """Create the repository that a model is to be uploaded to, unless it is there, and return its full name.

    This is done before the training, because only creating it shows that the token and the name will
    do.

    Args:
        name: OWNER/NAME, or NAME for one of the token's owner.
        private: Whether only its owner may see it.

    Raises:
        UserError: There is no token, it may not write there, the name is not valid, or the repository
            is public although a private one was asked for.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    check_token(name)
    api = HfApi()
    try:
        with spinner(f"checking access to {name} on the Hugging Face Hub"):
            user = api.whoami()
            owners = [user["name"], *(group["name"] for group in user.get("orgs", ()))]
            full = name if "/" in name else f"{user['name']}/{name}"
            if full.split("/")[0] not in owners:
                raise UserError(
                    f"--push_to_hub {name}: the token's user {user['name']} has no rights to {full.split('/')[0]}; "
                    f"choose a name that begins with one of {', '.join(owner + '/' for owner in owners)}"
                )
            api.create_repo(full, private=private or None, exist_ok=True)
            is_public = private and not api.model_info(full).private
    except UserError:
        raise
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {name}: {str(error).splitlines()[0]}; choose another name") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"--push_to_hub {name}: the Hugging Face Hub refuses the token (status {status}); {LOGIN}"
            ) from error
        raise UserError(
            f"--push_to_hub {name}: the Hugging Face Hub answers with status {status} ({_first_line(error)}); correct "
            "the name, or leave --push_to_hub out and upload later"
        ) from error
    except Exception as error:  # the HTTP library below differs among releases, and each has its own classes
        raise UserError(
            f"--push_to_hub {name}: the Hugging Face Hub cannot be reached ({_first_line(error)}); leave --push_to_hub "
            "out, and upload later with `hf upload`"
        ) from error
    if is_public:
        raise UserError(
            f"--push_to_hub {name}: --private was given, but {full} is a public repository; choose another name, or "
            "make it private in its settings"
        )
    return full


def upload(folder: Path, name: str) -> str:
    """Upload a model's folder to the repository `name`, as one commit, and return the repository's address.

    Its card is made to name the repository.

    Raises:
        UserError: It could not be uploaded; the message has the command that does so later.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # the spinner shows that it is alive
    megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    try:
        card = folder / "README.md"
        write_atomically(card, for_repository(card.read_text(encoding="utf-8"), name))
        with spinner(f"uploading {megabytes:,.0f} MB to {name}"):
            commit = HfApi().upload_folder(
                repo_id=name,
                folder_path=folder,
                commit_message="Upload a model made with ds-distill",
                ignore_patterns=OWN_FILES,
            )
    except Exception as error:  # whatever went wrong, the model is there and must not seem lost
        command = shlex.join(["hf", "upload", name, str(folder), "."])
        raise UserError(
            f"--push_to_hub {name}: the upload failed ({_first_line(error)}), but the model is complete in {folder}; "
            f"upload it later with `{command}`"
        ) from error
    log(f"uploaded {folder} to {commit.repo_url}")
    return str(commit.repo_url)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
