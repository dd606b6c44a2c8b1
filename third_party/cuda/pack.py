"""Pack what verify.sh and train.sh need on a machine with a GPU and no network: `pack.py FOLDER [DATA ...]`.

FOLDER gets the bundle, one compressed tar in one piece or in parts, with the scripts and SHA256SUMS
beside it. Inside are the project at HEAD, the default model, llama.cpp's sources and converter, the
BEIR folders named, and wheels of all that tierexport needs but torch and numpy: the target has its
own, for its own CUDA. Run it with the Python of a checkout's .venv.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tierexport.base import archive
from tierexport.base.digests import file_digest
from tierexport.base.paths import cache_dir
from tierexport.cli.doctor import DEMO_PACKAGE

ROOT = Path(__file__).parents[2]
PART_BYTES = 48 << 20

ON_THE_TARGET = {"torch", "numpy"}
"""What the target has already, with all that they need themselves."""

BUILT_THERE = "llama-cpp-python"
BUILDERS = ("pip", "scikit-build-core", "packaging", "pathspec")
"""The package that is compiled on the target, and what that takes beside compilers and cmake."""

SCRIPTS = ("steps.sh", "train.sh", "verify.sh")

MSLK_OF_TORCH = {"2.10": "1.0.0", "2.11": "1.1.0"}
"""mslk's kernels load into the torch that they were built for."""

SOURCES = (
    "CMakeLists.txt",
    "pyproject.toml",
    "README.md",
    "LICENSE.md",
    "llama_cpp/",
    *(f"vendor/llama.cpp/{part}" for part in ("CMakeLists.txt", "LICENSE", "cmake/", "common/", "ggml/", "include/", "src/")),
    "vendor/llama.cpp/vendor/",
)
"""The part of llama-cpp-python's archive that its build reads; the rest is models, documents and programs."""


def main() -> None:
    """Gather everything in a scratch folder, then write it out."""
    options = arguments()
    if options.folder.exists() and any(options.folder.iterdir()):
        raise SystemExit(f"{options.folder} is not empty: name another folder, or remove it")
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        wheels(sorted(needed(options.python)), bundle / "wheels", options.python, options.platform)
        if version := MSLK_OF_TORCH.get(options.torch):
            wheels([f"mslk-cuda=={version}"], bundle / "mslk", options.python, options.platform)
        project(bundle / "main")
        llama_sources(bundle / "llama_cpp_python")
        converter(bundle / "cache")
        for data in options.data:
            shutil.copytree(data, bundle / "data" / data.resolve().name)
        if options.pairs:
            shutil.copy2(options.pairs, bundle / "pairs.jsonl")
        write(bundle, options.folder, PART_BYTES if options.parts else sys.maxsize)


def arguments() -> argparse.Namespace:
    """The command line, with a common target's values as defaults."""
    parser = argparse.ArgumentParser(description="Pack what verify.sh needs on a machine without a network.")
    parser.add_argument("folder", type=Path, help="an empty folder, or one to make")
    parser.add_argument("data", type=Path, nargs="*", help="BEIR folders to verify on")
    parser.add_argument("--pairs", type=Path, help='a .jsonl of "query" and "positive" that train.sh trains on')
    parser.add_argument("--python", default="3.12", help="the target's Python (%(default)s)")
    parser.add_argument("--torch", default="2.11", help="the target's torch, which mslk has to match (%(default)s)")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="newest that the target takes (%(default)s)")
    parser.add_argument("--parts", action="store_true", help=f"cut the bundle into parts of {PART_BYTES >> 20} MiB")
    return parser.parse_args()


def needed(python: str) -> set[str]:
    """What to install on the target, as pinned: from pyproject.toml on through what is installed here."""
    declaring = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = [*declaring["dependencies"], *declaring["optional-dependencies"]["lora"]]
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {canonicalize_name(line.partition("==")[0]): line for line in lines if "==" in line}
    target = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found = {canonicalize_name(name) for name in (DEMO_PACKAGE, *BUILDERS)}
    waiting = list(map(Requirement, declared))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate(target)
        if wanted and name not in found | ON_THE_TARGET:
            found.add(name)
            waiting += map(Requirement, requires(name) or ())
    return {pins[name] for name in found - {BUILT_THERE}}


def wheels(pins: list[str], folder: Path, python: str, platform: str) -> None:
    """Download wheels for the target; a package that has none ends the run."""
    newest = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", platform)
    if newest is None:
        raise SystemExit(f"--platform {platform}: has to be like manylinux_2_28_x86_64")
    tags = [f"manylinux_2_{minor}_{newest[2]}" for minor in range(int(newest[1]), 4, -1)]
    tags += [f"{name}_{newest[2]}" for name in ("manylinux2014", "manylinux2010", "manylinux1")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python, "--dest", str(folder)]
    subprocess.run([*command, *(f"--platform={tag}" for tag in tags), *pins], check=True)


def project(folder: Path) -> None:
    """The project as committed."""
    packed = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], stdout=subprocess.PIPE, check=True).stdout
    folder.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)


def llama_sources(folder: Path) -> None:
    """What the build of llama-cpp-python reads, out of the pinned archive."""
    with tarfile.open(archive.archive_file()) as tar:
        for member in tar:
            _, _, inside = member.name.partition("/")
            if inside.startswith(SOURCES):
                member.name = inside
                tar.extract(member, folder, filter="data")


def converter(cache: Path) -> None:
    """The unpacked converter with its record, as tierexport's cache on the target will have it."""
    unpacked = archive.converter()
    shutil.copytree(unpacked, cache / unpacked.name)
    record = Path(".stages") / f"{unpacked.name}.json"
    (cache / record).parent.mkdir()
    shutil.copy2(cache_dir() / record, cache / record)


def write(bundle: Path, folder: Path, part_bytes: int) -> None:
    """Compress the bundle into parts, and list the digest of every file that travels."""
    folder.mkdir(parents=True, exist_ok=True)
    packed = bundle.with_suffix(".tar.gz")
    with tarfile.open(packed, "w:gz", compresslevel=6) as tar:
        tar.add(bundle, ".")
    with packed.open("rb") as whole:
        number = 0
        while piece := whole.read(min(part_bytes, packed.stat().st_size)):
            (folder / f"bundle.{number:02}").write_bytes(piece)
            number += 1
    for script in SCRIPTS:
        shutil.copy2(Path(__file__).with_name(script), folder)
    files = sorted(folder.iterdir())
    (folder / "SHA256SUMS").write_text("".join(f"{file_digest(file)}  {file.name}\n" for file in files))
    sys.stdout.writelines(f"{file.stat().st_size / 1e6:7.1f} MB  {file}\n" for file in files)


if __name__ == "__main__":
    main()
