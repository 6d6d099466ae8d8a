"""The signals that ask a command to save and end."""

import signal

# SIGUSR1 is what Slurm users often ask for before a job's time ends, and mpirun passes it on to its processes. SIGHUP
# comes from a terminal that is closed.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def heeded_signals() -> list[signal.Signals]:
    """Return those of the signals that nohup, or a shell in the background, has not had ignored."""
    return [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
