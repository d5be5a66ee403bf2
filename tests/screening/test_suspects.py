"""What was lost with its replica or node runs alone, and only that is charged."""

from __future__ import annotations

from dataclasses import replace

from cvm_batch.errors import Reason
from cvm_batch.screening.dispatcher import Dispatcher
from cvm_batch.screening.policy import LeasePolicy
from cvm_batch.screening.work import Lease, Loss
from tests.screening.by_hand import (
    POLICY,
    dispatcher,
    failed,
    lease_for,
    outcomes,
    sources,
)


def test_after_a_death_each_suspect_runs_alone() -> None:
    made = dispatcher(*[4] * 8, *[40] * 4)
    made.add_replica(1)
    lost, busy = lease_for(made, 0), lease_for(made, 1)
    made.replica_lost(0, Loss.DIED, "killed", 1.0)
    assert made.next_lease(1, 1.0) is None, "it drains first"
    made.lease_done(busy.number, outcomes(busy), 2.0)
    for part in lost.parts:
        alone = lease_for(made, 1, 2.0)
        assert alone.parts == (replace(part, attempt=1),), "not charged yet"
        assert made.next_lease(1, 2.0) is None, "nothing runs beside a suspect"
        made.lease_done(alone.number, outcomes(alone), 2.0)
    assert lease_for(made, 1, 3.0).parts[0].attempt == 0


def test_a_slide_that_kills_its_replica_each_time_fails_alone() -> None:
    made = dispatcher(8, 8)
    killer = 0
    replica = 0
    ended: list[int] = []
    while not made.done:
        lease = lease_for(made, replica, 1.0)
        if any(part.slide.number == killer for part in lease.parts):
            ended += made.replica_lost(replica, Loss.DIED, "signal 11", 1.0)
            replica += 1
            made.add_replica(replica)
        else:
            ended += made.lease_done(lease.number, outcomes(lease), 1.0)
    assert sorted(ended) == [0, 1]
    assert replica == 1 + POLICY.max_attempts, "the first death was nobody's in particular"
    failure = made.ledger.accounts[killer].failure
    assert failure is not None
    assert failure.reason is Reason.REPLICA_LOST
    assert "signal 11" in failure.detail
    assert made.ledger.accounts[1].failure is None


def test_a_slide_that_takes_nodes_down_fails_and_its_neighbours_are_complete() -> None:
    made = dispatcher(*[4] * 8)
    killer, replica, alone = 5, 0, 0
    ended: list[int] = []
    while not made.done:
        lease = lease_for(made, replica, 1.0)
        if killer in {part.slide.number for part in lease.parts}:
            alone += len(lease.parts) == 1
            ended += made.replica_lost(replica, Loss.NODE_LOST, "no answer", 1.0)
            replica += 1
            made.add_replica(replica, 1.0, f"node-{replica}")
        else:
            ended += made.lease_done(lease.number, outcomes(lease), 1.0)
    assert sorted(ended) == list(range(8))
    assert (replica, alone) == (POLICY.max_nodes, 3)
    failures = {n: account.failure for n, account in enumerate(made.ledger.accounts)}
    failure = failures.pop(killer)
    assert failure is not None
    assert (failure.reason, set(failures.values())) == (Reason.REPLICA_LOST, {None})
    assert "5 nodes went away" in failure.detail


def with_node_suspects(*tiles: int, policy: LeasePolicy = POLICY) -> Dispatcher:
    """What two leases hold has lost two nodes; replicas 2 and 3 are on one node."""
    made = dispatcher(*tiles, policy=policy)
    for replica in (1, 2):
        lease_for(made, replica - 1, 1.0)
        lease_for(made, replica - 1, 1.0)
        made.replica_lost(replica - 1, Loss.NODE_LOST, "no answer", 1.0)
        made.add_replica(replica, 1.0, "left")
    made.add_replica(3, 1.0, "left")
    return made


def test_suspects_that_may_take_their_node_down_do_not_share_one() -> None:
    made = with_node_suspects(8, 8, policy=replace(POLICY, suspect_share=1))
    made.add_replica(4, 1.0, "right")
    suspect = lease_for(made, 2, 1.0)
    assert [part.nodes for part in suspect.parts] == [2]
    assert made.next_lease(3, 1.0) is None
    assert [part.nodes for part in lease_for(made, 4, 1.0).parts] == [2]
    made.lease_done(suspect.number, outcomes(suspect), 2.0)
    assert made.next_lease(2, 2.0) is None
    assert made.next_lease(3, 2.0) is None, "nothing is left"


