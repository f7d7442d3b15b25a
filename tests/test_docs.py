"""Links in the documentation have targets, and the README names every script."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def headings(page: Path) -> set[str]:
    """Return the anchors of a page, as GitHub and the site generator derive them from headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file), target


def test_readme_is_short_and_names_every_script() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 180
    named = set(re.findall(r"`(\w+\.py)`", readme))
    scripts = {path.name for path in (ROOT / "scripts").glob("*.py")}
    assert named <= scripts
    # The others are described on the pages on weights and on measurements.
    assert scripts - named <= {
        *("convert_alexnet_weights.py", "compare_autoencoders.py"),
        *("compare_novelty.py", "load_test.py"),
    }


def test_every_page_is_in_the_index_of_the_documentation() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
        assert page.name == "index.md" or f"({page.name})" in index
