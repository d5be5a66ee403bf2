"""Asks every node of a Ray cluster what it sees of that which a run needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cvm_batch.errors import ClusterError
from cvm_batch.screening.visibility import Needs, lacking_here, probe_arrived

#: A node may have to fetch what was shipped, and to load Python from a cold disk.
_PATIENCE_SECONDS = 180.0


def check_nodes(needs: Needs) -> None:
    """Raise ClusterError with the names of nodes that do not see what the driver sees.

    Of nodes that have CPUs or GPUs: a head without any runs nothing of ours. To be called in a
    process that is connected to the cluster.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and _works(node)]
    asked = [(node, _ask(needs, node["NodeID"])) for node in nodes]
    ray.wait([ref for _, ref in asked], num_returns=len(asked), timeout=_PATIENCE_SECONDS)
    wrong = [f"{_name(node)}: {what}" for node, ref in asked for what in _wrong(needs, node, ref)]
    if wrong:
        raise ClusterError(
            f"{len(wrong)} of what the run needs is not seen everywhere. " + "; ".join(wrong) + ". "
            "All nodes must see the inputs, the bundle and the results folder under the same "
            "paths (or put them on object storage); --ship-bundle takes a bundle along."
        )


def _works(node: dict[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU") or node["Resources"].get("GPU"))


def _ask(needs: Needs, node_id: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(lacking_here).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    return task.remote(needs, node_id)


def _wrong(needs: Needs, node: dict[str, Any], ref: Any) -> Iterator[str]:
    try:
        lacking = ray.get(ref, timeout=0)
    except ray.exceptions.GetTimeoutError:
        yield f"no answer within {_PATIENCE_SECONDS:.0f} s"
        return
    except RayError as error:
        yield f"cannot run cvm-batch ({str(error).rstrip().splitlines()[-1]})"
        return
    yield from lacking
    if not probe_arrived(needs, node["NodeID"]) and not any("write" in one for one in lacking):
        yield f"another folder at {needs.results}: the driver does not see what the node wrote"


def _name(node: dict[str, Any]) -> str:
    """As the operator knows it, and as Ray does: several may run on one machine."""
    name = node.get("NodeName") or node["NodeManagerAddress"]
    return f"node {name} ({node['NodeID'][:8]})"
