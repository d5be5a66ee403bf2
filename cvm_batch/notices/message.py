"""What a notice says."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

_TEMPLATE = Path(__file__).with_name("mail.txt")
_MOST_NAMED = 50

_ENDINGS = {
    0: "all slides complete",
    1: "the run was aborted",
    2: "wrong use, configuration, or a results folder in use",
    3: "finished, but some slides are not complete",
    4: "stopped before the end, the rest is for the next run",
}


@dataclass(frozen=True)
class Message:
    """One run's end, from its summary without names (results/exporting/summary.py)."""

    summary: Mapping[str, Any]

    @property
    def title(self) -> str:
        """One line, for a mail's subject and for chats."""
        slides = self.summary["slides"]
        counts = ", ".join(
            f"{slides[status]:,} {status}"
            for status in ("complete", "incomplete", "failed")
            if slides[status]
        )
        code = self.summary["exit_code"]
        told = f"cvm-batch: {_ENDINGS[code]} (exit code {code}); {counts or 'no slide ended'}"
        fresh = slides.get("fresh", 0)
        return f"{told}, {fresh:,} left as they had just changed" if fresh else told

    def to_json(self) -> dict[str, Any]:
        """For a webhook; chats show ``text``."""
        return {"text": self.title, "summary": dict(self.summary)}

    def body(self) -> str:
        """The text of a mail."""
        told = self.summary
        speed = told["tiles_per_second"]
        audit = told["audit"]
        return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
            title=self.title,
            run_id=told["run_id"],
            host=socket.gethostname(),
            started_at=told["started_at"],
            finished_at=told["finished_at"],
            planned=f"{told['slides']['planned']:,}",
            settled=f"{_settled(told['slides']):,}",
            fresh=f"{told['slides'].get('fresh', 0):,}",
            cells=f"{told['cells']['classified']:,}",
            unreadable=f"{told['cells']['unreadable']:,}",
            speed=f"{speed:,.0f} tiles/s" if speed else "no tile classified",
            model=told["model"]["name"],
            digest=told["model"]["digest"],
            precision=told["precision"],
            backend=told["backend"],
            version=told["versions"].get("cvm_batch", "unknown"),
            audit=f"entry {audit['entry']}, {audit['digest']}" if audit else "no entry",
            not_complete=self._not_complete(),
        )

    def _not_complete(self) -> str:
        reasons = self.summary["reasons"]
        if not reasons:
            return "None.\n"
        lines = [f"  {count:,} {reason}" for reason, count in reasons.items()]
        named = self.summary["not_complete"]
        lines += [
            f"  {one['slide_id']}: {one['status']}, {one['reason']}" for one in named[:_MOST_NAMED]
        ]
        if len(named) > _MOST_NAMED:
            lines.append(f"  and {len(named) - _MOST_NAMED:,} more")
        return "".join(f"{line}\n" for line in lines)


def _settled(slides: Mapping[str, int]) -> int:
    return sum(count for name, count in slides.items() if name.startswith("settled_"))
