"""``python -m cvm_batch`` is ``cvm-batch``."""

from cvm_batch.cli import main

main()
