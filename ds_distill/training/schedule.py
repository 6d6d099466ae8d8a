"""The learning rate's schedule."""


def linear_schedule(warmup_steps: int, total_steps: int):
    """Return the schedule, a function from the optimizer step (0-based) to a factor of the peak rate.

    The factor rises linearly over warmup_steps, then falls linearly to zero.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor
