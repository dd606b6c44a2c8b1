"""The command line: one file per group of commands."""

from tierexport.cli.commands import main

__all__ = ["main"]
