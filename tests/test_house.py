"""The rules of the house, read off the imports: who may know whom, and how long a module is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MAX_LINES = 400

#: What each package may import of ours, besides itself and the modules beside the packages.
MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "remote": set(),
    "archives": {"remote"},
    "results": {"remote"},
    "notices": set(),
    "screening": {"remote", "model", "archives", "results", "notices"},
    "cluster": {"remote", "archives", "results"},
    "training": {"model", "archives", "results"},
    "cli": {
        *("remote", "model", "archives", "results", "notices"),
        *("screening", "training", "cluster"),
    },
    # Entry points, as commands are: what a cluster is told to run is read by the same parser.
    "jobs": {
        *("model", "archives", "results", "notices"),
        *("screening", "training", "cluster", "cli"),
    },
}
IMPORTS_RAY = {
    "cvm_batch/screening/cluster_decoding.py",
    "cvm_batch/screening/ray_cluster.py",
    "cvm_batch/screening/ray_executor.py",
    "cvm_batch/screening/ray_meter.py",
    "cvm_batch/cluster/ray_jobs.py",
}
#: A script sees what lies beside it under its bare name.
NEIGHBOURS_OF_JOBS = {path.stem for path in (ROOT / "jobs").iterdir()}
LIGHT_PACKAGES = (
    "errors",
    "remote",
    "archives",
    "results",
    "notices",
    "screening/cluster_decoding",
)

MODULES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("cvm_batch", "jobs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def imports(module: str) -> Iterator[str]:
    """Every module that ``module`` imports, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module is not None
            yield node.module
            # Of `from cvm_batch import model`, the part that says where it leads.
            if node.module == "cvm_batch":
                yield from (f"cvm_batch.{alias.name}" for alias in node.names)


def package_of(module: str) -> str | None:
    """The package of ours that a module or a dotted name is in; None for what stands beside."""
    parts = re.split(r"[/.]", module.removesuffix(".py"))
    if parts[0] == "jobs":
        return "jobs"
    inside = parts[0] == "cvm_batch" and len(parts) > 1 and (ROOT / "cvm_batch" / parts[1]).is_dir()
    return parts[1] if inside else None


def test_every_package_has_its_place() -> None:
    packages = {package_of(module) for module in MODULES} - {None}
    assert packages <= MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_one_way(module: str) -> None:
    package = package_of(module)
    if module == "cvm_batch/__main__.py":
        package = "cli"
    allowed = {None, package} | MAY_IMPORT.get(package or "", set())
    wrong = {name for name in imports(module) if package_of(name) not in allowed}
    assert not wrong, f"{module} may not import {sorted(wrong)}"


@pytest.mark.parametrize("module", MODULES)
def test_only_the_executor_and_the_jobs_import_ray(module: str) -> None:
    ray = {name for name in imports(module) if name.partition(".")[0] == "ray"}
    assert not ray or module in IMPORTS_RAY or package_of(module) == "jobs"


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_reading_archives_and_results_needs_no_torch(package: str) -> None:
    names = [
        module.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for module in MODULES
        if module.startswith((f"cvm_batch/{package}/", f"cvm_batch/{package}.py"))
    ]
    assert names
    script = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_long(module: str) -> None:
    lines = len((ROOT / module).read_text().splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines and wants to be two"


# Dependencies


def declared() -> dict[str, list[Requirement]]:
    """Requirements by the part of pyproject.toml that declares them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = {
        "dependencies": project["project"]["dependencies"],
        **project["project"]["optional-dependencies"],
        **project["dependency-groups"],
    }
    return {part: [Requirement(line) for line in lines] for part, lines in parts.items()}


def locked() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [Requirement(line.removesuffix("\\")) for line in lines if not line.startswith(" ")]


@pytest.mark.parametrize("module", MODULES)
def test_only_declared_distributions_are_imported(module: str) -> None:
    names = {
        canonicalize_name(requirement.name)
        for part, requirements in declared().items()
        for requirement in requirements
        if part != "dev"
    } | {"triton"}  # torch's builds for GPUs require it themselves, in the version that fits
    ours_and_pythons = {"cvm_batch", "jobs", *NEIGHBOURS_OF_JOBS, *sys.stdlib_module_names}
    distributions = packages_distributions()
    for name in imports(module):
        top = name.partition(".")[0]
        if top not in ours_and_pythons:
            found = {canonicalize_name(one) for one in distributions.get(top, [top])}
            assert found & names, f"{module} imports {top}, which pyproject.toml does not declare"


def test_lock_satisfies_what_is_declared() -> None:
    pinned = locked()
    for requirement in (one for part in declared().values() for one in part):
        name = canonicalize_name(requirement.name)
        versions = [pin.specifier for pin in pinned if canonicalize_name(pin.name) == name]
        assert versions, f"requirements.lock lacks {name}: make lock"
        for version in versions:
            (pin,) = version
            assert requirement.specifier.contains(pin.version), f"{name}: make lock"


def test_lock_pins_with_hashes_and_names_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    entries = re.split(r"\n(?! )", text.rstrip())
    assert len(entries) == len(locked())
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.!+]+ ", entry), entry
        assert "--hash=sha256:" in entry, entry
