"""The dispatcher and the ledger, driven by hand and by random nights."""

from __future__ import annotations

import itertools
import random
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvm_batch.errors import Reason
from cvm_batch.results.schemas import Status
from cvm_batch.screening.work import Lease, Loss, Part, PartOutcome
from tests.screening.by_hand import (
    POLICY,
    counted,
    dispatcher,
    failed,
    lease_for,
    outcomes,
    sources,
)


def test_small_slides_share_a_lease_of_whole_batches() -> None:
    made = dispatcher(*[5] * 40)
    lease = lease_for(made)
    assert lease.tiles == 4 * POLICY.batch_size
    assert len({part.slide.number for part in lease.parts}) == 7
    assert lease.parts[-1] == Part(sources(40)[6], 0, 2), "the last slide is cut to fit"


def test_a_giant_slide_is_shared_out() -> None:
    made = dispatcher(1000)
    made.add_replica(1)
    first, second = lease_for(made, 0), lease_for(made, 1)
    assert [part.slide.number for part in (*first.parts, *second.parts)] == [0, 0]
    assert first.parts[0].stop == second.parts[0].start


def test_parts_end_at_chunks_where_leases_are_large() -> None:
    made = dispatcher(10_000, policy=replace(POLICY, batch_size=100), chunk_tiles=64)
    assert lease_for(made).parts[0].stop == 400 // 64 * 64


def test_two_leases_in_flight_and_no_more() -> None:
    made = dispatcher(1000)
    lease_for(made)
    lease_for(made)
    assert made.next_lease(0, 0.0) is None


def test_lease_size_follows_the_measured_speed() -> None:
    made = dispatcher(100_000)
    lease = lease_for(made, now=10.0)
    made.lease_done(lease.number, outcomes(lease), now=12.0)
    speed = lease.tiles / 2.0
    assert lease_for(made, now=12.0).tiles == round(speed * POLICY.lease_seconds / 8) * 8


def test_leases_grow_before_the_speed_is_known() -> None:
    """A measure takes two seconds: a fast replica would spend them on hundreds of tiny leases."""
    made = dispatcher(100_000)
    held = deque([lease_for(made, now=10.0), lease_for(made, now=10.0)])
    sizes, now, done = [], 10.0, 0
    while (now := now + held[0].tiles / 1000) < 12.0:  # it does a thousand a second
        lease = held.popleft()
        made.lease_done(lease.number, outcomes(lease), now)
        done += lease.tiles
        held.append(lease_for(made, now=now))
        sizes.append(held[-1].tiles)
        assert sizes[-1] == max(4 * POLICY.batch_size, done)
    assert len(sizes) < 12, sizes


def test_two_answers_in_one_moment_do_not_look_like_speed() -> None:
    made = dispatcher(1_000_000)
    first, second = lease_for(made, now=10.0), lease_for(made, now=10.0)
    made.lease_done(first.number, outcomes(first), now=14.0)
    made.lease_done(second.number, outcomes(second), now=14.0 + 2e-5)
    speed = first.tiles / 4.0
    assert lease_for(made, now=14.1).tiles <= 2 * speed * POLICY.lease_seconds


def test_a_slide_ends_once_when_all_its_parts_are_counted() -> None:
    made = dispatcher(40)
    first, second = lease_for(made), lease_for(made)
    assert first.tiles + second.tiles < 40, "leases shrink towards the end"
    assert made.lease_done(second.number, outcomes(second), 1.0) == []
    last = lease_for(made)
    assert made.lease_done(last.number, outcomes(last), 1.0) == []
    assert made.lease_done(first.number, outcomes(first), 1.0) == [0]
    assert made.done
    assert sum(o.classified for o in made.ledger.accounts[0].counted) == 40


