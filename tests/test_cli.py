"""The command contract: overrides, exit codes, one clear line on standard error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expertflow_jax import cli, interrupts
from expertflow_jax.errors import InputError
from expertflow_jax.harness.workdir import Workdir

CONFIG = """
import ml_collections

def get_config():
    config = ml_collections.ConfigDict()
    config.seed = 1
    config.fractions = (0.25, 0.5)
    config.optimizer = ml_collections.ConfigDict({"rate": 0.1})
    return config
"""


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return str(path)


def run(argv: list[str], main=lambda invocation: None) -> int:
    return cli.run_command(main, description="test", argv=argv)


def test_overrides_take_the_type_of_what_they_replace(config_file: str, tmp_path: Path):
    seen = []
    overrides = ["--config.seed=7", "--config.fractions=(0.1,)", "--config.optimizer.rate=1e-4"]
    assert run([f"--config={config_file}", f"--workdir={tmp_path}", *overrides], seen.append) == 0
    config = seen[0].config
    assert (config.seed, config.fractions, config.optimizer.rate) == (7, (0.1,), 1e-4)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def get_config():\n    return None.x", ", line 2, fails to load: AttributeError: 'NoneType'"),
        ("def get_config():\n    raise ValueError('two\\nlines')", ", line 2, fails to load: ValueError: two lines"),
        ("import sys\n\nsys.exit('enough')", ", line 3, fails to load: SystemExit: enough"),
        ("def get_config(:\n", ", line 1, fails to load: SyntaxError"),
        ("import nothing_of_the_kind", ", line 1, fails to load: ModuleNotFoundError"),
        ("def get_config(arg):\n    return arg", "fails to load: TypeError: get_config() missing 1"),
        ("def get_config():\n    return {'a': 1}", "returns no ml_collections.ConfigDict"),
    ],
)
def test_a_config_file_that_fails_is_one_line_that_names_its_own(tmp_path: Path, capsys, body: str, message: str):
    file = tmp_path / "broken.py"
    file.write_text(body)
    assert run([f"--config={file}", f"--workdir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert message in error
    assert error.count("\n") == 1


def test_earlier_names_of_a_study_are_read_with_a_warning(tmp_path: Path, capsys):
    file = tmp_path / "earlier.py"
    file.write_text(
        "from configs import study_base\n\n\ndef get_config():\n    config = study_base.get_config()\n"
        "    config.blocks.one = study_base.block(('on_demand',), cache_fractions=(0.5,))\n    return config\n"
    )
    config = cli.load_config(str(file))
    assert config.grids.one.policies == ("on_demand",)
    assert "blocks" not in config
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" is called ")[1].split()[0] for line in lines] == ["study_base.grid", "config.grids"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config.optimizer.rat=1"], "did you mean --config.optimizer.rate?"),
        (["--config.seed=many"], "--config.seed=many"),
        (["--config.seed"], "--config.seed=VALUE"),
        (["--wrkdir=x"], "did you mean --workdir?"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(config_file: str, tmp_path: Path, capsys, arguments, said):
    assert run([f"--config={config_file}", f"--workdir={tmp_path}", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_missing_and_broken_config_files(tmp_path: Path, capsys):
    assert run([f"--config={tmp_path}/none.py", f"--workdir={tmp_path}"]) == 2
    assert "no such file" in capsys.readouterr().err
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name")
    assert run([f"--config={broken}", f"--workdir={tmp_path}"]) == 2
    assert "nothing_of_that_name" in capsys.readouterr().err


def test_workdir_is_needed_unless_dry(config_file: str, capsys):
    assert run([f"--config={config_file}"]) == 2
    assert "--workdir" in capsys.readouterr().err
    assert run([f"--config={config_file}", "--dry_run"]) == 0


def test_exit_codes_of_the_command_itself(config_file: str, tmp_path: Path, capsys):
    def refuses(invocation):
        raise InputError("questions.json: row 3 has no 'image_id';\nadd it")

    def fails(invocation):
        raise RuntimeError("bug")

    base = [f"--config={config_file}", f"--workdir={tmp_path}"]
    assert run(base, refuses) == 2
    assert capsys.readouterr().err == "error: questions.json: row 3 has no 'image_id'; add it\n"
    assert run(base, fails) == 1


def test_help_exits_0(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(["--help"])
    assert exit_info.value.code == 0
    assert "--config.KEY=VALUE" in capsys.readouterr().out


SWALLOWS = """
import gc, sys, time
from expertflow_jax import cli, interrupts

def main(invocation):
    gc.callbacks.append(lambda *_: time.sleep(0.5))  # what a callback of the collector raises is printed and lost
    print("running", flush=True)
    gc.collect()
    for _ in range(200):
        interrupts.check()
        time.sleep(0.05)

sys.exit(cli.run_command(main, description="test", argv=sys.argv[1:]))
"""


def running(script: str, config_file: str, workdir: Path) -> subprocess.Popen:
    """A process of the script, once it says that it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, f"--config={config_file}", f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    return process


@pytest.mark.parametrize(
    ("number", "code", "says", "seconds"),
    [(signal.SIGINT, 130, "interrupted", 0.2), (signal.SIGTERM, 143, "terminated", 1.5)],
)
def test_signals_end_a_command_even_if_a_callback_swallows_them(config_file, tmp_path, number, code, says, seconds):
    process = running(SWALLOWS, config_file, tmp_path)
    time.sleep(seconds)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert error.splitlines()[-1] == f"{says}; rerun the same command to resume"


DEAF = """
import hashlib, sys
from expertflow_jax import cli, interrupts

def main(invocation):
    print("running", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)  # C code that lets other threads run, as XLA does

interrupts.GRACE = 0.5
sys.exit(cli.run_command(main, description="test", argv=sys.argv[1:]))
"""


def test_a_command_that_does_not_hear_is_ended_in_time(config_file, tmp_path):
    process = running(DEAF, config_file, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error == "terminated; rerun the same command to resume\n"


def test_handlers_are_put_back(config_file: str, tmp_path: Path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run([f"--config={config_file}", f"--workdir={tmp_path}"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    interrupts.check()


def test_a_library_that_cannot_write_is_one_line_and_exit_2(config_file: str, tmp_path: Path, capsys):
    def fills_the_disk(invocation):
        raise OSError(28, "No space left on device", str(tmp_path / "plot.png"))

    assert run([f"--config={config_file}", f"--workdir={tmp_path}"], fills_the_disk) == 2
    error = capsys.readouterr().err
    assert error.endswith("plot.png: cannot be written (No space left on device); free some space and rerun\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("place", ["{tmp}/file", "{tmp}/file/below", "{tmp}/" + "n" * 300, "/proc/x"])
def test_an_impossible_workdir_is_one_line_and_exit_2(config_file: str, tmp_path: Path, capsys, place):
    def opens(invocation):
        Workdir(invocation.workdir, {}).close()

    (tmp_path / "file").write_text("")
    assert run([f"--config={config_file}", f"--workdir={place.format(tmp=tmp_path)}"], opens) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_is_one_line_also_where_a_library_keeps_only_the_text(config_file: str, tmp_path: Path, capsys):
    def write(invocation):
        raise RuntimeError(f"Failed to finalize: write() failed: {os.strerror(28)}; at byte 7")

    assert run([f"--config={config_file}", f"--workdir={tmp_path}"], write) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "No space left on device); free some space" in error
