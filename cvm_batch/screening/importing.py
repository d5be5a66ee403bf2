"""What a replica imports takes some seconds, in which other things can be done."""

from __future__ import annotations


def import_replica() -> None:
    """Import a replica's module and what its network is made of, PyTorch among them."""
    import cvm_batch.screening.replica  # noqa: F401
    from cvm_batch.model.timm_import import import_timm

    import_timm()
