"""Where a results folder lies: on a disk, or on object storage, behind the same few calls."""
