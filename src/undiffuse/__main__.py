"""`python -m undiffuse` runs the command `undiffuse`."""

from undiffuse.cli import main

main()
