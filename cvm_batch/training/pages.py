"""Pages from the templates beside this module: everything escaped, nothing left undefined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill ``template``, a file of this folder, with ``values`` and write it to ``path``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.write_text(environment.get_template(template).render(**values), encoding="utf-8")