def test_a_passing_error_is_tried_again_after_a_wait() -> None:
    made = dispatcher(8)
    lease = lease_for(made)
    made.lease_done(lease.number, [failed(lease.parts[0], Reason.READ_ERROR)], now=10.0)
    assert made.next_lease(0, 10.5) is None
    again = lease_for(made, now=11.0)
    assert again.parts == (replace(lease.parts[0], attempt=1, errors=1, failed_on=(0,)),)
    assert made.lease_done(again.number, outcomes(again), 12.0) == [0]
    assert made.ledger.accounts[0].attempts == 2


def test_a_passing_error_that_stays_fails_the_slide() -> None:
    made = dispatcher(8)
    ended: list[int] = []
    now = 0.0
    for _ in range(POLICY.max_attempts):
        now += 100
        lease = lease_for(made, now=now)
        ended = made.lease_done(lease.number, [failed(lease.parts[0], Reason.READ_ERROR)], now)
    assert ended == [0]
    failure = made.ledger.accounts[0].failure
    assert failure is not None
    assert failure.reason is Reason.READ_ERROR
    assert failure.status is Status.FAILED


def test_a_lasting_error_fails_the_slide_at_once_and_its_neighbours_go_on() -> None:
    made = dispatcher(100, 8)
    first, second = lease_for(made), lease_for(made)
    ended = made.lease_done(first.number, [failed(first.parts[0], Reason.BAD_FORMAT)], 1.0)
    assert ended == [0]
    assert made.lease_done(second.number, outcomes(second), 1.0) == [], "its answer is ignored"
    rest = lease_for(made)
    assert [part.slide.number for part in rest.parts] == [1]
    assert made.lease_done(rest.number, outcomes(rest), 2.0) == [1]
    assert made.done


def test_a_late_answer_of_a_lost_replica_is_ignored() -> None:
    made = dispatcher(8)
    late = lease_for(made)
    made.replica_lost(0, Loss.DIED, "killed", 1.0)
    made.add_replica(1)
    again = lease_for(made, 1, 1.0)
    assert made.lease_done(late.number, outcomes(late), 2.0) == []
    assert made.lease_done(again.number, outcomes(again), 2.0) == [0]
    assert made.ledger.accounts[0].accounted == 8


def test_preempted_nodes_are_not_charged_to_the_slide() -> None:
    made = dispatcher(8)
    for replica in range(10):
        lease_for(made, replica, 1.0)
        assert made.replica_lost(replica, Loss.PREEMPTED, "spot", 1.0) == []
        made.add_replica(replica + 1)
    last = lease_for(made, 10, 1.0)
    assert made.lease_done(last.number, outcomes(last), 2.0) == [0]
    assert made.ledger.accounts[0].failure is None


def test_what_was_preempted_is_suspected_of_nothing() -> None:
    made = dispatcher(*[4] * 200)
    lost = lease_for(made)
    made.replica_lost(0, Loss.PREEMPTED, "spot", 1.0)
    made.add_replica(1, 1.0)
    again = lease_for(made, 1, 1.0)
    assert [part.slide.number for part in again.parts][: len(lost.parts)] == list(range(8))
    assert made.next_lease(1, 1.0) is not None, "nothing runs alone"


def test_a_part_that_fails_is_tried_on_another_node() -> None:
    made = dispatcher(8)
    for replica, node in ((1, ""), (2, "elsewhere")):
        made.add_replica(replica, 0.0, node)
    lease = lease_for(made)
    made.lease_done(lease.number, [failed(lease.parts[0], Reason.READ_ERROR)], 1.0)
    assert made.next_lease(0, 10.0) is None, "it has failed here"
    assert made.next_lease(1, 10.0) is None, "on this node"
    made.replica_lost(2, Loss.DIED, "killed", 11.0)
    assert made.next_lease(0, 12.0) is None, "this very replica has failed it"
    assert lease_for(made, 1, 12.0).parts[0].errors == 1


def test_what_seems_changed_on_one_node_is_asked_of_another() -> None:
    made = dispatcher(8)
    made.add_replica(1, 0.0, "elsewhere")
    lease = lease_for(made)
    assert made.lease_done(lease.number, [failed(lease.parts[0], Reason.INPUT_CHANGED)], 1.0) == []
    again = lease_for(made, 1, 10.0)
    assert made.lease_done(again.number, [failed(again.parts[0], Reason.INPUT_CHANGED)], 11.0) == [
        0
    ]


