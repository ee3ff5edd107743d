"""`python -m retrievo`: the command line without the installed script, as torchrun needs it."""

from retrievo.cli import main

main()
