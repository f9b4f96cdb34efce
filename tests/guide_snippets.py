"""The Python of the guides, which tests run as readers do."""

import re
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "docs" / "guides"


def snippets(guide: str, start: str, end: str) -> list[str]:
    """The Python of a guide between two headings, block by block."""
    text = (GUIDES / f"{guide}.md").read_text(encoding="utf-8")
    section = text[text.index(f"\n{start}\n") : text.index(f"\n{end}\n")]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
