"""Commands on a file system that is full or read-only: one line, exit code 2, and a rerun completes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_killed_commands import COMMANDS

KIBIBYTES = {  # sizes at which runs of the command end, in several places where there are several
    "scale": (4, 40, 100),
    "study": (16, 300),
    "ablations": (16,),
    "throughput": (16,),
    "train.moe": (60, 900),
    "train.predictor": (60,),
}


def mounted(folder: Path, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs takes more rights than these tests have")


@pytest.fixture
def disk(tmp_path):
    """A folder to mount at; it is unmounted at the end."""
    folder = tmp_path / "disk"
    folder.mkdir()
    yield folder
    subprocess.run(["umount", str(folder)], capture_output=True)


def refused(command, folder: Path, workdir: Path, reason: str) -> None:
    process = command.start(folder, workdir)
    output, _ = process.communicate(timeout=600)
    lines = [
        line for line in output.splitlines() if "error" in line.lower() or line.startswith(("  File", "Traceback"))
    ]
    assert process.returncode == 2, output
    assert len(lines) == 1, output
    assert lines[0].startswith("error: "), output
    assert reason in lines[0]
    partial = [path for path in workdir.rglob("*.partial") if path.is_file()] if workdir.exists() else []
    assert not partial


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", KIBIBYTES)
def test_a_full_disk_is_one_line_and_a_rerun_completes(name, tmp_path, disk):
    command, workdir = COMMANDS[name], disk / "run"
    mounted(disk, "-o", "size=4k")
    for size in KIBIBYTES[name]:
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        refused(command, tmp_path, workdir, "No space left on device")
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    process = command.start(tmp_path, workdir)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert command.results(workdir)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", KIBIBYTES)
def test_a_read_only_disk_is_one_line(name, tmp_path, disk):
    mounted(disk, "-o", "ro")
    refused(COMMANDS[name], tmp_path, disk / "run", "Read-only file system")
