"""`python -m undiffuse` is the command `undiffuse`."""

from undiffuse.cli import main

main()
