"""The package as users install it: its wheel and source archive are whole, an optional library that is missing is named."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, made_once
from tierexport.base.cluster import Cluster
from tierexport.base.errors import MachineError
from tierexport.base.libraries import import_faiss
from tierexport.datasets.textfiles import read_records
from tierexport.publish.modelscope import ModelScope
from tierexport.training.trainees import schedule_for

SHIPPED = ("docs", "models", "recipes", "third_party")
VERSIONS = ("3.12", "3.13")
"""Further Pythons that the metadata promises."""


def command(*words: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints, started without anything of this checkout in its environment."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=inherited | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    """The wheel, built from the source archive, as a package index's users get it where there is none."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed: pip install hatchling")

    def make(folder: Path) -> None:
        for kind, source in (("sdist", ROOT), ("wheel", folder / "source")):
            code = f"import sys, hatchling.build; hatchling.build.build_{kind}(sys.argv[1])"
            command(sys.executable, "-c", code, folder, cwd=source, PYTHONPATH=os.pathsep.join(sys.path))
            if kind == "sdist":
                with tarfile.open(next(folder.glob("*.tar.gz"))) as tar:
                    tar.extractall(folder, filter="data")
                next(folder.glob("tierexport-*/")).rename(folder / "source")

    return next(made_once(shared / "dist", make).glob("*.whl"))


def test_the_wheel_holds_the_package_and_all_that_is_shipped(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    own = {f"tierexport/{path.relative_to(ROOT / 'src' / 'tierexport').as_posix()}" for path in (ROOT / "src").rglob("*.py")}
    shipped = {
        f"tierexport/shipped/{path.relative_to(ROOT).as_posix()}"
        for folder in SHIPPED
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert not (own | shipped | {"tierexport/py.typed"}) - names
    assert not [name for name in names if not name.startswith("tierexport")]
    assert "Classifier: Programming Language :: Python :: 3.13\n" in metadata
    extras = set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))
    assert {"all", "faiss", "lora", "modelscope", "parquet"} <= extras


def test_an_editable_install_leaves_no_copies(wheel: Path, tmp_path: Path) -> None:  # skips as it does
    code = "import sys, hatchling.build; hatchling.build.build_editable(sys.argv[1])"
    command(sys.executable, "-c", code, tmp_path, cwd=ROOT, PYTHONPATH=os.pathsep.join(sys.path))
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        (link,) = (name for name in archive.namelist() if ".dist-info/" not in name)
        assert archive.read(link).decode().strip() == str(ROOT / "src")


def test_a_target_folder_plans_from_anywhere(wheel: Path, tiny_model: Path, tmp_path: Path) -> None:
    command(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "lib",
        wheel,
        cwd=tmp_path,
    )
    python = (sys.executable, "-P", "-m", "tierexport")
    settings = {"PYTHONPATH": str(tmp_path / "lib")}
    where = command(sys.executable, "-c", "import tierexport; print(tierexport.__file__)", cwd=tmp_path, **settings)
    assert Path(where.strip()).is_relative_to(tmp_path / "lib")
    planned = json.loads(
        command(*python, "plan", "three_tier", "--set", f"model={tiny_model}", "--json", cwd=tmp_path, **settings)
    )
    assert planned


def test_a_venv_without_pip_builds_from_anywhere(wheel: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The wheel's own command, in an environment that takes all other packages from the present one."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    command(
        sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path
    )
    packages = Path(command(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (packages / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    out = tmp_path / "elsewhere" / "out"
    out.parent.mkdir()
    options = ("--set", f"model={tiny_model}", "--set", "calibration.tokens=512", "--set", "rounding=nearest")
    program = place / "bin" / "tierexport"
    built = json.loads(command(program, "build", "int8", *options, "--out", out, "--json", cwd=out.parent))
    assert {each["status"] for each in built["results"] if each["device"] == "cpu"} == {"ok"}
    assert (out / "manifest.json").is_file()


@pytest.mark.parametrize("version", VERSIONS)
def test_other_pythons_take_every_file(version: str, wheel: Path, tmp_path: Path) -> None:
    """That each file is this Python's, without a warning. The packages that it needs are not there, so nothing is run."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"python{version} is not on this machine")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    command(python, "-W", "error", "-m", "compileall", "-q", tmp_path, cwd=tmp_path)


# --- optional libraries


MISSING: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "faiss": ("faiss", lambda _: import_faiss()),
    "lora": ("peft", lambda _: schedule_for("lora", 1, 1, 0.0, 0)),
    "modelscope": ("modelscope_hub", lambda _: ModelScope("org/name", None, False)),
    "parquet": ("pyarrow", lambda folder: list(read_records(folder / "texts.parquet"))),
    "ray": ("ray", lambda _: Cluster("")),
}
"""The library of each extra, and the first step of a command that takes it."""


@pytest.mark.parametrize("extra", MISSING)
def test_a_missing_extra_is_named(extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library, step = MISSING[extra]
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MachineError) as error:
        step(tmp_path)
    assert f'takes {library}, which is not installed: pip install "tierexport[{extra}]"' in str(error.value)


def test_every_extra_is_declared_and_all_has_each() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*MISSING, "all", "demo", "dev"} == set(declared)
    assert declared["all"] == [f"tierexport[{','.join(sorted(MISSING))}]"]


def test_what_is_optional_is_imported_by_no_module_as_it_loads() -> None:
    """The command line with every module of the package, in a Python that has none of the optional libraries."""
    code = (
        "import sys, pkgutil, importlib\n"
        f"sys.modules.update(dict.fromkeys({[library for library, _ in MISSING.values()]!r}))\n"
        "import tierexport\n"
        "for each in pkgutil.walk_packages(tierexport.__path__, 'tierexport.'):\n"
        "    each.name.endswith('__main__') or importlib.import_module(each.name)\n"
    )
    command(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=str(ROOT / "src"))