def all_fail(lease: Lease) -> list[PartOutcome]:
    return [failed(part, Reason.READ_ERROR) for part in lease.parts]


def test_a_replica_that_fails_all_is_suspended_and_then_tried_with_one_part() -> None:
    made = dispatcher(*[4] * 100)
    made.add_replica(1, 0.0, "healthy")
    bad = lease_for(made)
    made.lease_done(bad.number, all_fail(bad), 0.01)
    assert made.newly_suspended() == [(0, POLICY.suspend_seconds)]
    assert made.newly_suspended() == []
    assert made.next_lease(0, 14.0) is None
    probe = lease_for(made, 0, 16.0)
    assert [part.errors for part in probe.parts] == [0], "a fresh one, which has all its attempts"
    assert made.next_lease(0, 16.0) is None, "and no more"
    made.lease_done(probe.number, all_fail(probe), 16.01)
    assert made.next_lease(0, 16.0 + 1.9 * POLICY.suspend_seconds) is None, "twice as long"
    probe = lease_for(made, 0, 16.1 + 2 * POLICY.suspend_seconds)
    made.lease_done(probe.number, outcomes(probe), 50.0)
    assert len(lease_for(made, 0, 50.0).parts) > 1


def test_slides_that_cannot_be_read_anywhere_make_no_replica_doubted() -> None:
    made = dispatcher(*[8] * 12)
    for replica in (1, 2, 3):
        made.add_replica(replica, 0.0, f"node-{replica}")
    ended: list[int] = []
    for turn, replica in enumerate([0, 1, 2, 3] * 40):
        now = 10.0 * turn
        while (lease := made.next_lease(replica, now)) is not None:
            ended += made.lease_done(
                lease.number,
                [
                    failed(part, Reason.READ_ERROR) if part.slide.number < 5 else counted(part)
                    for part in lease.parts
                ],
                now,
            )
    assert sorted(ended) == list(range(12))
    assert made.newly_suspended() == []


def test_while_nobody_can_read_one_part_at_a_time_is_tried() -> None:
    made = dispatcher(*[4] * 200)
    made.add_replica(1, 0.0, "other")
    for replica in (0, 1):
        lease = lease_for(made, replica)
        made.lease_done(lease.number, all_fail(lease), 0.01)
    probe = lease_for(made, 0, 20.0)
    assert made.next_lease(1, 20.0) is None, "the other waits for its answer"
    made.lease_done(probe.number, all_fail(probe), 20.01)
    assert made.next_lease(1, 21.0) is None
    probe = lease_for(made, 1, 60.0)
    made.lease_done(probe.number, outcomes(probe), 61.0)
    assert len(lease_for(made, 1, 61.0).parts) > 1
    assert len(lease_for(made, 0, 61.0).parts) == 1, "at once, now that the store is back"
    assert all(account.failure is None for account in made.ledger.accounts)


def test_no_night_ends_early_because_its_only_replica_rests() -> None:
    """With a speed that is known and none that is usable, nothing would seem to fit."""
    made = dispatcher(*[16] * 200)
    made.until = 8 * 3600.0
    now = 0.0
    for _ in range(3):
        lease = lease_for(made, now=now)
        now += 4.0
        made.lease_done(lease.number, outcomes(lease), now)
    while not made.newly_suspended():
        bad = lease_for(made, now=now)
        found = [failed(part, Reason.INPUT_CHANGED) for part in bad.parts]
        made.lease_done(bad.number, found, now)  # nobody else to ask: the slides fail
    assert made.next_lease(0, now + 1.0) is None
    assert not made.exhausted
    assert lease_for(made, now=now + POLICY.suspend_seconds + 1.0).parts


