"""Unpack the sources of the pinned llama.cpp into the cache and print where: `python fetch.py`."""

import sys

from tierexport.base.archive import sources

if __name__ == "__main__":
    sys.stdout.write(f"{sources()}\n")
