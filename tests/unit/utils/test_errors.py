"""Test the messages of errors."""

import errno
import os

import pytest

from ds_distill.utils.errors import UserError, get_message


@pytest.mark.parametrize(
    "error, message",
    [
        (UserError("a: b; c"), "a: b; c"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "f"), "f: Read-only file system; choose another"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "place: No space left on device; choose another"),
        (
            OSError(errno.EMFILE, os.strerror(errno.EMFILE), "f"),
            "f: Too many open files; raise the limit with ulimit -n",
        ),
        (OSError("words"), "place: words; choose another"),
    ],
)
def test_the_remedy_fits_the_error(error, message):
    assert get_message(error, "place", "choose another") == message
