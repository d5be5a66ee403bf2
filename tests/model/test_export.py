from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from cvm_batch.errors import AgreementError, BundleError, SentinelError
from cvm_batch.model.backends.starting import start_engine
from cvm_batch.model.bundle import (
    CARD_FILE,
    SENTINELS_FILE,
    SPEC_FILE,
    WEIGHTS_FILE,
    Bundle,
    BundleSpec,
    load_bundle,
    reference_probabilities,
    write_bundle,
)
from cvm_batch.model.export import Export
from cvm_batch.model.network import CvmCervix
from cvm_batch.model.precision import Precision
from tests.conftest import CLASSES, coloured_tiles
from tests.model.test_agreement import tiles_of_any_colour

CPU = torch.device("cpu")
Changed = Callable[[Callable[[CvmCervix], object]], Bundle]


@pytest.fixture
def changed(tmp_path: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix) -> Changed:
    """Writes the tiny bundle anew, its network changed by a function."""

    def written(change: Callable[[CvmCervix], object]) -> Bundle:
        network = deepcopy(tiny_network)
        with torch.no_grad():
            change(network)
        sentinels = coloured_tiles(range(CLASSES), seed=1)
        return write_bundle(tmp_path / "source", tiny_spec, network, sentinels, card="# tiny\n")

    return written


def linear(network: CvmCervix, at: int) -> torch.nn.Linear:
    found = network.mlp[at]
    assert isinstance(found, torch.nn.Linear)
    return found


def lifted(network: CvmCervix, offset: float) -> None:
    """Add to every logit the same: softmax does not see it, and fp16 loses what is small."""
    linear(network, -1).weight += offset


