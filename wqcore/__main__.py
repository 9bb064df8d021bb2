"""`python -m wqcore` is the console script `wqcore`."""

from wqcore.cli import main

main()
