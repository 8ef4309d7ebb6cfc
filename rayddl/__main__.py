"""``python -m rayddl`` is the command ``rayddl``."""

from rayddl.cli import main

main()
