"""Builds the documentation site into site/ and fails at any warning: `python docs/build.py`.

Needs `pip install -e ".[docs]"`. To read the site: `python -m http.server --directory site`.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Pages of the site that are files of the root. Copies of them are written here, ignored by git.
ROOT_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.md",
}


def render_root_page(name: str) -> str:
    """A file of the root as a page of docs/, with links as seen from there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    if name == "LICENSE":
        return f"# Licence\n\n```text\n{text}```\n"
    text = text.replace("](docs/", "](")
    for file, page in ROOT_PAGES.items():
        text = re.sub(rf"\]\({re.escape(file)}(?=[)#])", f"]({page}", text)
    return text


def main() -> int:
    """Write the pages of the root and build; the exit status of the builder."""
    for name, page in ROOT_PAGES.items():
        (ROOT / "docs" / page).write_text(render_root_page(name), encoding="utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
