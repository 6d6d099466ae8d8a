"""The parser of the command line: every command with its options."""

import functools

from ds_distill.cli.arguments import check_recipe
from ds_distill.cli.commands import COMMANDS
from ds_distill.config.values import OutputPath
from ds_distill.recipe import Recipe


@functools.cache  # a study checks many commands
def build_parser():
    """Return the parser of all commands."""
    from ds_distill.cli.argument_parser import Parser, RecipeFile, StudyFile, with_values
    from ds_distill.cli.help import command_help, program_help

    parser = Parser(
        prog="ds-distill",
        allow_abbrev=False,
        description="Distill pretrained encoders into smaller ones during pretraining, on DeepSpeed.",
    )
    parser.write_help = lambda actions: program_help(COMMANDS)
    commands = parser.add_subcommands(required=True)
    for name, command in COMMANDS.items():
        sub = Parser(description=command.PURPOSE, allow_abbrev=False)
        sub.write_help = functools.partial(command_help, name, command)
        sub.add_argument(
            "--config",
            action=StudyFile if name == "study" else RecipeFile,
            help="YAML file with any of these options, or the name of a shipped one, such as "
            f"{'retention' if name == 'study' else 'few_tokens'}; "
            "options that come later on the command line override it",
        )
        sub.add_argument(
            "--debug", action="store_true", help="show tracebacks of errors, and the output of the libraries"
        )
        sub.add_argument(
            "--json",
            action="store_true",
            help="print the summary as JSON on a terminal too, as the last line of standard output",
        )
        sub.add_argument(
            "--offline",
            action="store_true",
            help="never use the network: models and data sets of the Hub are read from the local cache, as with "
            "HF_HUB_OFFLINE=1",
        )
        command.add_arguments(sub)
        sub.add_argument(
            "--output",
            type=OutputPath | None,
            default=getattr(command, "DEFAULT_OUTPUT", None),
            help="folder for all files that the command writes",
        )
        commands.add_subcommand(name, with_values(sub), help=command.PURPOSE)
    return parser


def check_command(words: list[str]) -> Recipe | None:
    """Return the recipe of a command as it is typed, if it has one.

    Raises:
        UserError: The command would be refused for its words or its recipe's numbers.
    """
    options = build_parser().parse_args(words)
    options = options[options.subcommand]
    return check_recipe(options) if "training" in options else None
