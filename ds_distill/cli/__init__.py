"""The command line: one file per command."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        argv: The command's words, without the program's name; by default those that the program was
            started with.
    """
    from ds_distill.cli.app import main as run  # here, so that importing `ds_distill.cli.terminal` loads nothing else

    return run(argv)
