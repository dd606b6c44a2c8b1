"""`python -m tierexport`."""

from tierexport.cli import main

main()
