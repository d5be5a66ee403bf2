"""How replicas are cut out of a cluster, and which are missing as it changes."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvm_batch.errors import UsageError
from cvm_batch.screening.executor import Hardware
from cvm_batch.screening.ray_cluster import as_node
from cvm_batch.screening.shares import MAX_FAILED_STARTS, Fleet, Node, Share, Sizing


def node(cpus: int, gpus: int = 0, *, name: str = "a", free: float = 1.0) -> Node:
    """As Ray tells of it; ``free``: the part of it that nobody holds."""
    total = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    told: dict[str, Any] = {"NodeID": name, "Alive": True, "Resources": total}
    return as_node(told, {resource: free * amount for resource, amount in total.items()})


def cut(
    nodes: list[Node], wanted: int | None = None, per_gpu: int | None = None
) -> list[tuple[str, float, float, int]]:
    shares = Sizing.of(nodes, wanted, per_gpu).shares(nodes)[:wanted]
    return [(share.node, share.gpus, share.cpus, share.threads) for share in shares]


def test_one_replica_per_gpu_with_its_share_of_the_cpus() -> None:
    nodes = [node(16, 2, name="a"), node(8, 1, name="b"), node(64, name="c")]
    assert cut(nodes) == [("a", 1, 1, 8), ("b", 1, 1, 8), ("a", 1, 1, 8)]
    sizing = Sizing.of(nodes, None, None)
    assert sizing.hardware(nodes) == Hardware("cuda", 3)


def test_replicas_share_a_gpu_and_its_cpus() -> None:
    nodes = [node(16, 2)]
    assert cut(nodes, per_gpu=4) == 8 * [("a", 0.25, 1, 2)]
    assert Sizing.of(nodes, None, 4).hardware(nodes) == Hardware("cuda", 2)
    assert Sizing.of(nodes, 5, 4).hardware(nodes) == Hardware("cuda", 2)
    assert Sizing.of(nodes, 4, 4).hardware(nodes) == Hardware("cuda", 1)


@given(st.integers(1, 64), st.integers(1, 8), st.integers(0, 300))
def test_all_shares_of_a_node_fit_in_it(per_gpu: int, gpus: int, cpus: int) -> None:
    """As Ray counts: in ten-thousandths."""
    shares = cut([node(cpus, gpus)], per_gpu=per_gpu)
    assert len(shares) == per_gpu * gpus
    assert sum(round(gpu * 10_000) for _, gpu, _, _ in shares) <= gpus * 10_000
    assert sum(round(cpu * 10_000) for _, _, cpu, _ in shares) <= cpus * 10_000
    assert all(threads >= 1 for *_, threads in shares)


def test_without_gpus_one_replica_per_node() -> None:
    nodes = [node(4, name="a"), node(2, name="b")]
    assert cut(nodes) == [("a", 0, 4, 4), ("b", 0, 2, 2)]
    assert Sizing.of(nodes, None, None).hardware(nodes) == Hardware("cpu", 6)


def test_replicas_share_nodes_of_different_size() -> None:
    nodes = [node(4, name="a"), node(2, name="b")]
    assert cut(nodes, 2) == [("a", 0, 2, 2), ("b", 0, 2, 2)]
    assert cut(nodes, 3) == [("a", 0, 2, 2), ("b", 0, 2, 2), ("a", 0, 2, 2)]


def test_what_the_cluster_has_no_room_for_is_refused() -> None:
    with pytest.raises(UsageError, match="the cluster has 1 GPUs"):
        cut([node(4, 1)], 2)
    with pytest.raises(UsageError, match="the cluster has 1 GPUs, for 2 replicas each"):
        cut([node(4, 1)], 3, per_gpu=2)
    with pytest.raises(UsageError, match="the cluster has 2 CPUs"):
        cut([node(2)], 3)
    with pytest.raises(UsageError, match="--replicas-per-gpu 2, but the cluster has no GPU"):
        cut([node(4)], per_gpu=2)
    with pytest.raises(UsageError, match="neither GPUs nor CPUs"):
        cut([node(0)])


def test_decoding_elsewhere_needs_gpus_here_and_cpus_there() -> None:
    def check(nodes: list[Node], per_gpu: int | None = None) -> int:
        sizing = Sizing.of(nodes, None, per_gpu)
        sizing.check_decoding(nodes)
        return sizing.readers(nodes)

    assert check([node(4, 2, name="a"), node(8, name="b")]) == 10, "one runs, one waits"
    assert check([node(400, 1)]) == 64
    with pytest.raises(UsageError, match="is for replicas on GPUs"):
        check([node(8)])
    with pytest.raises(UsageError, match="replicas hold every CPU"):
        check([node(4, 2)], per_gpu=2)


def fleet(nodes: list[Node], wanted: int | None = None) -> Fleet:
    return Fleet(Sizing.of(nodes, wanted, None), nodes)


def names(shares: list[Share]) -> list[str]:
    return [share.node for share in shares]


def test_nodes_that_join_are_used_and_those_that_left_forgotten() -> None:
    a, b, c = (node(4, 1, name=name) for name in "abc")
    following = fleet([a, b])
    taken = set(following.missing([a, b], ()))
    assert following.missing([a, b], taken) == []
    assert names(following.missing([a, c], taken)) == ["c"]
    assert following.missing([a], {share for share in taken if share.node == "a"}) == []


def test_a_run_on_gpus_takes_no_node_without() -> None:
    a = node(4, 1, name="a")
    following = fleet([a])
    assert names(following.missing([a, node(64, name="b")], ())) == ["a"]


def test_a_fixed_number_is_kept_up_where_there_is_room() -> None:
    a, b, c = (node(4, 1, name=name) for name in "abc")
    fixed = fleet([a, b], wanted=2)
    (first, second) = fixed.missing([a, b, c], ())
    assert fixed.missing([a, b, c], {first, second}) == []
    assert names(fixed.missing([b, c], {second})) == ["c"]
    assert fixed.missing([b], {second}) == [], "a cluster that shrank is no fault"


def test_a_fixed_number_goes_where_nobody_else_is() -> None:
    nodes = [node(4, 2, name="a", free=0.0), node(4, 2, name="b")]
    assert names(fleet(nodes, wanted=3).missing(nodes, ())) == ["b", "b", "a"]


def test_a_share_on_which_replicas_die_is_left_alone() -> None:
    nodes = [node(4, 2)]
    following = fleet(nodes)
    good, bad = following.missing(nodes, ())
    for _ in range(MAX_FAILED_STARTS):
        assert bad in following.missing(nodes, ())
        following.failed(bad)
    assert following.missing(nodes, ()) == [good]
    following.leave_alone(good)
    assert following.missing(nodes, ()) == []


def test_a_replica_that_serves_clears_its_share() -> None:
    nodes = [node(4)]
    following = fleet(nodes)
    (share,) = following.missing(nodes, ())
    for _ in range(2 * MAX_FAILED_STARTS):
        following.failed(share)
        following.started(share)
    assert following.missing(nodes, ()) == [share]


def test_the_largest_share_is_what_more_is_asked_for() -> None:
    nodes = [node(1, name="head"), node(16, name="worker")]
    assert astuple(fleet(nodes).like)[2:] == (0, 16, 16)