def probabilities(bundle: Bundle, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    return reference_probabilities(bundle.network(), bundle.spec.preprocessing, tiles)


def test_an_exported_bundle_is_half_as_large_and_serves(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    written = Export(tiny_bundle, tmp_path / "half", device=CPU).write()
    # Half of the weights, and all of the header that names them.
    assert 0.5 <= written.weights_bytes / tiny_bundle.weights_bytes < 0.55
    assert load_bundle(tmp_path / "half").digest == written.digest != tiny_bundle.digest
    assert (written.spec.precision, written.spec.name) == (Precision.FP16, "half")
    assert written.spec.groups == tiny_bundle.spec.groups
    np.testing.assert_array_equal(written.sentinels().tiles, tiny_bundle.sentinels().tiles)
    engine = start_engine(written, device=CPU, precision=Precision.FP32)
    assert engine.sentinel_difference <= 1e-5
    tiles = coloured_tiles(range(CLASSES), seed=4)
    assert (engine.probabilities(tiles).argmax(axis=1) == range(CLASSES)).all()
    engine.close()


def test_what_an_exported_bundle_says_of_itself(tiny_bundle: Bundle, tmp_path: Path) -> None:
    export = Export(tiny_bundle, tmp_path / "half", device=CPU)
    export.add(tiles_of_any_colour(30, seed=5))
    export.add(tiles_of_any_colour(50, seed=6))
    provenance = export.write(read={"slides": 2}).spec.provenance
    assert tiny_bundle.spec.provenance.items() <= provenance.items()
    assert provenance["exported_from"] == tiny_bundle.digest
    agreement = json.loads((tmp_path / "half" / SPEC_FILE).read_text())["provenance"]["agreement"]
    assert agreement["device"] == "a CPU, fp16 emulated by rounding the weights"
    assert agreement["sentinels"]["tiles"] == CLASSES
    assert agreement["data"] | {"tiles": 80, "slides": 2, "changed": 0} == agreement["data"]
    largest = agreement["largest_activation"]
    assert largest["share_of_fp16"] == pytest.approx(largest["value"] / 65_504)
    card = (tmp_path / "half" / CARD_FILE).read_text()
    assert card.startswith("# tiny\n\n## Exported to fp16\n")
    assert tiny_bundle.digest in card
    told = " ".join(card.split())
    assert "11 of 11 tiles keep their class (100.00 %)" in told
    assert "Of further data, 80 of 80 tiles keep their class (100.00 %)" in told


def test_agreement_is_that_of_the_bundle_that_is_written(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    tiles = tiles_of_any_colour(100)
    export = Export(tiny_bundle, tmp_path / "half", device=CPU)
    export.add(tiles)
    assert export.data is not None
    fp32, fp16 = (probabilities(each, tiles) for each in (tiny_bundle, export.write()))
    # Within a factor: an engine folds normalisation into weights, and rounds them once more.
    difference = np.abs(fp32 - fp16).max()
    assert difference / 2 < export.data.largest_difference < 2 * difference
    assert export.data.same == (fp32.argmax(axis=1) == fp16.argmax(axis=1)).sum()


def test_sentinels_that_differ_are_refused(changed: Changed, tmp_path: Path) -> None:
    source = changed(lambda network: lifted(network, 10_000))
    with pytest.raises(AgreementError, match=r"Of its sentinels, .* is 0\.3.* \(at most 0\.02"):
        Export(source, tmp_path / "half", device=CPU)


def test_sentinels_that_change_their_class_are_refused(
    tmp_path: Path, tiny_spec: BundleSpec, tiny_network: CvmCervix
) -> None:
    """All classes within 0.02: no difference is too large, and yet another class wins."""
    network = deepcopy(tiny_network)
    last = linear(network, -1)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1)
        last.bias[5] = 1 + 2**-12  # fp16 rounds it to 1, and then the first class wins
    tiles = coloured_tiles(range(CLASSES))
    source = write_bundle(tmp_path / "source", tiny_spec, network, tiles, card="")
    with pytest.raises(AgreementError, match=r"0 of 11 tiles keep their class \(0\.00 %\)"):
        Export(source, tmp_path / "half", device=CPU)


def test_data_that_change_their_class_are_refused(changed: Changed, tmp_path: Path) -> None:
    source = changed(lambda network: lifted(network, 2000))
    export = Export(source, tmp_path / "half", device=CPU)
    export.add(tiles_of_any_colour(200))
    with pytest.raises(AgreementError, match=r"Of the data, 19\d of 200 tiles .* 99% of"):
        export.write()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_cell_on_the_border_of_classes_is_no_reason_to_refuse(
    changed: Changed, tmp_path: Path
) -> None:
    source = changed(lambda network: lifted(network, 200))
    export = Export(source, tmp_path / "half", device=CPU)
    export.add(tiles_of_any_colour(200))
    assert export.data is not None
    assert export.data.largest_difference > Precision.FP16.tolerance
    assert export.write().spec.precision is Precision.FP16


def test_an_activation_beyond_fp16_is_refused(changed: Changed, tmp_path: Path) -> None:
    source = changed(lambda network: lifted(network, 30_000))
    assert np.isfinite(source.sentinels().probabilities).all()
    with pytest.raises(AgreementError, match=r"Module mlp\.2 reaches .* fp16 ends at 65,504"):
        Export(source, tmp_path / "half", device=CPU)


def test_a_weight_beyond_fp16_is_refused(changed: Changed, tmp_path: Path) -> None:
    def outgrow(network: CvmCervix) -> None:
        linear(network, 0).bias[3] = -70_000.0  # GELU makes zero of it

    source = changed(outgrow)
    with pytest.raises(AgreementError, match=r"Weight mlp\.0\.bias reaches 70,000: fp16 ends at"):
        Export(source, tmp_path / "half", device=CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_device_that_computes_wrongly_is_not_asked(changed: Changed, tmp_path: Path) -> None:
    source = changed(lambda network: None)
    recorded = load_file(source.path / SENTINELS_FILE)
    save_file(
        recorded | {"probabilities": recorded["probabilities"][:, ::-1].copy()},
        source.path / SENTINELS_FILE,
    )
    with pytest.raises(SentinelError, match="in fp32"):
        Export(source, tmp_path / "half", device=CPU)


def test_fp16_bundles_are_not_exported_again(tiny_bundle: Bundle, tmp_path: Path) -> None:
    half = Export(tiny_bundle, tmp_path / "half", device=CPU).write()
    with pytest.raises(BundleError, match="half is stored in fp16 already"):
        Export(half, tmp_path / "quarter", device=CPU)


def test_what_exists_is_left_as_it_is(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="exists already"):
        Export(tiny_bundle, tmp_path, device=CPU)
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_made_is_told(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    export = Export(tiny_bundle, tmp_path / "file" / "half", device=CPU)
    with pytest.raises(BundleError, match=r"cannot be written: .* Choose another folder"):
        export.write()


def test_a_bundle_without_a_card_gets_one(changed: Changed, tmp_path: Path) -> None:
    source = changed(lambda network: None)
    (source.path / CARD_FILE).unlink()
    written = Export(source, tmp_path / "half", device=CPU).write()
    assert (written.path / CARD_FILE).read_text().startswith("# tiny\n\n## Exported to fp16\n")
    assert (written.path / WEIGHTS_FILE).is_file()