def test_damage_that_the_only_replica_meets_is_the_slides() -> None:
    """A bad copy of a shelf of slides: a healthy machine is not to rest over it."""
    made = dispatcher(*[4] * 100)
    for turn in range(10):
        lease = lease_for(made, now=float(turn))
        found = [failed(part, Reason.CHECKSUM_MISMATCH) for part in lease.parts]
        made.lease_done(lease.number, found, turn + 0.5)
        if made.done:
            break
    assert made.newly_suspended() == []


def test_damage_that_one_of_several_meets_may_be_its_own() -> None:
    made = dispatcher(*[4] * 100)
    made.add_replica(1, 0.0, "healthy")
    lease = lease_for(made)
    found = [failed(part, Reason.CHECKSUM_MISMATCH) for part in lease.parts]
    made.lease_done(lease.number, found, 0.01)
    assert made.newly_suspended() == [(0, POLICY.suspend_seconds)]


def test_a_damaged_slide_shows_that_the_store_is_back() -> None:
    made = dispatcher(*[4] * 100)
    lease = lease_for(made)
    made.lease_done(lease.number, all_fail(lease), 0.01)
    probe = lease_for(made, 0, 20.0)
    made.lease_done(probe.number, [failed(probe.parts[0], Reason.CHECKSUM_MISMATCH)], 20.01)
    assert len(lease_for(made, 0, 20.02).parts) > 1


def test_where_nobody_can_read_for_long_the_run_comes_to_its_end() -> None:
    made = dispatcher(*[4] * 50)
    now = 0.0
    while not made.done:
        assert now < 2 * POLICY.outage_seconds
        lease = made.next_lease(0, now)
        if lease is not None:
            made.lease_done(lease.number, all_fail(lease), now)
        now += 1.0
    assert {account.failure and account.failure.reason for account in made.ledger.accounts} == {
        Reason.READ_ERROR
    }


def test_failures_are_no_speed() -> None:
    made = dispatcher(*[32] * 3_000)
    lease = lease_for(made, now=0.0)
    made.lease_done(lease.number, outcomes(lease), 4.0)
    measured = lease_for(made, now=4.0)
    mixed = [failed(measured.parts[0], Reason.READ_ERROR)] * len(measured.parts)
    made.lease_done(measured.number, mixed, 4.001)
    assert lease_for(made, now=10.0).tiles == measured.tiles


def test_an_urgent_slide_goes_before_suspects() -> None:
    made = dispatcher(*[4] * 8)
    lease_for(made)
    made.replica_lost(0, Loss.DIED, "killed", 1.0)
    made.add_replica(1, 1.0)
    made.add_slide(replace(sources(1)[0], number=8, slide_id="urgent"), 8, priority=5)
    assert lease_for(made, 1, 1.0).parts[0].slide.number == 8


def test_suspects_leave_most_replicas_to_other_work() -> None:
    made = dispatcher(*[40] * 40)
    for replica in range(1, 9):
        made.add_replica(replica)
    lease_for(made)
    made.replica_lost(0, Loss.DIED, "killed", 1.0)
    alone = [lease_for(made, replica, 1.0).parts[0].attempt for replica in range(1, 9)]
    assert sum(alone) == 1, "the one lost part; and nobody waits for it"


def test_an_urgent_slide_overtakes_one_that_is_half_handed_out() -> None:
    made = dispatcher(1_000, 500)
    first = lease_for(made)
    made.add_slide(replace(sources(1)[0], number=2, slide_id="late"), 8, priority=5)
    made.set_priority(1, 1)
    second = lease_for(made)
    assert [part.slide.number for part in first.parts] == [0]
    assert [part.slide.number for part in second.parts] == [2, 1]
    made.lease_done(first.number, outcomes(first), 1.0)
    made.set_priority(1, 0)
    assert [part.slide.number for part in lease_for(made).parts] == [0]


