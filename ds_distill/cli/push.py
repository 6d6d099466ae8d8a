"""Options of the commands that can upload the model that they have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_distill.config.values import Name
from ds_distill.distributed import launch_environment
from ds_distill.utils.errors import UserError
from ds_distill.utils.hub import NAME, is_offline


def add_arguments(parser) -> None:
    """Add --push_to_hub and --private."""
    parser.add_argument(
        "--push_to_hub",
        type=Name | None,
        default=None,
        help="repository of the Hugging Face Hub to upload the exported model to, OWNER/NAME or NAME; it is created "
        "before the work begins",
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository of --push_to_hub private when it is created"
    )


def check(options) -> None:
    """Raise UserError where the options alone show that the model cannot be uploaded."""
    name = options.get("push_to_hub")
    if options.get("private") and not name:
        raise UserError("--private: applies to the repository of --push_to_hub, which is missing; give its name")
    if not name:
        return
    if not NAME.fullmatch(name):
        raise UserError(f"--push_to_hub {name}: not a name of a repository; give OWNER/NAME or NAME")
    if is_offline():
        raise UserError(
            f"--push_to_hub {name}: needs the network, which --offline or HF_HUB_OFFLINE forbids; leave one of them out"
        )
    if launch_environment.world_size() == 1:  # the hosts of a job may have no token but the first one's
        from ds_distill.exporters.push import check_token

        check_token(name)


def check_access(options) -> None:
    """Create the repository; UserError where this user may not write to it. The ranks of a job do so together."""
    if not options.get("push_to_hub"):
        return
    from ds_distill.exporters.push import make_repository

    def make() -> None:
        options.push_to_hub = make_repository(options.push_to_hub, options.private)  # with its owner from now on

    if launch_environment.world_size() == 1:
        make()
        return
    from ds_distill.distributed.process_group import run_on_rank0

    run_on_rank0(make)


def upload(options, summary: dict[str, Any]) -> dict[str, Any]:
    """Upload the model of a finished command, and return its summary with the address under "hub"."""
    from ds_distill.exporters.push import upload

    folder = Path(summary.get("export") or options.output)
    return summary | {"hub": upload(folder, options.push_to_hub)}
