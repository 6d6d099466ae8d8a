"""Several commands in one process, since each begins by loading the same libraries: a JSON file of lists of words."""

import json
import sys
from pathlib import Path

from ds_distill.cli import main

for words in json.loads(Path(sys.argv[1]).read_text()):
    print("ds-distill", *words, file=sys.stderr)
    if status := main(words):
        sys.exit(status)
