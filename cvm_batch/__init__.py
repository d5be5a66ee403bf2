"""cvm-batch: nightly batch screening of cervical Pap-smear slide archives."""

import os

__version__ = "0.1.0"

# PyTorch's threads wait for each other by spinning. On a CPU that somebody else uses as well,
# that costs nine tenths of the speed (docs/decisions/0007); waiting in the kernel costs nothing
# measurable on an idle one. OpenMP reads this once, when PyTorch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
