"""Hold a folder's lock: arguments FOLDER, BOOT ID, RENEW and EXPIRE in seconds.

It prints "held", and for each line of its standard input appends a line to FOLDER/written, unless it
has lost the lock.
"""

import sys
from pathlib import Path
from unittest import mock

from ds_distill.utils.errors import UserError
from ds_distill.utils.lease import FolderLock

folder, boot, renew, expire = sys.argv[1:]
with mock.patch("ds_distill.utils.lease.boot_id", lambda: boot):
    try:
        with FolderLock(Path(folder), float(renew), float(expire)) as lock:
            print("held", flush=True)
            for _ in sys.stdin:
                lock.check()
                with open(Path(folder, "written"), "a") as file:
                    file.write(f"{boot}\n")
                print("wrote", flush=True)
    except UserError as error:
        print(error, flush=True)
        sys.exit(2)