def test_a_replica_that_gets_on_with_nothing_is_overdue() -> None:
    made = dispatcher(1_000)
    assert made.overdue(1e6) == [], "an idle one may wait for ever"
    lease_for(made, now=10.0)
    late = 10.0 + POLICY.patience_seconds + 1
    assert made.overdue(late - 2) == []
    assert made.overdue(late) == [0]
    made.note_progress(0, 8, late)
    assert made.overdue(late) == []
    made.note_progress(0, 8, late + 60)  # the same tiles are no progress
    assert made.overdue(late + POLICY.patience_seconds + 1) == [0]


def test_a_lease_that_is_left_behind_makes_its_replica_overdue() -> None:
    made = dispatcher(100_000)
    stuck = lease_for(made, now=0.0)
    now = 0.0
    for _ in range(3):
        lease = lease_for(made, now=now)
        now += 10.0
        made.lease_done(lease.number, outcomes(lease), now)
    assert stuck.number < lease.number
    lease_for(made, now=now)
    made.note_progress(0, 10_000, now + POLICY.patience_seconds)
    assert made.overdue(now + POLICY.patience_seconds) == []
    assert made.overdue(now + POLICY.patience_seconds + 1) == [0]


def test_signs_of_other_work_than_tiles_are_signs_of_life() -> None:
    made = dispatcher(1_000)
    lease_for(made, now=0.0)
    made.note_progress(0, 0, 100.0, signs=6_000_000_000)
    assert made.overdue(101.0 + POLICY.patience_seconds - 2) == []
    made.note_progress(0, 0, 200.0, signs=6_000_000_000)  # the same again is none
    assert made.overdue(101.0 + POLICY.patience_seconds) == [0]


def test_a_replica_that_is_being_ended_gets_nothing_more() -> None:
    made = dispatcher(8)
    held = lease_for(made, now=0.0)
    made.add_slide(replace(sources(1)[0], number=1, slide_id="later"), 8)
    assert made.hungry() == [0]
    late = POLICY.patience_seconds + 1
    assert made.overdue(late) == [0]
    made.retire(0)
    assert made.hungry() == []
    assert made.overdue(late) == [], "it is ended once"
    assert made.lease_done(held.number, outcomes(held), late) == [0], "its answer still counts"
    assert made.hungry() == [], "what it has answered makes it no better"
    made.replica_lost(0, Loss.HUNG, "ended", late)
    made.add_replica(1, late)
    assert lease_for(made, 1, late).parts[0].slide.number == 1


def test_running_leases_count_as_far_as_they_are() -> None:
    made = dispatcher(1_000)
    first, second = lease_for(made), lease_for(made)
    made.note_progress(0, 10, 1.0)
    assert made.tiles_done == 10
    made.lease_done(first.number, outcomes(first), 2.0)
    assert made.tiles_done == first.tiles
    made.note_progress(0, first.tiles + 5, 3.0)
    assert made.tiles_done == first.tiles + 5
    made.replica_lost(0, Loss.DIED, "killed", 4.0)
    assert made.tiles_done == first.tiles
    assert second.tiles


def test_a_slide_that_hangs_is_told_from_one_that_kills() -> None:
    made = dispatcher(8)
    ended: list[int] = []
    for replica in range(1 + POLICY.max_attempts):
        lease_for(made, replica, 1.0)
        ended += made.replica_lost(replica, Loss.HUNG, "ended", 1.0)
        made.add_replica(replica + 1)
    assert ended == [0]
    failure = made.ledger.accounts[0].failure
    assert failure is not None
    assert failure.reason is Reason.TIMEOUT


def test_a_suspect_whose_slide_has_failed_meanwhile_is_forgotten() -> None:
    made = dispatcher(64)
    made.add_replica(1)
    lost, other = lease_for(made, 0), lease_for(made, 1)
    assert {part.slide.number for part in (*lost.parts, *other.parts)} == {0}
    made.replica_lost(0, Loss.DIED, "killed", 1.0)
    assert made.lease_done(other.number, [failed(other.parts[0], Reason.BAD_FORMAT)], 2.0) == [0]
    assert made.next_lease(1, 3.0) is None
    assert made.done
    assert made.exhausted


