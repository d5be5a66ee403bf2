"""How work is cut, how often it is tried, and when a replica is not believed any more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LeasePolicy:
    """Figures that the dispatcher keeps to."""

    batch_size: int
    """Tiles that fill all lanes of a replica; leases hold whole batches where they can."""
    lease_seconds: float = 4.0
    in_flight: int = 2
    """Leases a replica holds at once: one on the device, one being decoded."""
    max_parts: int = 256
    """Parts in one lease, so that tiny slides do not make a lease that never ends."""
    max_attempts: int = 3
    """Errors that may pass, and replicas killed alone, that one part is allowed."""
    max_nodes: int = 5
    """Nodes that may go away under one part. From the second on it has its node to itself."""
    backoff_seconds: float = 1.0
    """Wait before the second attempt; doubled before each further one."""
    patience_seconds: float = 120.0
    """A replica with a lease that shows no sign of work for so long hangs."""
    suspect_share: int = 4
    """Of so many replicas, and nodes, one is for suspects, while there is other work."""
    doubt_parts: int = 6
    """Parts that fail one after the other until their replica is doubted ..."""
    doubt_slides: int = 3
    """... if they are of so many slides."""
    suspend_seconds: float = 15.0
    """A replica in doubt gets nothing for so long, then one part; doubled each time it fails."""
    longest_suspension: float = 240.0
    outage_seconds: float = 1800.0
    """Where all replicas have been in doubt for so long, slides fail as if there were none."""
