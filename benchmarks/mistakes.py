"""How a benchmark ends where it cannot go on."""

import contextlib
import sys
from collections.abc import Iterator

from ds_distill.errors import UserError


@contextlib.contextmanager
def one_sentence(program: str) -> Iterator[None]:
    """A UserError within becomes one sentence and status 2, Ctrl-C status 130."""
    try:
        yield
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"\n{program}: stopped", file=sys.stderr)
        raise SystemExit(130) from None
