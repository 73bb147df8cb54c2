"""Methods from outside: the pages for their authors, followed to the letter by a stranger.

Every block of docs/extending.md is written to an empty folder and run there, with nothing but the
wheel of this project installed and a package of methods built from the page.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PAGE = ROOT / "docs" / "extending.md"
METHODS = ("stripes", "deviations", "two_passes", "logits", "pt2z")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not PAGE.exists(), reason="no documentation in this copy"),
]


def blocks(language: str) -> dict[str, str]:
    """Code blocks of the page by their first line, a comment that names the file."""
    found = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    named: dict[str, str] = {}
    for text in found:
        first = text.partition("\n")[0]
        named[first.removeprefix("# ") if first.startswith("# ") else ""] = text
    return named


class Stranger:
    """Somebody with an empty folder, the wheel, and Python."""

    def __init__(self, folder: Path, site: Path) -> None:
        self.folder = folder
        self.site = site
        self.env = {
            **os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "COLUMNS": "100",
        }  # fmt: skip

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=self.env, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def shell(self, lines: str) -> str:
        """The `datafree` commands among `lines`, one after the other."""
        told = ""
        for line in lines.splitlines():
            if line.startswith("datafree "):
                told += self.python("-m", *shlex.split(line))
        return told


def install(project: Path, site: Path) -> None:
    """Build a wheel of `project` and put it, and nothing else, into `site`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site),
         str(project)],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    """In a folder with the Python blocks of the page; only the wheel of datafree is installed."""
    folder, site = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("site")
    install(ROOT, site)
    for name, text in blocks("python").items():
        (folder / name).write_text(text, encoding="utf-8")
    made = Stranger(folder, site)
    where = made.python("-c", "import datafree; print(datafree.__file__)").strip()
    assert Path(where).is_relative_to(site), "the wheel, not this checkout"
    return made


def test_the_page_has_an_example_of_every_kind() -> None:
    files = blocks("python")
    assert {f"{name}.py" for name in METHODS} <= set(files)
    assert "" not in files, "every Python block names its file"
    assert len(files["test_stripes.py"].split("\n\n")[-1].strip().splitlines()) == 2
    groups = re.findall(r'entry-points\."datafree\.(\w+)"', blocks("toml")["pyproject.toml"])
    assert groups == ["synthesis", "calibrators", "reconstruction", "training", "export"]


def test_a_method_is_named_by_the_path_of_its_file(stranger: Stranger) -> None:
    told = stranger.shell(blocks("sh")[""])
    assert "stripes.py:Stripes, image method" in told
    assert "Half the difference of two stripes, in normalised pixels." in told
    assert "8 by stripes.py:Stripes" in told or "32 by stripes.py:Stripes" in told
    assert (stranger.folder / "striped" / "student.onnx").is_file()


def test_a_method_is_given_as_an_object(stranger: Stranger) -> None:
    told = stranger.python("use_stripes.py")
    assert told.startswith("stripes:Stripes")
    assert "agreement" in told


def test_methods_keep_their_contracts(stranger: Stranger) -> None:
    tests = [name for name in blocks("python") if name.startswith("test_")]
    assert len(tests) == 2
    told = stranger.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert re.search(r"\d\d passed", told)


def test_an_installed_package_adds_methods_by_name(
    stranger: Stranger, tmp_path_factory: pytest.TempPathFactory
) -> None:
    package = tmp_path_factory.mktemp("package")
    (package / "pyproject.toml").write_text(blocks("toml")["pyproject.toml"], encoding="utf-8")
    for name in METHODS:
        (package / f"{name}.py").write_text(blocks("python")[f"{name}.py"], encoding="utf-8")
    own = Stranger(tmp_path_factory.mktemp("other"), stranger.site)
    install(package, stranger.site)
    told = own.shell(blocks("sh")["installed"])
    for name in METHODS:
        assert re.search(rf"│ {name}\s+│", told), f"{name} is not listed"
    for name in ("named", "rounded", "tuned"):
        assert (own.folder / name / "metrics.json").is_file()
    assert (own.folder / "student.pt2z").is_file()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nowhere.py:Stripes", "there is no file nowhere.py to take the image method Stripes from"),
        ("stripes.py:Strips", "unknown image method of stripes.py 'Strips': did you mean Stripes?"),
        ("deviations.py:Deviations", "deviations.py:Deviations is no image method: it must be a"),
        ("broken.py:Stripes", "cannot import broken.py for the image method Stripes: NameError"),
        ("half.py:Half", "half.py:Half does not implement make_batch"),
    ],
)
def test_mistakes_are_told_in_one_line(stranger: Stranger, name: str, told: str) -> None:
    (stranger.folder / "broken.py").write_text("nonsense", encoding="utf-8")
    (stranger.folder / "half.py").write_text(
        "from datafree.synthesis.base import Synthesizer\nclass Half(Synthesizer): ...\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "datafree", "quantize", "digits_resnet8", "--method", name],
        cwd=stranger.folder, env=stranger.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert told in done.stderr
    assert not (stranger.folder / "run").exists()
