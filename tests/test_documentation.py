"""The README and docs/: size, links, commands, fields, generated pages, navigation of the site."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import yaml
from small_backbone import SMALL

import keras_transfer
from keras_transfer.backbones.registry import BACKBONES
from keras_transfer.compression.registry import parse_chain
from keras_transfer.config import PRESETS, load, load_spec, make_spec, override, parse_assignments
from keras_transfer.errors import SpecError
from keras_transfer.specs import PretrainSpec, RunSpec
from pipelines import auto, distill, pretrain, rank
from pipelines.cli import VERBS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
SITE = runpy.run_path(str(DOCS / "build.py"))
# Copies of files of the root, which are there once the site was built.
COPIES = {DOCS / page for page in SITE["ROOT_PAGES"].values()}
DOCS_PAGES = sorted(set(DOCS.rglob("*.md")) - COPIES)
PAGES = [README, ROOT / "CHANGELOG.md", *DOCS_PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"python -m pipelines\.(\w+)((?: +(?:'[^']*'|[^\s`'|&]+))*)")
NOT_PLAIN = "stranger|corridor|whoever|nobody|wish|narrator|crown|shelf|picture|door|so-manieth"


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(read(page)) if kind == language]


def commands(page: Path) -> list[tuple[str, str]]:
    """Every command of a page as (verb, its words), those that span lines included."""
    text = re.sub(r"\\\n\s*", "", read(page))
    return COMMAND.findall(text)


COMMANDS = sorted(
    {(verb, words) for page in PAGES for verb, words in commands(page) if "--help" not in words}
)


class ParsedError(Exception):
    """Ends a verb once its command line is parsed."""


@pytest.fixture
def parse(monkeypatch):
    """A function from a verb and its words to the parsed command line; nothing is run."""
    parse_known = argparse.ArgumentParser.parse_known_args
    parse_intermixed = argparse.ArgumentParser.parse_known_intermixed_args

    def stop_after(method):
        def stopped(parser, argv=None):
            namespace, unknown = method(parser, argv)
            raise ParsedError(namespace, unknown)

        return stopped

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(parse_known))
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_intermixed_args", stop_after(parse_intermixed)
    )

    def parsed(verb, words):
        with pytest.raises(ParsedError) as caught:
            importlib.import_module(f"pipelines.{verb}").main(words)
        namespace, unknown = caught.value.args
        assert unknown == []
        return namespace

    return parsed


def spec_of(source: str) -> RunSpec:
    """The spec a command starts from; what is not a preset stands for a user's own images."""
    return load_spec(source) if (PRESETS / f"{source}.toml").is_file() else RunSpec()


@pytest.mark.parametrize(("verb", "words"), COMMANDS)
def test_commands_parse(verb, words, parse):
    assert verb in VERBS
    given = parse(verb, shlex.split(words))
    if verb == "rank":
        # The reader's own images are not here.
        rank.read_words(["quickstart" if word == "my_photos" else word for word in given.words])
    elif verb == "auto":
        auto.read_words("quickstart", given.overrides)
    elif verb == "distill":
        distill.read_words("quickstart", given.overrides)
    elif verb == "compress":
        parse_chain(parse_assignments(given.words))
    elif verb == "pretrain" and not given.preset.startswith("letters_"):
        # The reader's own images are not here.
        pretrain.read_words("quickstart", given.overrides)
    elif verb == "pretrain":
        spec = load(PretrainSpec, given.preset, presets=PRESETS / "pretraining")
        override(spec, parse_assignments(given.overrides))
    elif "overrides" in given:
        make_spec(spec_of(given.source), **parse_assignments(given.overrides))


def test_a_wrong_command_would_be_found(parse):
    with pytest.raises(SystemExit):
        parse("rates", ["--image-size", "many", "resnet50"])
    given = parse("train", ["quickstart", "model.dropuot=0"])
    with pytest.raises(SpecError):
        override(spec_of(given.source), parse_assignments(given.overrides))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fields_set_in_the_text_exist(page):
    for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", read(page))):
        words = span.split()
        if all(re.fullmatch(r"[a-z]+(\.[a-z_0-9]+)+=\S+", word) for word in words):
            for word in words:
                override(RunSpec(), parse_assignments([word]))


def test_readme_is_short_and_starts_with_the_two_commands():
    text = read(README)
    assert len(text.splitlines()) <= 200
    assert len(text.split()) <= 1200
    first = FENCE.search(text, text.index("## Set up"))
    assert first[2].splitlines() == [
        "pip install -e . && python -m pipelines.train quickstart",
        'pip install -e ".[test]" && pytest',
    ]


