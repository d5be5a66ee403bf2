"""The page of figures, and what a whole training leaves behind."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cvm_batch.cli.evaluate import evaluate as command
from cvm_batch.errors import DataSetError
from cvm_batch.model.bundle import Bundle, load_bundle, reference_probabilities
from cvm_batch.model.classes import CVM_CERVIX_CLASSES
from cvm_batch.training.datasets import load_cells
from cvm_batch.training.judging import judge
from cvm_batch.training.paper import paper_figures
from cvm_batch.training.planning import plan_digest
from cvm_batch.training.recipe import Recipe
from cvm_batch.training.report import write_report
from cvm_batch.training.run import Job, train_bundle
from tests.training.conftest import write_cells


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_recipe: Recipe) -> Path:
    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("trained") / "tiny"
    train_bundle((data,), tiny_recipe, out)
    torch.set_num_threads(threads)
    return out


@pytest.fixture
def bundle(trained: Path) -> Bundle:
    return load_bundle(trained)


def folder_of(trained: Path) -> Path:
    (folder,) = trained.with_name("tiny.training").iterdir()
    return folder


def test_a_training_leaves_its_figures_and_no_checkpoints(trained: Path, bundle: Bundle) -> None:
    folder = folder_of(trained)
    assert re.fullmatch(r"tiny-[0-9a-f]{12}", folder.name)
    left = {path.name for path in folder.iterdir()} - {"tensorboard"}
    left -= {".command.lock", ".loop.lock"}
    assert left == {"data.txt", "evaluation.json", "recipe.json", "report.html", "split.csv"}
    figures = json.loads((folder / "evaluation.json").read_text())
    assert figures["bundle"]["digest"] == bundle.digest
    assert len(figures["epochs"]) == 2
    assert figures["test"]["cells"] == 24
    low, high = figures["test"]["intervals_95"]["accuracy"]
    assert low <= figures["test"]["accuracy"] <= high
    assert "120 cells of 3 classes in 10 groups (by frame)" in (folder / "data.txt").read_text()


def test_the_page_needs_nothing_from_elsewhere(trained: Path, bundle: Bundle) -> None:
    page = (folder_of(trained) / "report.html").read_text()
    without_script = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:)", without_script)
    assert "http" not in without_script
    assert bundle.digest in page
    assert page.count("data:image/png;base64,") >= 24  # a thumbnail for each test cell at least
    plots = re.search(r"const plots = (\{.*?\});\n", page)
    assert plots is not None
    described = json.loads(plots[1])
    assert described["confusion"]["data"][0]["x"] == ["ASC-H", "HSIL", "NILM"]
    assert np.sum(described["confusion"]["data"][0]["text"]) == 24
    assert sum(len(trace["x"]) for trace in described["cloud"]["data"]) == 24
    assert described["curves"]["data"][0]["x"] == [1, 2]


def test_names_cannot_run_in_the_page(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_cells(tmp_path / "data")
    hostile = "HSIL/<img src=x onerror=alert(1)>.jpg"
    table = (data / "cells.csv").read_text().replace("HSIL/0001.jpg", hostile)
    # The wrong class, so that it is among the mistakes.
    (data / "cells.csv").write_text(table.replace(f"{hostile},HSIL", f"{hostile},NILM"))
    (data / "HSIL/0001.jpg").rename(data / hostile)
    judged = judge(bundle, [data])
    wrong = np.flatnonzero(judged.evaluation.predicted != judged.evaluation.labels)
    assert hostile in {judged.cells.images[at].name for at in wrong}
    monkeypatch.setattr("cvm_batch.training.report._MOST_MISTAKES", 1000)
    page = tmp_path / "page.html"
    write_report(page, bundle, {"all": (judged.evaluation, judged.positions)}, judged.cells)
    assert "<img src=x" not in page.read_text()
    assert "&lt;img src=x" in page.read_text()


def test_evaluate_prints_what_the_probabilities_say(data: Path, bundle: Bundle) -> None:
    arguments = ["--model", str(bundle.path), "--data", str(data), "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.output)
    cells = load_cells(data)
    of_size = [at for at in range(len(cells)) if cells.read(at).shape[0] == 40]
    probabilities = reference_probabilities(
        bundle.network(),
        bundle.spec.preprocessing,
        np.stack([cells.read(at) for at in of_size]),
    )
    judged = judge(bundle, [data]).evaluation
    np.testing.assert_allclose(judged.probabilities[of_size], probabilities, atol=1e-5)
    right = judged.probabilities.argmax(axis=1) == cells.labels
    assert found["accuracy"] == pytest.approx(right.mean(), abs=1e-4)
    keys = {"macro_precision", "macro_recall", "macro_f1", "per_class", "confusion", "digest"}
    assert keys <= set(found)
    assert np.array(found["confusion"]).sum() == found["data"]["cells"] == 120
    assert found["data"] == cells.to_json() | {"trained_on": True}


def test_evaluate_tells_cells_that_were_trained_on_from_others(
    tmp_path: Path, data: Path, bundle: Bundle
) -> None:
    others = write_cells(tmp_path / "others", frames=9)
    for cells, same in ((data, True), (others, False)):
        arguments = ["--model", str(bundle.path), "--data", str(cells)]
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert ("was trained on most of these very cells" in result.output) is same


def test_evaluate_for_people_writes_a_page(tmp_path: Path, data: Path, bundle: Bundle) -> None:
    page = tmp_path / "page.html"
    arguments = ["--model", str(bundle.path), "--data", str(data), "--report", str(page), "--flips"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert "120 cells of 3 classes" in result.output
    assert "95 % interval of the accuracy, over frames" in result.output
    assert page.stat().st_size > 1_000_000


def test_unknown_classes_are_named(tmp_path: Path, bundle: Bundle) -> None:
    data = write_cells(tmp_path / "data")
    table = (data / "cells.csv").read_text()
    (data / "cells.csv").write_text(table.replace(",NILM,", ",Unheard,"))
    with pytest.raises(DataSetError, match=r"does not know: Unheard\. It knows ASC-H, HSIL, NILM"):
        judge(bundle, [data])


def test_a_changed_recipe_begins_anew(tmp_path: Path, data: Path, tiny_recipe: Recipe) -> None:
    def folder(recipe: Recipe, **weights: str) -> str:
        (tmp_path / "x").mkdir(exist_ok=True)
        from cvm_batch.training import run

        cells = load_cells(data)
        planned = plan_digest(cells, recipe.split_of(cells))
        out = tmp_path / "x" / "b"
        job: Job = run._job((data,), recipe, out, planned, run.AT_RANDOM, weights)
        return job.folder.name

    from dataclasses import replace

    assert folder(tiny_recipe) == folder(replace(tiny_recipe))
    assert folder(tiny_recipe) != folder(replace(tiny_recipe, learning_rate=1e-4))
    assert folder(tiny_recipe) != folder(tiny_recipe, whole="00")
    assert folder(tiny_recipe, cnn="00") != folder(tiny_recipe, vt="00")


def test_evaluate_takes_cells_of_one_class(tmp_path: Path, data: Path, bundle: Bundle) -> None:
    """All of them negative, say: training could not use it, and its recall is a question."""
    shutil.copytree(data / "HSIL", tmp_path / "cells" / "HSIL")
    arguments = ["--model", str(bundle.path), "--data", str(tmp_path / "cells")]
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    found = json.loads(result.output)
    assert found["cells"] == 40
    assert found["per_class"]["HSIL"]["support"] == 40
    assert found["per_class"]["NILM"]["recall"] is None
    assert found["macro_recall"] == found["accuracy"]
    with pytest.raises(DataSetError, match="40 images of 1 classes, and 2 at least are needed"):
        load_cells(tmp_path / "cells")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataSetError, match="0 images of 0 classes, and 1 at least"):
        judge(bundle, [tmp_path / "empty"])


def test_two_folders_of_one_class_each_are_a_set(tmp_path: Path, data: Path) -> None:
    for name in ("HSIL", "NILM"):
        shutil.copytree(data / name, tmp_path / name / name)
    assert load_cells(tmp_path / "HSIL", tmp_path / "NILM").class_names == ("HSIL", "NILM")


def test_the_papers_figures_stand_beside_its_own_classes_only(
    tmp_path: Path, data: Path, bundle: Bundle
) -> None:
    herlev = {"name": "paper-herlev2"}
    found = paper_figures(herlev, ("Abnormal", "Normal"), "test")
    assert found is not None
    assert found.accuracy == 0.9235
    validation = paper_figures(herlev, ("Abnormal", "Normal"), "validation")
    assert validation is not None
    assert validation.accuracy == 0.9672
    assert paper_figures({"name": "paper-combined11-4x"}, CVM_CERVIX_CLASSES, "validation") is None
    assert paper_figures(herlev, ("Abnormal", "Normal"), "all cells") is None
    assert paper_figures(herlev, ("Odd", "Normal"), "test") is None
    assert paper_figures({"name": "smoke"}, ("Abnormal", "Normal"), "test") is None

    # A recipe of the paper's, on other cells than the paper's.
    spec = replace(bundle.spec, provenance={"recipe": herlev})
    judged = judge(bundle, [data])
    page = tmp_path / "page.html"
    sides = {"test": (judged.evaluation, judged.positions)}
    write_report(page, replace(bundle, spec=spec), sides, judged.cells)
    assert "the paper's CVM-Cervix" not in page.read_text()

    two = replace(
        judged.evaluation,
        class_names=("Abnormal", "Normal"),
        probabilities=judged.evaluation.probabilities[:, :2],
        labels=judged.evaluation.labels % 2,
    )
    sides = {"test": (two, judged.positions), "validation": (two, judged.positions)}
    write_report(page, replace(bundle, spec=spec), sides, judged.cells)
    told = re.findall(r"(\w+): the paper's CVM-Cervix.*?<td>([\d.]+)</td>", page.read_text())
    assert told == [("test", "92.35"), ("validation", "96.72")]
