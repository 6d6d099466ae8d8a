"""Intervals of a run, such as that between checkpoints: a number of steps, or a time such as `10m`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from ds_distill.config.values import Reader, format_value, parse_int
from ds_distill.utils.errors import UserError

AUTO = "auto"
UNITS = {"s": 1, "m": 60, "h": 3600}
MOST_STEPS, MOST_SECONDS = 10**9, 30 * 24 * 3600
DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])", re.ASCII)
FORMS = "write steps, such as 500, a time, such as 90s, 10m or 1h, or auto"


def read_interval(value: Any, key: str) -> int | str:
    """Return an interval: steps, 0 for none, or a text that `interval_seconds` reads, or "auto".

    Raises:
        UserError: It is none of these, or is out of range. Capital letters are refused, since 1M
            is a million elsewhere, and 1m is a minute here.
    """
    if value == AUTO:
        return AUTO
    text = str(value).strip()
    problem = f"{key}: {format_value(value)}: {FORMS}"
    if match := DURATION.fullmatch(text):
        if not 1 <= float(match[1]) * UNITS[match[2]] <= MOST_SECONDS:
            raise UserError(f"{key} = {text}: a time must be between 1s and {MOST_SECONDS // 3600}h")
        return text
    if isinstance(value, bool) or not isinstance(value, str | int) or text.endswith("M"):
        raise UserError(problem)
    try:
        steps = parse_int(text)
    except ValueError:
        raise UserError(problem) from None
    if not 0 <= steps <= MOST_STEPS:
        raise UserError(f"{key} = {steps}: must be between 0 and {MOST_STEPS:,} steps, or a time such as 10m")
    return steps


def interval_seconds(interval: int | str) -> float | None:
    """Return the seconds of an interval that is a time; None where it is steps."""
    match = DURATION.fullmatch(interval) if isinstance(interval, str) else None
    return float(match[1]) * UNITS[match[2]] if match else None


# Steps, a time, or "auto".
Interval = Annotated[int | str, Reader("whole number, time or `auto`", read_interval)]
