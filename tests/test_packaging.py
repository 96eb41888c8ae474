"""The wheel, the editable install, the public names, and the examples in the documentation."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support import python, run_pytest

import helixnb
import helixnb.testing
import helixnb_kernels

ROOT = Path(__file__).parents[1]
TEST = re.compile(r"^(?:async )?def test_", re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]

pytestmark = pytest.mark.slow


def build(hook: str, directory: Path) -> zipfile.ZipFile:
    """Build a wheel by a hook of the build backend."""
    program = f"import hatchling.build as b; print(b.{hook}({str(directory)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return zipfile.ZipFile(directory / done.stdout.split()[-1])


def test_one_wheel_with_two_packages(tmp_path: Path) -> None:
    """The wheel has both packages, typed, and no package that is called `kernels`."""
    with build("build_wheel", tmp_path) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names} == {
        "helixnb",
        "helixnb_kernels",
        f"helixnb-{helixnb.__version__}.dist-info",
    }
    assert {"helixnb/py.typed", "helixnb_kernels/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_editable_install_is_followed_by_type_checkers(tmp_path: Path) -> None:
    """Its paths are plain directories, in which mypy finds both packages and their types."""
    pytest.importorskip("mypy")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "venv" / "lib" / version / "site-packages"
    with build("build_editable", tmp_path) as wheel:
        wheel.extractall(site)
    program = tmp_path / "user.py"
    program.write_text(
        "from helixnb import Job\nfrom helixnb_kernels import hash_mix\n"
        "reveal_type(Job(id=1, kind='x', compute_cost=1).compute_cost)\n"
        "reveal_type(hash_mix([], 1))\n"
    )
    executable = str(tmp_path / "venv" / "bin" / "python")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", executable, str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count('Revealed type is "int"') == 2, done.stdout


@pytest.mark.parametrize("package", [helixnb, helixnb.testing, helixnb_kernels])
def test_public_names(package: object) -> None:
    """`__all__` is sorted, and each name in it is there and documented."""
    names: list[str] = package.__all__  # type: ignore[attr-defined]
    constants = [name for name in names if name.isupper()]
    classes = [name for name in names if not name.isupper() and name[0].isupper()]
    functions = [name for name in names if name[0].islower()]
    assert names == sorted(constants) + sorted(classes) + sorted(functions)
    for name in classes + functions:
        assert getattr(package, name).__doc__, name


def test_the_wheel_is_what_is_tested() -> None:
    """Where the test command says so, the tests run on the installed wheel."""
    if os.environ.get("HELIXNB_TEST_WHEEL") != "1":
        pytest.skip("not started by `make test`")
    for name in ("helixnb", "helixnb_kernels"):
        file = importlib.import_module(name).__file__
        assert file is not None
        assert "site-packages" in Path(file).parts


def blocks() -> list[object]:
    """Return every Python block of the README and the docs."""
    found: list[object] = []
    for page in PAGES:
        for number, code in enumerate(
            re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        ):
            found.append(pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}"))
    return found


def test_examples_were_found() -> None:
    """Those of the README are among them, and tests are."""
    found: Any = blocks()
    assert any(each.id.startswith("README.md") for each in found)
    assert any(TEST.search(each.values[0]) for each in found)


@pytest.mark.parametrize("code", blocks())
def test_examples_run(code: str, tmp_path: Path) -> None:
    """Each example is a program that runs as it stands, or tests that pass."""
    (tmp_path / "example.py").write_text(code)
    if not (tests := TEST.findall(code)):
        done = python("example.py", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return
    done = run_pytest(tmp_path, "example.py")
    assert done.returncode == 0, done.stdout + done.stderr
    # Nothing was skipped, and nothing warned of: the last line would say so.
    passed = re.fullmatch(r"(\d+) passed in .*", done.stdout.splitlines()[-1])
    assert passed is not None, done.stdout
    assert int(passed[1]) >= len(tests)
