"""Three slides whose drivers come to grief, and what must be true before and after another's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cvm_batch.model.bundle import Bundle
from tests.archives.making import write_zip
from tests.faults.comparing import Found, assert_equal, assert_tidy, read_night
from tests.faults.driver_steps import Step
from tests.faults.forked_drivers import Drivers, drivers
from tests.faults.kill_night import committed, slide_of
from tests.faults.watching import Watch

SLIDES = 3
#: The driver's own: of the claim, the manifest, each batch, the manifest again.
FLUSHES = Step("fsync", "/.tmp/", "MainThread")
BATCHES = Step("link", "/slides/")
BATCHES_LAST = Step("fsync", "/slides/")
MANIFESTS = Step("replace", "/runs/")


def write_slides(folder: Path) -> Path:
    for number in range(SLIDES):
        write_zip(folder / f"{number}.zip", slide_of(20 + number, seed=number).tiles)
    return folder


@dataclass(frozen=True)
class Small:
    drivers: Drivers
    results: Path
    """What comes of the slides where nothing happens, ..."""
    steps: Sequence[Step]
    """... by which steps, ..."""
    undisturbed: Mapping[str, Found]
    """... and as a reader sees it."""

    @classmethod
    @contextmanager
    def prepared(cls, folder: Path, bundle: Bundle) -> Iterator[Small]:
        with drivers(write_slides(folder / "slides"), bundle.path) as forked:
            results = folder / "undisturbed"
            ended = forked.submit(results)
            assert ended.exit_code == 0
            yield cls(forked, results, ended.steps, read_night(results))

    def assert_another_finishes(self, results: Path) -> None:
        """Readers see whole files, and one more driver does what is left and nothing else."""
        watch = Watch(results)
        watch.look()
        done = committed(results)
        assert done <= self.undisturbed.keys()
        known = set((results / "runs").glob("*.json"))
        assert all(json.loads(path.read_text())["state"] for path in known)
        ended = self.drivers.submit(results)
        assert ended.exit_code == 0, ended.error
        watch.look()
        assert watch.repeated == []
        (manifest,) = set((results / "runs").glob("*.json")) - known
        planned = json.loads(manifest.read_text())["slides"]
        assert planned["settled_complete"] == len(done)
        assert planned["planned"] == planned["complete"] == len(self.undisturbed) - len(done)
        assert_equal(read_night(results), self.undisturbed)
        assert_tidy(results)

    @property
    def first_batch_flush(self) -> int:
        """Its number among the flushes."""
        own = [step for step in self.steps if step.is_one(BATCHES) or step.is_one(FLUSHES)]
        return next(number for number, step in enumerate(own) if step.is_one(BATCHES))
