"""``export`` as a user types it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from cvm_batch.cli import cli
from cvm_batch.errors import AgreementError, BundleError, NoSlidesError, UsageError
from cvm_batch.model.bundle import Bundle, BundleSpec, load_bundle, write_bundle
from cvm_batch.model.network import CvmCervix
from tests.archives.making import write_folder, write_zarr, write_zip
from tests.archives.reading import flip_bit
from tests.cli.test_commands import cvm_batch_run
from tests.conftest import CLASSES, coloured_tiles
from tests.model.test_agreement import tiles_of_any_colour
from tests.model.test_export import lifted

CLASS_OF_EACH = np.arange(20) % CLASSES


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments)], standalone_mode=False)


def told(ended: Result) -> dict[str, Any]:
    assert ended.exception is None, ended.exception
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_export_tells_what_it_did(tiny_bundle: Bundle, tmp_path: Path) -> None:
    slide = write_folder(tmp_path / "slide", coloured_tiles(CLASS_OF_EACH))
    (slide / "00007.png").write_bytes(b"no image")
    ended = cvm_batch_run("export", tiny_bundle.path, tmp_path / "half", "--data", slide)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "MiB in fp32, " in ended.stdout
    assert "19 of 19 tiles keep their class (100.00 %)" in ended.stdout
    assert "1 tiles could not be read" in ended.stdout
    assert load_bundle(tmp_path / "half").digest in ended.stdout


def test_export_as_json(tiny_bundle: Bundle, tmp_path: Path) -> None:
    found = told(export(tiny_bundle.path, tmp_path / "half", "--json"))
    half = load_bundle(tmp_path / "half")
    assert found["path"] == str(half.path)
    assert found["digest"] == half.digest
    assert found["exported_from"] == {"path": str(tiny_bundle.path), "digest": tiny_bundle.digest}
    assert found["weights_bytes"] == {
        "fp32": tiny_bundle.weights_bytes,
        "fp16": half.weights_bytes,
    }
    assert (found["data"], found["failed"]) == (None, [])
    recorded = half.spec.provenance["agreement"]
    for name in ("device", "sentinels", "largest_activation"):
        assert found[name] == recorded[name]


def test_every_readable_tile_of_every_slide_counts(tiny_bundle: Bundle, tmp_path: Path) -> None:
    tiles = coloured_tiles(CLASS_OF_EACH)
    write_zarr(tmp_path / "slides" / "a.zarr", coloured_tiles(np.arange(300) % CLASSES))
    varying = [*tiles[:5], *coloured_tiles([5], side=33)]
    slide = write_folder(tmp_path / "slides" / "b", varying)
    (slide / "00002.png").write_bytes(b"no image")
    write_zip(tmp_path / "c.zip", tiles)
    data = [option for path in ("slides", "c.zip") for option in ("--data", tmp_path / path)]
    found = told(export(tiny_bundle.path, tmp_path / "half", *data, "--json"))
    assert found["data"]["tiles"] == 300 + 5 + 20
    assert (found["data"]["slides"], found["data"]["unreadable"]) == (3, 1)
    assert load_bundle(tmp_path / "half").spec.provenance["agreement"]["data"] == found["data"]


def test_a_slide_that_fails_ends_with_3(tiny_bundle: Bundle, tmp_path: Path) -> None:
    tiles = coloured_tiles(CLASS_OF_EACH)
    write_zip(tmp_path / "slides" / "good.zip", tiles)
    damaged = write_zip(tmp_path / "slides" / "damaged.zip", tiles)
    (tmp_path / "slides" / "broken.zip").write_bytes(b"PK\3\4 and then nothing")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    ended = export(tiny_bundle.path, tmp_path / "half", "--data", tmp_path / "slides", "--json")
    found = told(ended)
    assert ended.return_value == 3
    reasons = {each["slide_id"]: each["reason"] for each in found["failed"]}
    assert reasons == {"broken.zip": "bad_format", "damaged.zip": "checksum_mismatch"}
    assert 20 <= found["data"]["tiles"] < 40
    assert load_bundle(tmp_path / "half").spec.provenance["agreement"]["data"]["slides_failed"] == 2


def test_failed_slides_are_listed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    write_zip(tmp_path / "slides" / "good.zip", coloured_tiles(CLASS_OF_EACH))
    (tmp_path / "slides" / "broken.zip").write_bytes(b"PK\3\4 and then nothing")
    ended = export(tiny_bundle.path, tmp_path / "half", "--data", tmp_path / "slides")
    assert ended.return_value == 3
    assert "Not read to their end:\n  broken.zip: bad_format: " in ended.stdout


def test_data_of_which_nothing_can_be_read_are_wrong_use(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    slide = write_zarr(tmp_path / "slide.zarr", coloured_tiles(CLASS_OF_EACH))
    flip_bit(slide / "tiles/c/0/0/0/0", np.random.default_rng(0))
    ended = export(tiny_bundle.path, tmp_path / "half", "--data", slide)
    assert isinstance(ended.exception, UsageError)
    assert str(ended.exception).startswith("--data: none of 20 tiles could be read. slide.zarr: ")
    assert not (tmp_path / "half").exists()


def test_data_without_slides_are_wrong_use(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = export(tiny_bundle.path, tmp_path / "half", "--data", tmp_path / "empty")
    assert isinstance(ended.exception, NoSlidesError)
    assert not (tmp_path / "half").exists()


def test_a_refusal_ends_with_2_and_leaves_nothing(
    tmp_path: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> None:
    network = deepcopy(tiny_network)
    with torch.no_grad():
        lifted(network, 2000)
    sentinels = coloured_tiles(range(CLASSES), seed=1)
    source = write_bundle(tmp_path / "source", tiny_spec, network, sentinels, card="")
    write_zip(tmp_path / "slide.zip", tiles_of_any_colour(200))
    ended = export(source.path, tmp_path / "half", "--data", tmp_path / "slide.zip", "--json")
    assert isinstance(ended.exception, AgreementError)
    assert ended.exception.exit_code == 2
    assert ended.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slide.zip", "source"]


@pytest.mark.parametrize("name", ["cvm-cervix-mini-cric6", "no-such-bundle"])
def test_bundles_are_known_by_name(tmp_path: Path, name: str) -> None:
    ended = export(name, tmp_path / "half")
    assert isinstance(ended.exception, BundleError)
    why = "stored in fp16 already" if name != "no-such-bundle" else "No bundle called"
    assert why in str(ended.exception)