def test_a_node_runs_empty_before_what_may_take_it_down_and_nothing_runs_beside_it() -> None:
    made = with_node_suspects(*[4] * 50, policy=replace(POLICY, suspect_share=2))
    made.set_priority(49, 1)
    urgent = lease_for(made, 3, 1.0)
    assert {part.slide.number for part in urgent.parts} >= {49}
    made.add_replica(4, 1.0, "right")
    assert made.next_lease(2, 1.0) is None, "its neighbour still runs something"
    assert made.next_lease(3, 1.0) is None, "which gets nothing more"
    on_the_other = lease_for(made, 4, 1.0)
    assert {part.nodes for part in on_the_other.parts} == {0}, "one node of two works on"
    made.lease_done(urgent.number, outcomes(urgent), 2.0)
    suspect = lease_for(made, 2, 2.0)
    assert [part.nodes for part in suspect.parts] == [2]
    assert made.next_lease(3, 2.0) is None


def test_a_busy_neighbour_is_waited_for_and_let_go_on_afterwards() -> None:
    made = with_node_suspects(*[32] * 8, policy=replace(POLICY, suspect_share=1))
    made.replica_lost(3, Loss.PREEMPTED, "spot", 1.0)
    alone = lease_for(made, 2, 1.0)
    made.add_replica(5, 1.0, "left")
    assert made.next_lease(5, 1.0) is None, "it came up while a suspect runs on its node"
    made.lease_done(alone.number, outcomes(alone), 2.0)
    held = []
    while not made.done:
        for replica in (5, 2):
            if (lease := made.next_lease(replica, 3.0)) is not None:
                held.append(lease)
                together = [part.nodes for each in held for part in each.parts]
                assert max(together) < 2 or len(together) == 1
        oldest = held.pop(0)
        made.lease_done(oldest.number, outcomes(oldest), 4.0)


def test_a_node_is_free_again_once_the_replica_that_it_was_kept_for_is_gone() -> None:
    made = with_node_suspects(8, 8)
    lease_for(made, 2, 1.0)
    assert made.next_lease(3, 1.0) is None
    made.replica_lost(2, Loss.DIED, "killed", 2.0)
    again = lease_for(made, 3, 2.0)
    assert [part.deaths for part in again.parts] == [1], "what has cost most goes first"


def test_the_rest_of_a_slide_waits_while_a_part_of_it_may_take_nodes_down() -> None:
    made = with_node_suspects(400, *[4] * 50)
    made.add_replica(4, 1.0, "right")
    for _ in range(2):
        suspect = lease_for(made, 2, 1.0)
        assert [(part.slide.number, part.nodes) for part in suspect.parts] == [(0, 2)]
        beside = lease_for(made, 4, 1.0)
        assert 0 not in {part.slide.number for part in beside.parts}
        for lease in (suspect, beside):
            made.lease_done(lease.number, outcomes(lease), 2.0)
    assert {part.slide.number for part in lease_for(made, 4, 2.0).parts} == {0}, "all is well"


def test_what_may_take_nodes_down_is_alone_also_after_an_error_that_may_pass() -> None:
    made = with_node_suspects(8, 8)
    alone = lease_for(made, 2, 1.0)
    made.lease_done(alone.number, [failed(alone.parts[0], Reason.READ_ERROR)], 2.0)
    made.add_replica(4, 2.0, "right")
    other = lease_for(made, 2, 2.0)
    assert other.parts[0].errors == 0
    made.lease_done(other.number, outcomes(other), 3.0)
    assert made.next_lease(2, 10.0) is None, "it has failed on this node"
    again = lease_for(made, 4, 10.0)
    assert [(part.nodes, part.errors) for part in again.parts] == [(2, 1)]
    assert made.next_lease(4, 10.0) is None


def with_one_node_suspect(slides: int) -> Dispatcher:
    """Slide 0, of 8 tiles as all of them, has lost two nodes. Leases hold one slide."""
    made = dispatcher(*[8] * slides, policy=replace(POLICY, max_parts=1))
    for replica in (0, 1):
        assert [part.slide.number for part in lease_for(made, replica).parts] == [0]
        made.replica_lost(replica, Loss.NODE_LOST, "no answer", 1.0)
        made.add_replica(replica + 1, 1.0, "first")
    return made