def anchors(page: Path) -> set[str]:
    """The ids that a page's headings get on GitHub."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", read(page)), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {text.replace(" ", "-") for text in kept}


def links(text: str) -> list[tuple[str, str]]:
    """Links and images of a page within the repository, as (path, anchor)."""
    found = re.findall(r"\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"", FENCE.sub("", text))
    targets = [one or other for one, other in found]
    return [
        (path, anchor)
        for path, _, anchor in (target.partition("#") for target in targets)
        if not path.startswith("https://")
    ]


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=name_of
)
def test_links_lead_to_pages_and_headings_that_exist(page):
    for path, anchor in links(read(page)):
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), path
        assert not anchor or anchor in anchors(file), f"{path}#{anchor}"


@pytest.mark.parametrize("name", SITE["ROOT_PAGES"])
def test_links_of_the_root_pages_lead_somewhere_on_the_site(name):
    for path, _ in links(SITE["render_root_page"](name)):
        assert DOCS / path in {*DOCS_PAGES, *COPIES}, path


def nav_pages(entries: list) -> list[str]:
    """The pages of a navigation, in order, those of its sections included."""
    targets = [target for entry in entries for target in entry.values()]
    return [
        page
        for target in targets
        for page in (nav_pages(target) if isinstance(target, list) else [target])
    ]


def test_every_page_is_listed_and_in_the_navigation():
    index = read(DOCS / "README.md")
    pages = {page.relative_to(DOCS).as_posix() for page in {*DOCS_PAGES, *COPIES}}
    nav = nav_pages(yaml.safe_load(read(ROOT / "mkdocs.yml"))["nav"])
    assert sorted(nav) == sorted(pages)
    for page in pages - {"README.md", *SITE["ROOT_PAGES"].values()}:
        assert f"({page})" in index, page


def test_pictures_are_small_and_drawn_from_the_code():
    folder = DOCS / "images"
    generate = runpy.run_path(str(folder / "generate.py"))
    for name, diagram in generate["DIAGRAMS"].items():
        current = generate["render"](diagram)
        assert read(folder / f"{name}.svg") == current, "python docs/images/generate.py"
    assert all(file.stat().st_size < 150_000 for file in folder.iterdir() if file.is_file())


@pytest.fixture(scope="module")
def generate():
    """The names of docs/reference/generate.py."""
    return runpy.run_path(str(DOCS / "reference" / "generate.py"))


def test_every_public_name_is_in_the_python_reference(generate):
    listed = [name for names in generate["PUBLIC"].values() for name in names]
    assert sorted(listed) == sorted(keras_transfer.__all__)


def test_everything_public_in_python_is_described(generate):
    """Every attribute and every parameter that a docstring does not explain would be blank."""
    text = generate["render_python"]()
    assert not re.findall(r"^\| `.*` \| \|$", text, re.MULTILINE)
    for name in ("SpecError", "uint8 [N, H, W, 3]", "run.evaluation.accuracy", "#### Run.predict"):
        assert name in text


@pytest.mark.parametrize("page", ["fields", "backbones", "python_api"])
def test_generated_pages_are_current(page, generate, monkeypatch):
    monkeypatch.delitem(BACKBONES, SMALL.name)
    current = generate["PAGES"][page]()
    assert read(DOCS / "reference" / f"{page}.md") == current, "python docs/reference/generate.py"


def test_every_verb_is_in_the_reference():
    listed = re.findall(r"^\| `(\w+)` \|", read(ROOT / "docs/reference/verbs.md"), re.MULTILINE)
    assert sorted(listed[: len(VERBS)]) == sorted(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_parses_and_its_imports_exist(page):
    for source in blocks(page, "python"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("keras_transfer"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_architecture_names_every_package_and_files_that_exist():
    text = read(ROOT / "docs" / "architecture.md")
    package = ROOT / "keras_transfer"
    for folder in package.iterdir():
        if (folder / "__init__.py").is_file():
            assert f"`{folder.name}/`" in text
    for name in re.findall(r"`(\w+/[\w/]+\.py)`", text):
        file = ROOT / name if (ROOT / name.split("/")[0]).is_dir() else package / name
        assert file.is_file() or not (package / name).parent.is_dir(), name


def test_modules_of_the_changelog_exist():
    table = read(ROOT / "CHANGELOG.md").partition("module of 0.2")[2]
    for name in re.findall(r"\| `([\w.]+)`(?:, same names)? \|$", table, re.MULTILINE):
        name = name.rstrip(".")
        full = name if name.startswith("pipelines") else f"keras_transfer.{name}"
        path = ROOT / full.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), name


@pytest.mark.parametrize("page", PAGES[:1] + PAGES[2:], ids=name_of)
def test_words_are_plain(page):
    found = re.search(rf"\b({NOT_PLAIN})\b", read(page), re.IGNORECASE)
    assert not found, found
