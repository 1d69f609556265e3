"""The pinned packages as small wheels, for a GPU machine without internet that has torch already.

    pip freeze > have.txt                                                    # there
    python tests/benchmarks/gpu/wheels.py FOLDER --have have.txt --python 3.12 --cuda 128    # here
    python -m pip install --no-index --no-deps FOLDER/*.whl                  # there

What `have.txt` names, in whatever version, is left out, and torch and NVIDIA's packages always are. bitsandbytes keeps
its library for one CUDA version (torch.version.cuda without the dot), and Unsloth loses its studio.
"""

import argparse
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ENVIRONMENT = Path(__file__).resolve().parents[3] / "environment.yml"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
NEVER = re.compile(r"torch(vision|audio)?$|nvidia-|triton$")
NOT_NEEDED = {"ruff", "hypothesis", "moto", "gradio", "openai", "boto3", "botocore", "jupyterlab", "tensorboard"}


def pinned(text: str) -> dict[str, str]:
    """{normalised name: name==version} of an environment.yml, or of what `pip freeze` prints."""
    found = re.findall(r"^[\s-]*([A-Za-z0-9._-]+)==(\S+)", text, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): f"{name}=={version}" for name, version in found}


def strip(wheel: Path, unwanted: re.Pattern) -> None:
    """Leave the files out whose path matches, and their lines in RECORD."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                content = b"".join(x for x in content.splitlines(keepends=True) if not unwanted.match(x.decode()))
            if not unwanted.match(entry.filename):
                new.writestr(entry, content, zipfile.ZIP_DEFLATED)
    part.replace(wheel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--have", type=Path, help="what `pip freeze` prints on the GPU machine")
    parser.add_argument("--python", default="3.11")
    parser.add_argument("--cuda", default="128")
    arguments = parser.parse_args()
    have = pinned(arguments.have.read_text()).keys() if arguments.have else set()
    wanted = [pin for name, pin in pinned(ENVIRONMENT.read_text()).items()
              if name not in have | NOT_NEEDED and not NEVER.match(name)]  # fmt: skip
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    words = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", arguments.python]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *words,
                    *platforms, "--dest", arguments.folder, *wanted], check=True)  # fmt: skip
    unwanted = re.compile(rf"bitsandbytes/libbitsandbytes_(?!cpu|cuda{arguments.cuda}\.)|unsloth/studio/|studio/")
    for wheel in [*arguments.folder.glob("bitsandbytes-*.whl"), *arguments.folder.glob("unsloth-*.whl")]:
        strip(wheel, unwanted)
    wheels = sorted(arguments.folder.glob("*.whl"), key=lambda wheel: -wheel.stat().st_size)
    for wheel in wheels[:10]:
        print(f"{wheel.stat().st_size / 2**20:6.1f} MiB  {wheel.name}")
    print(f"{sum(wheel.stat().st_size for wheel in wheels) / 2**20:6.1f} MiB in all, {len(wheels)} wheels")


if __name__ == "__main__":
    main()
