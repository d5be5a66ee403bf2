"""A real Ray cluster on this machine: a head and workers as processes, token authentication on."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
_UP_SECONDS = 120.0
#: As small as Ray takes them.
_STORE_BYTES = 80 * 2**20


def free_port() -> int:
    """Of those that neither Ray's workers (below 20,000) nor connections (from 32,768) take."""
    while True:
        port = 20_000 + secrets.randbelow(12_768)
        with suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


@dataclass
class Node:
    name: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """The node with all that runs on it, as where its power fails."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class TokenCluster:
    """Started by `start`; every node is a process group of its own."""

    folder: Path
    """Of the nodes' sessions: short, since the names of their sockets are limited."""
    home: Path
    dashboard: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    metrics: int = field(default_factory=free_port)
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def folder_of(self, node: str) -> Path:
        """Ray's, of one node."""
        return self.folder / f"{node[0]}{node[-1]}"

    @property
    def token_file(self) -> Path:
        return self.home / "token"

    @property
    def client_environment(self) -> dict[str, str]:
        """Of a user on another machine: the token, and nothing of the nodes."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return inherited | {
            "HOME": str(self.home),
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }

    @property
    def node_environment(self) -> dict[str, str]:
        python = str(Path(sys.executable).parent)
        return self.client_environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_JOB_STOP_WAIT_TIME_S": "20",
            "RAY_worker_niceness": "0",  # what else runs here would starve them
            "PATH": f"{python}:{os.environ['PATH']}",
        }

    @classmethod
    def start(
        cls, workers: int = 2, *, cpus: int = 1, head_cpus: int = 0, head_agent: int | None = None
    ) -> TokenCluster:
        """``head_agent``: the port of the head's agent; a free one."""
        folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
        cluster = cls(folder=folder / "s", home=folder / "h")
        cluster.home.mkdir()
        cluster.token_file.write_text(secrets.token_hex(32))
        cluster.token_file.chmod(0o600)
        try:
            cluster._start_node(
                "head",
                head_cpus,
                "--head",
                f"--port={cluster.port}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={cluster.dashboard}",
                f"--metrics-export-port={cluster.metrics}",
                f"--dashboard-agent-listen-port={head_agent or free_port()}",
            )
            cluster._wait_for_head()
            for number in range(workers):
                cluster.add_node(f"worker-{number}", cpus=cpus)
                cluster.wait_for_nodes(number + 2)  # two at once are slow on few cores
        except BaseException:
            cluster.stop()
            raise
        return cluster

    def add_node(self, name: str, *, cpus: int = 1, hidden: Sequence[Path] = ()) -> None:
        """``hidden``: folders that the node sees empty, as where a disk is not mounted."""
        agent = f"--dashboard-agent-listen-port={free_port()}"
        self._start_node(name, cpus, f"--address=127.0.0.1:{self.port}", agent, hidden=hidden)

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def lose(self, name: str) -> None:
        node = self.node(name)
        self.nodes.remove(node)
        node.kill()

    def wait_for_nodes(self, count: int) -> None:
        self._wait(lambda: len(self._alive()) >= count, f"{count} nodes")

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.kill()
        self.nodes.clear()
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def run(
        self, *arguments: object, timeout: float = 280, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """`cvm-batch` as a user outside types it; ``more`` is in its environment."""
        command = [sys.executable, "-m", "cvm_batch", *map(str, arguments)]
        return subprocess.run(
            command,
            env=self.client_environment | more,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def _start_node(self, name: str, cpus: int, *options: str, hidden: Sequence[Path] = ()) -> None:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command = [*ray, f"--num-cpus={cpus}", f"--object-store-memory={_STORE_BYTES}"]
        # Each its own, as on machines of their own: what one has unpacked, another may not see.
        command += [f"--temp-dir={self.folder_of(name)}"]
        command += [f"--node-name={name}", "--disable-usage-stats"]
        command += options
        if hidden:
            mounts = "; ".join(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in hidden)
            script = f"set -e; {mounts}; exec {shlex.join(command)}"
            command = ["unshare", "--mount", "sh", "-c", script]
        with (self.home / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.node_environment,
                cwd=self.home,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.nodes.append(Node(name, process))

    def _wait_for_head(self) -> None:
        def answers() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.dashboard), 1):
                return True
            return False

        self._wait(answers, "the head")

    def _alive(self) -> list[str]:
        """Names of the nodes that the cluster's own API calls alive."""
        request = urllib.request.Request(
            f"{self.address}/api/v0/nodes",
            headers={"Authorization": f"Bearer {self.token_file.read_text()}"},
        )
        with suppress(OSError, ValueError, KeyError):
            with urllib.request.urlopen(request, timeout=10) as answer:
                listed = json.load(answer)["data"]["result"]["result"]
            return [node["node_name"] for node in listed if node["state"] == "ALIVE"]
        return []

    def _wait(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _UP_SECONDS
        while not true():
            for node in self.nodes:
                if node.process.poll() is not None:
                    log = (self.home / f"{node.name}.log").read_text()
                    raise RuntimeError(f"{node.name} ended: {log}")
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text() for p in self.home.glob("*.log"))
                raise RuntimeError(f"{what} did not come up: {logs}")
            time.sleep(0.3)
