"""One cluster for all tests here: it takes most of a minute to come up on two cores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.real import TokenCluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[TokenCluster]:
    made = TokenCluster.start(2)
    yield made
    made.stop()
