"""cvm-batch: nightly batch screening of cervical Pap-smear slide archives."""

__version__ = "0.1.0"
