"""`run`: the command that `./launch.sh` starts.

With a teacher it distills as `distill` does; without one it is the demo.
"""

from __future__ import annotations

from ds_distill.cli import arguments, demo, distill, push
from ds_distill.utils.errors import UserError

PURPOSE = "run the demo, as ./launch.sh does; with --teacher, the same as distill"
EXAMPLES = r"""
ds-distill run
ds-distill run --corpus notes.txt --output runs/notes
ds-distill run --teacher bert-base-uncased --corpus text.txt \
    --output runs/student
"""
COMMON_OPTIONS = (
    "corpus",
    "output",
    "fresh",
    "from_scratch",
    "teacher",
    "training.max_tokens",
)
DEFAULT_OUTPUT = demo.DEFAULT_OUTPUT


def add_arguments(parser) -> None:
    arguments.add_teacher(parser)
    demo.add_arguments(parser)
    arguments.add_tokens(parser)
    arguments.add_heldout(parser)
    push.add_arguments(parser)


def check(options) -> None:
    if options.teacher:
        if options.fresh or options.from_scratch:
            raise UserError(
                "--fresh and --from-scratch: apply only to the demo, without --teacher; choose another --output, or "
                "remove the folder"
            )
        distill.check(options)
        return
    if options.push_to_hub:
        raise UserError("--push_to_hub: applies only with --teacher; the demo's models are not worth uploading")
    demo.check(options)
    if options.heldout or options.tokens:
        raise UserError(
            "--teacher is missing: --heldout and --tokens need a teacher; without one, run is the demo, which "
            "prepares its own text"
        )


def check_paths(options) -> None:
    (distill if options.teacher else demo).check_paths(options)


def run(options) -> dict:
    return (distill if options.teacher else demo).run(options)


def closing(options, summary: dict) -> str:
    return (distill if options.teacher else demo).closing(options, summary)
