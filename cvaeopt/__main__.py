"""`python -m cvaeopt` starts the command line."""

from cvaeopt.cli import main

main()
