"""The shell that a command was started from."""

import os

# The command line notes it at its start: builds put the environment's programs before it, which the user's shell does
# not see.
PATH = os.environ.get("PATH", os.defpath)


def note_path() -> None:
    """Note PATH as it is now."""
    global PATH
    PATH = os.environ.get("PATH", os.defpath)
