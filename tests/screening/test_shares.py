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
    taken = set(following.missing([a, b], (), 0))
    assert following.missing([a, b], taken, 0) == []
    assert names(following.missing([a, c], taken, 0)) == ["c"]
    assert following.missing([a], {share for share in taken if share.node == "a"}, 0) == []


def test_a_run_on_gpus_takes_no_node_without() -> None:
    a = node(4, 1, name="a")
    following = fleet([a])
    assert names(following.missing([a, node(64, name="b")], (), 0)) == ["a"]


def test_a_fixed_number_is_kept_up_where_there_is_room() -> None:
    a, b, c = (node(4, 1, name=name) for name in "abc")
    fixed = fleet([a, b], wanted=2)
    (first, second) = fixed.missing([a, b, c], (), 0)
    assert fixed.missing([a, b, c], {first, second}, 0) == []
    assert names(fixed.missing([b, c], {second}, 0)) == ["c"]
    assert fixed.missing([b], {second}, 0) == [], "a cluster that shrank is no fault"


def test_a_fixed_number_goes_where_nobody_else_is() -> None:
    nodes = [node(4, 2, name="a", free=0.0), node(4, 2, name="b")]
    assert names(fleet(nodes, wanted=3).missing(nodes, (), 0)) == ["b", "b", "a"]


def tries(following: Fleet, nodes: list[Node], share: Share, until: float) -> list[float]:
    """When replicas are started on a share of which each dies at once, served or not."""
    found = []
    now = 0.0
    while now < until:
        if share in following.missing(nodes, (), now):
            found.append(now)
            following.lost(share, now, served=True)
        now += 1.0
    return found


def test_a_share_on_which_replicas_die_is_tried_ever_more_slowly() -> None:
    nodes = [node(4, 2)]
    following = fleet(nodes)
    good, bad = following.missing(nodes, (), 0)
    night = tries(following, nodes, bad, 8 * 3600.0)
    assert night[:6] == [0, 1, 3, 7, 15, 31], "the first time at once: a slide may have done it"
    assert len(night) < 110, "a GPU that is sick all night"
    assert night[-1] - night[-2] == 300
    assert following.missing(nodes, (), night[-1] + 1) == [good]
    assert following.missing(nodes, (), night[-1] + 300) == [good, bad], "the sound one first"
    following.leave_alone(good)
    assert following.missing(nodes, (), night[-1] + 1) == []


def test_a_replica_that_starts_and_dies_over_its_first_leases_clears_nothing() -> None:
    nodes = [node(4)]
    following = fleet(nodes)
    (share,) = following.missing(nodes, (), 0)
    for _ in range(4):
        following.started(share)
        following.answered(share)
        again = following.lost(share, 100, served=True)
    assert again == 108
    assert following.missing(nodes, (), 107) == []
    following.started(share)
    for _ in range(8):
        following.answered(share)
    following.lost(share, 200, served=True)
    assert following.missing(nodes, (), 200) == [share], "it worked: one death is one death"


def test_a_run_has_no_hope_where_no_share_can_start_a_replica() -> None:
    nodes = [node(4, 1, name="a"), node(4, 1, name="b")]
    following = fleet(nodes)
    first, second = following.missing(nodes, (), 0)
    for _ in range(MAX_FAILED_STARTS):
        assert not following.hopeless(nodes)
        following.lost(first, 0, served=False)
    assert not following.hopeless(nodes)
    following.leave_alone(second)
    assert following.hopeless(nodes)
    assert not following.hopeless([*nodes, node(4, 1, name="c")]), "one has joined"
    following.started(first)
    assert not following.hopeless(nodes)


def test_a_replica_that_waits_for_room_goes_where_there_is_some() -> None:
    """Another's job holds all of a: a replica that was started there waits."""
    a, b = node(4, 1, name="a", free=0.0), node(4, 1, name="b", free=0.0)
    fixed = fleet([a, b], wanted=2)
    taken = fixed.missing([a, b], (), 0)
    assert fixed.misplaced([a, b], taken, taken, 60) == []
    c = node(4, 1, name="c")
    (given_up,) = fixed.misplaced([a, b, c], taken, taken, 60)
    left = set(taken) - {given_up}
    assert names(fixed.missing([a, b, c], left, 60)) == ["c"]
    assert fixed.misplaced([a, b, c], taken, [], 60) == [], "all have begun"
    following = fleet([a, b])
    assert following.misplaced([a, b, c], taken, taken, 60) == [], "c gets one of its own"


def test_an_error_is_a_nodes_own_until_another_has_it_too() -> None:
    following = fleet([node(4)])
    assert following.alone_with("CommitError", "a", 0)
    assert following.alone_with("CommitError", "a", 10)
    assert following.alone_with("BundleNotFoundError", "b", 20)
    assert not following.alone_with("CommitError", "b", 30)
    assert following.alone_with("BundleNotFoundError", "a", 3600), "that was long ago"


def test_the_largest_share_is_what_more_is_asked_for() -> None:
    nodes = [node(1, name="head"), node(16, name="worker")]
    assert astuple(fleet(nodes).like)[2:] == (0, 16, 16)
