"""The command line: one file per command."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status.

    Args:
        argv: Its words, without the program's name; those that the program was started with when not given.
    """
    from ds_distill.cli.app import main as run  # here, so that `ds_distill.cli.terminal` alone loads nothing else

    return run(argv)
