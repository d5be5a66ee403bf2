"""Debian's Prometheus scrapes a real night, and every query of the dashboard has an answer."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvm_batch.model.bundle import Bundle
from tests.archives import making
from tests.cluster.real import TokenCluster, free_port
from tests.cluster.test_files import queries_of_dashboard
from tests.cluster.test_real_cluster import Outside, write_slides
from tests.faults.kill_night import slide_of
from tests.screening.test_run import flip_byte_in_member

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's prometheus"),
]


@pytest.fixture
def prometheus(cluster: TokenCluster, tmp_path: Path) -> Iterator[str]:
    """Its address. Scrapes what the cluster itself says that there is to scrape."""
    discovery = cluster.folder_of("head") / "prom_metrics_service_discovery.json"
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: cvm-batch\n"
        f"    file_sd_configs: [{{files: ['{discovery}'], refresh_interval: 1s}}]\n"
    )
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def answer(prometheus: str, query: str) -> list[Any]:
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(url, timeout=10) as told:
            return list(json.load(told)["data"]["result"])
    except OSError:
        return []


def kill_a_replica(cluster: TokenCluster) -> bool:
    """One of this cluster's, which the home folder in its environment tells."""
    home = f"HOME={cluster.home}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_replica = b"ReplicaActor" in (process / "cmdline").read_bytes()
            if is_replica and home in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
                return True
        except OSError:
            continue
    return False


def test_every_query_has_an_answer(
    cluster: TokenCluster, prometheus: str, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    slides, results = write_slides(tmp_path / "slides", 200, 100), tmp_path / "results"
    making.write_zip(slides / "bad.zip", slide_of(30, seed=1).tiles)
    flip_byte_in_member(slides / "bad.zip")
    night = Outside(
        cluster, slides, "--model", tiny_bundle.path, "--out", results, "--batch-size", 1
    )
    night.wait_for_rows(results)
    assert kill_a_replica(cluster)  # of restarts and retries there is nothing to see else
    unanswered = set(queries_of_dashboard())
    deadline = time.monotonic() + 300
    while unanswered and night.process.poll() is None and time.monotonic() < deadline:
        unanswered = {query for query in unanswered if not answer(prometheus, query)}
        time.sleep(0.5)
    assert not unanswered, f"after {time.monotonic() - deadline + 300:.0f} s"
    names = {one["metric"]["__name__"] for one in answer(prometheus, '{__name__=~"ray_cvm.*"}')}
    series = answer(prometheus, '{__name__=~"ray_cvm.*"}')
    told = json.dumps(series)
    assert names
    assert ".zip" not in told, "no slide is named in a tag"
    cluster.run("stop", "--address", cluster.address)
    code, output = night.ended()
    assert code in (3, 4), output