def test_a_lease_ends_with_whole_chunks() -> None:
    """What room is left beside a giant slide would cut its next chunk in two."""
    made = dispatcher(100_000, chunk_tiles=7)
    for _ in range(4):
        lease = lease_for(made)
        assert len(lease.parts) == 1
        assert lease.parts[0].stop % 7 == 0
        made.lease_done(lease.number, outcomes(lease), 1.0)


def test_a_retry_leaves_room_for_fresh_work() -> None:
    made = dispatcher(100_000, chunk_tiles=8)
    first = lease_for(made)
    second = lease_for(made)
    made.lease_done(second.number, outcomes(second), 2.0)
    made.lease_done(first.number, all_fail(first), 2.1)
    assert second.parts[0].start == first.parts[0].stop
    again = lease_for(made, now=60.0)
    assert [part.errors for part in again.parts] == [1, 0]


def test_nobody_hangs_while_nobody_listens() -> None:
    """The driver has waited for the results' store, or was frozen with its machine."""
    made = dispatcher(*[16] * 100)
    lease_for(made, now=0.0)
    later = POLICY.patience_seconds + 100.0
    assert made.overdue(later) == [0]
    made.excuse(later)
    assert made.overdue(later) == []
    assert made.overdue(later + POLICY.patience_seconds + 1.0) == [0]


def test_leases_end_before_the_deadline() -> None:
    made = dispatcher(*[400] * 30)
    lease = lease_for(made, now=0.0)
    made.lease_done(lease.number, outcomes(lease), 4.0)
    speed = lease.tiles / 4.0
    made.until = 4.0 + 10.0
    handed_out = 0
    while (more := made.next_lease(0, 4.0)) is not None:
        handed_out += more.tiles
    assert 0 < handed_out <= 10.0 * speed
    assert made.next_lease(0, 13.9) is None


def test_a_slide_that_cannot_end_in_time_is_not_begun() -> None:
    made = dispatcher(10_000, 16)
    made.until = 100.0
    lease = lease_for(made, now=0.0)
    assert {part.slide.number for part in lease.parts} == {0}, "no speed is known yet"
    made.lease_done(lease.number, outcomes(lease), 4.0)
    lease = lease_for(made, now=4.0)
    made.lease_done(lease.number, outcomes(lease), 8.0)
    made.add_slide(replace(sources(1)[0], number=2, slide_id="giant"), 5_000, priority=9)
    small = lease_for(made, now=8.0)
    assert 2 not in {part.slide.number for part in small.parts}
    for replica in range(1, 50):
        made.add_replica(replica, 8.0)
    assert {part.slide.number for part in lease_for(made, 1, 8.0).parts} == {2}, "many can"


def test_what_was_set_aside_is_taken_up_once_the_replicas_prove_faster() -> None:
    made = dispatcher(*[160] * 2, 100)
    made.until = 1_000.0
    now = 0.0
    for seconds in (300.0, 300.0):
        lease = lease_for(made, now=now)
        now += seconds
        made.lease_done(lease.number, outcomes(lease), now)
    made.add_slide(replace(sources(1)[0], number=3, slide_id="large"), 1_000, priority=9)
    lease = lease_for(made, now=now)
    assert 3 not in {part.slide.number for part in lease.parts}
    made.lease_done(lease.number, outcomes(lease), now + 2.0)
    assert lease_for(made, now=now + 2.0).parts[0].slide.number == 3


@pytest.mark.parametrize("loss", [Loss.DIED, Loss.PREEMPTED])
@pytest.mark.parametrize(("now", "fits"), [(60.0, True), (80.0, False)])
def test_what_was_lost_is_not_tried_past_the_deadline(loss: Loss, now: float, fits: bool) -> None:
    made = dispatcher(32, 3_200)
    made.until = 100.0
    made.set_priority(0, 1)
    assert [part.slide.number for part in lease_for(made).parts] == [0]
    made.add_replica(1, 0.0)
    slow = lease_for(made, 1, now=0.0)
    made.lease_done(slow.number, outcomes(slow), float(slow.tiles))  # a tile a second
    made.replica_lost(0, loss, "gone", 40.0)
    assert (lease_for(made, 1, now).parts[0].slide.number == 0) is fits


