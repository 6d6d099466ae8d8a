"""The commands by name, one module each.

A command's module has PURPOSE, EXAMPLES and COMMON_OPTIONS for its help, `add_arguments(parser)`,
`check(options)` for what the command line alone shows, `check_paths(options)` for what the disk
shows, both called before torch is imported, `run(options)`, which returns its summary, and
`closing(options, summary)`, the text at its end for a person.
"""

from ds_distill.cli import (
    augment,
    demo,
    distill,
    env,
    estimate,
    evaluate,
    export,
    finetune,
    make_qnli,
    multitask,
    prepare,
    pretrain,
    prune,
    report,
    run,
    study,
    trim,
)

COMMANDS = {
    "run": run,
    "demo": demo,
    "prepare": prepare,
    "pretrain": pretrain,
    "distill": distill,
    "estimate": estimate,
    "evaluate": evaluate,
    "export": export,
    "trim": trim,
    "prune": prune,
    "augment": augment,
    "finetune": finetune,
    "multitask": multitask,
    "study": study,
    "report": report,
    "make-qnli": make_qnli,
    "env": env,
}
