"""Run several commands in one process, since each would begin by loading the same libraries.

The argument is a JSON file with lists of words.
"""

import json
import sys
from pathlib import Path

from ds_distill.cli import main

for words in json.loads(Path(sys.argv[1]).read_text()):
    print("ds-distill", *words, file=sys.stderr)
    if status := main(words):
        sys.exit(status)
