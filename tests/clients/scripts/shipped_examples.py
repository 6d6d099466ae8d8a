"""Run the example beside each file in the folder, in a process of its own.

The example must end well and print something, be it an empty line: the top-1 token of a tiny model may be a space.
"""

import subprocess
import sys

from checks import run_checks

SECONDS = 300


def load(check):
    file = f"example_{check['format'].replace('-', '_')}.py"
    done = subprocess.run([sys.executable, file], cwd=check["folder"], capture_output=True, text=True, timeout=SECONDS)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"{file}: {(done.stderr.strip() or 'nothing printed').splitlines()[-1]}")
    return lambda given: {"ran": [1.0]}


run_checks(load, ["torch", "transformers", "onnxruntime", "openvino"])