def slide_of(lease: Lease) -> int:
    return lease.parts[0].slide.number


def test_one_suspect_empties_one_node_and_no_more() -> None:
    made = with_one_node_suspect(400)
    made.replica_lost(2, Loss.PREEMPTED, "spot", 1.0)
    for urgent in range(392, 400):
        made.set_priority(urgent, 1)
    for replica in range(10, 26):
        made.add_replica(replica, 2.0, f"node-{replica % 8}")
    busy = [lease_for(made, replica, 2.0) for replica in range(10, 18)]
    assert {slide_of(lease) for lease in busy} == set(range(392, 400))
    refused = [replica for replica in range(10, 26) if made.next_lease(replica, 2.0) is None]
    assert refused == [10, 18], "both are on the node that runs empty"


def test_a_suspect_does_not_wait_for_a_busy_replica_while_another_idles() -> None:
    made = with_one_node_suspect(2)
    made.add_replica(3, 1.0, "second")
    made.set_priority(1, 1)
    lease_for(made, 2, 1.0)
    assert made.next_lease(2, 1.0) is None, "kept for the suspect"
    assert slide_of(lease_for(made, 3, 1.0)) == 0


def test_the_more_urgent_suspect_goes_first_whatever_it_is_suspected_of() -> None:
    made = with_one_node_suspect(40)
    made.add_replica(3, 1.0, "second")
    made.set_priority(1, 9)
    assert slide_of(lease_for(made, 3, 1.0)) == 1
    made.replica_lost(3, Loss.DIED, "killed", 2.0)
    assert slide_of(lease_for(made, 2, 2.0)) == 1


def test_a_replica_that_turns_to_a_more_urgent_suspect_is_kept_for_no_other() -> None:
    """It holds a share of one: the others would let suspects wait for it."""
    made = with_one_node_suspect(400)
    made.set_priority(0, -1)
    for replica, node in ((3, "second"), (4, "second"), (9, "third")):
        made.add_replica(replica, 1.0, node)
    died = [slide_of(lease_for(made, 9, 1.0)) for _ in range(2)]
    made.replica_lost(9, Loss.DIED, "killed", 1.0)
    for slide in died:
        made.set_priority(slide, -1)
    running = lease_for(made, 2, 1.0)
    for slide in died:
        made.set_priority(slide, 5)
    assert made.next_lease(2, 1.0) is None, "kept for one of the two"
    made.set_priority(0, 9)
    made.lease_done(running.number, outcomes(running), 2.0)
    assert slide_of(lease_for(made, 2, 2.0)) == 0
    assert slide_of(lease_for(made, 3, 2.0)) in died


def test_parts_of_a_slide_that_failed_are_no_suspects_any_more() -> None:
    made = with_node_suspects(400, 8)
    made.set_priority(0, 1)
    alone = lease_for(made, 2, 1.0)
    assert len(made._suspects._by_node.queue) == 1
    made.lease_done(alone.number, [failed(alone.parts[0], Reason.BAD_FORMAT)], 2.0)
    assert len(made._suspects._by_node.queue) == 0


def test_suspects_leave_nodes_to_work_that_comes_later() -> None:
    made = with_node_suspects(8, 8, policy=replace(POLICY, suspect_share=2))
    made.add_replica(4, 1.0, "right")
    alone = [lease_for(made, 2, 1.0), lease_for(made, 4, 1.0)]
    again = [failed(lease.parts[0], Reason.READ_ERROR) for lease in alone]
    for lease, outcome in zip(alone, again, strict=True):
        made.lease_done(lease.number, [outcome], 2.0)
    made.add_slide(sources(3)[2], 800)
    got = [made.next_lease(replica, 10.0) for replica in (2, 3, 4)]
    assert sorted({part.nodes for lease in got if lease for part in lease.parts}) == [0, 2]


def test_a_node_is_kept_until_what_hangs_on_it_has_been_ended() -> None:
    made = with_one_node_suspect(40)
    made.add_replica(3, 1.0, "first")
    lease_for(made, 2, 1.0)
    made.retire(2)
    assert made.next_lease(3, 200.0) is None
    made.replica_lost(2, Loss.HUNG, "no sign", 201.0)
    assert slide_of(lease_for(made, 3, 201.0)) == 0
