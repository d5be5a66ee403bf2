"""How a report calls slides: by their names, made harmless to read, or by pseudonyms."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvm_batch.pseudonyms import Pseudonyms
from cvm_batch.results.layout import slide_stem
from cvm_batch.texts import printable

#: Longer names are shown with their middle left out, where there is a table around them.
_SHORT = 64


@dataclass(frozen=True)
class Names:
    """With ``pseudonyms``, nothing in a report tells a slide's name, or what may contain it."""

    pseudonyms: Pseudonyms | None = None

    @property
    def withheld(self) -> bool:
        """Whether details, addresses and cells' names are left out, which may name a slide."""
        return self.pseudonyms is not None

    def of(self, slide_id: str) -> str:
        """For people, whole."""
        return self.pseudonyms.of(slide_id) if self.pseudonyms else printable(slide_id)

    def short(self, slide_id: str) -> str:
        """For a row of a table."""
        name = self.of(slide_id)
        half = _SHORT // 2
        return name if len(name) <= _SHORT else f"{name[: half - 1]}…{name[-half:]}"

    def file(self, slide_id: str) -> str:
        """The stem of the slide's files: hexadecimal digits, whatever the slide is called."""
        return self.of(slide_id) if self.pseudonyms else slide_stem(slide_id)

    def file_name(self, slide_id: str) -> str:
        """For a file that somebody saves: letters, digits and a few signs, ``slide`` at least."""
        plain = re.sub(r"[^A-Za-z0-9._-]+", "_", self.of(slide_id)).strip("._-")
        return plain[-_SHORT:] or "slide"

    def told(self, text: str | None) -> str | None:
        """A message that may quote a slide's name, or None where that must not be shown."""
        return None if text is None or self.withheld else printable(text)
