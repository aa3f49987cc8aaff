"""``python -m unicl``, which torchrun starts on every process."""

from unicl.cli import main

main()
