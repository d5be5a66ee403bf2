"""A night for each test, and for those that kill processes a cluster to do it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cvm_batch.model.bundle import Bundle
from tests.faults.night import Night

if TYPE_CHECKING:  # Ray takes a second to import, which most of the tests here do without
    from tests.faults.kill_night import Nightly, RealCluster
    from tests.faults.small_night import Small


@pytest.fixture
def night(tmp_path: Path, tiny_bundle: Bundle) -> Night:
    return Night(tmp_path, tiny_bundle)


@pytest.fixture(scope="package")
def cluster() -> Iterator[RealCluster]:
    from tests.faults.kill_night import RealCluster

    cluster = RealCluster()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="package")
def nightly(
    tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle, cluster: RealCluster
) -> Nightly:
    from tests.faults.kill_night import Nightly

    return Nightly.prepare(tmp_path_factory.mktemp("nightly"), tiny_bundle, cluster)


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Iterator[Small]:
    from tests.faults.small_night import Small

    with Small.prepared(tmp_path_factory.mktemp("small"), tiny_bundle) as small:
        yield small
