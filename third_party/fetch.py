"""Unpack the sources of the pinned llama.cpp into the cache and print where: `python fetch.py`.

`python fetch.py --archive` prints where the archive itself lies, fetched at first use.
"""

import sys

from tierexport.base.archive import archive_file, sources

if __name__ == "__main__":
    sys.stdout.write(f"{archive_file() if '--archive' in sys.argv[1:] else sources()}\n")