def test_read_errors_and_deaths_are_counted_apart() -> None:
    made = dispatcher(8)
    lease = lease_for(made)
    made.lease_done(lease.number, [failed(lease.parts[0], Reason.READ_ERROR)], 1.0)
    lease = lease_for(made, now=100.0)
    made.lease_done(lease.number, [failed(lease.parts[0], Reason.READ_ERROR)], 101.0)
    lease_for(made, now=200.0)
    assert made.replica_lost(0, Loss.DIED, "killed", 201.0) == []


def test_a_slide_that_changed_is_not_tried_again_in_the_same_run() -> None:
    made = dispatcher(8)
    lease = lease_for(made)
    assert made.lease_done(lease.number, [failed(lease.parts[0], Reason.INPUT_CHANGED)], 1.0) == [0]


@settings(max_examples=200, deadline=None)
@given(
    tiles=st.lists(st.integers(1, 200), min_size=1, max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_slide_ends_once_whatever_happens(tiles: list[int], seed: int) -> None:
    random_night(tiles, seed)


@pytest.mark.campaign
def test_ten_thousand_random_nights() -> None:
    for seed in range(10_000):
        chance = random.Random(seed)
        random_night([chance.randint(1, 300) for _ in range(chance.randint(1, 40))], seed)


def random_night(tiles: list[int], seed: int) -> None:
    """Deaths, passing and lasting errors, answers out of order and late."""
    chance = random.Random(seed)
    made = dispatcher(*tiles, chunk_tiles=chance.choice([1, 16]))
    held: dict[int, list[Lease]] = {}
    late: list[Lease] = []
    ended: list[int] = []
    held[0] = []
    now, replicas = 0.0, 1
    for _ in range(20_000):
        if made.done:
            break
        now += chance.random()
        if len(held) < 3:
            made.add_replica(replicas)
            held[replicas] = []
            replicas += 1
        replica = chance.choice(list(held))
        lease = made.next_lease(replica, now)
        if lease is not None:
            held[replica].append(lease)
            assert len(held[replica]) <= POLICY.in_flight
        if chance.random() < 0.05:
            late += held.pop(replica)
            ended += made.replica_lost(replica, Loss.DIED, "killed", now)
        elif held[replica] and chance.random() < 0.5:
            answered = held[replica].pop(0)
            ended += made.lease_done(answered.number, random_outcomes(answered, chance), now)
        if late and chance.random() < 0.3:
            unasked = late.pop()
            assert made.lease_done(unasked.number, outcomes(unasked), now) == []
    assert made.done, "the night does not end"
    assert sorted(ended) == list(range(len(tiles)))
    assert made.ledger.tiles_accounted == sum(tiles)
    for number, account in enumerate(made.ledger.accounts):
        if account.failure is None:
            covered = sorted((o.part.start, o.part.stop) for o in account.counted)
            assert covered[0][0] == 0
            assert covered[-1][1] == tiles[number]
            assert all(a[1] == b[0] for a, b in itertools.pairwise(covered))


def random_outcomes(lease: Lease, chance: random.Random) -> list[PartOutcome]:
    def outcome(part: Part) -> PartOutcome:
        fate = chance.random()
        if fate < 0.03:
            return failed(part, Reason.BAD_FORMAT)
        return failed(part, Reason.READ_ERROR) if fate < 0.1 else counted(part)

    return [outcome(part) for part in lease.parts]


def test_an_outcome_that_is_not_whole_cannot_be_counted() -> None:
    made = dispatcher(8)
    lease = lease_for(made)
    with pytest.raises(AssertionError):
        made.ledger.count(failed(lease.parts[0], Reason.READ_ERROR))
