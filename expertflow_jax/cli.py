"""Shared command line of `train/` and `eval/`: parse, run, and turn errors into exit codes.

`python -m eval.study --config=FILE --workdir=DIR [--dry_run] [--config.key=value ...]`. A config file is Python
(ml_collections) with a `get_config()`; overrides are typed by the value they replace. Exit codes: 0 done, 2 bad
config or input (one clear line on standard error), 130 interrupted, 141 nobody reads the output, 143
terminated, 1 anything else.
"""

import argparse
import dataclasses
import difflib
import io
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from expertflow_jax import compilation_cache, gpu_caps, interrupts
from expertflow_jax.errors import InputError, Unfinished, brief
from expertflow_jax.files import refused_write, write_error


@dataclasses.dataclass(frozen=True)
class Invocation:
    """What the user asked for: the config with overrides applied, where to write, and whether only to plan."""

    config: ml_collections.ConfigDict
    config_path: str
    workdir: Path | None
    dry_run: bool
    options: argparse.Namespace
    overrides: tuple[str, ...]

    def command(self, module: str) -> str:
        """The command line, as reports show it. Args: module: "eval.study"."""
        return " ".join(
            [f"python -m {module}", f"--config={self.config_path}", f"--workdir={self.workdir}", *self.overrides]
        )


def _flatten(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    for key in config:
        value = config.get_ref(key).get() if isinstance(config, ml_collections.ConfigDict) else config[key]
        yield prefix + key
        if isinstance(value, ml_collections.ConfigDict):
            yield from _flatten(value, f"{prefix}{key}.")


def load_config(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Executes the config file at `path` and applies `--config.key=value` overrides.

    Raises:
      InputError: no such file, an error inside it, an unknown key (the nearest one is suggested) or a value of the
        wrong type.
    """
    file = path.split(":", 1)[0]
    if not Path(file).is_file():
        raise InputError(f"--config: no such file: {file}; configs are listed under configs/")
    try:
        plain = _parse(path, ())
    except (Exception, SystemExit) as raised:
        error = _of_the_file(raised)
        text = brief(" ".join(str(error).split()), 300)
        raise InputError(
            f"--config: {file}{_line_of(error, file)} fails to load: {type(error).__name__}: {text}"
        ) from raised
    if not isinstance(plain, ml_collections.ConfigDict):
        raise InputError(f"--config: get_config() of {file} returns no ml_collections.ConfigDict")
    keys = list(_flatten(plain))
    for override in overrides:
        key, separator, _ = override.removeprefix("--config.").partition("=")
        if not separator:
            raise InputError(f"{override}: write --config.{key}=VALUE")
        if key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
            hint = f"; did you mean --config.{near[0]}?" if near else ""
            raise InputError(f"unknown config key {key!r} in {file}{hint}")
    try:
        return _parse(path, overrides)
    except Exception as error:
        raise InputError(f"--config overrides: {error}".replace("\n", " ")) from error


def _of_the_file(error: BaseException) -> BaseException:
    """What the config file raised, without what the library makes of it, whose text is a whole traceback."""
    while isinstance(error, flags.Error) or str(error).startswith("Error whilst parsing config file"):
        if error.__context__ is None:
            break
        error = error.__context__
    return error


def _line_of(error: BaseException, file: str) -> str:
    """ ", line N" of the line in the file at which it was raised; empty if it was nowhere there."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(file).resolve()]
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).resolve() == Path(file).resolve():
        lines.append(error.lineno)
    return f", line {lines[-1]}," if lines else ""


def _parse(path: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    values = flags.FlagValues()
    argv = ["command", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


def _parser(description: str, needs_workdir: bool, options: Callable | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Override any key of the config file with --config.KEY=VALUE (nested keys with dots; tuples as\n"
        "'(a,b)').\n"
        "Exit codes: 0 done, 2 bad config or input, 130 interrupted, 143 terminated, 1 anything else.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="Python config file, see configs/")
    if needs_workdir:
        parser.add_argument("--workdir", metavar="DIR", help="where results go; rerun with the same DIR to resume")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and the memory it needs, then exit")
    if options is not None:
        options(parser)
    return parser


def parse(
    argv: Sequence[str],
    *,
    description: str,
    needs_workdir: bool = True,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
) -> Invocation:
    """Parses a command line into an `Invocation`; raises `InputError` (or exits for --help)."""
    overrides = [arg for arg in argv if arg.startswith("--config.")]
    rest = [arg for arg in argv if not arg.startswith("--config.")]
    parser = _parser(description, needs_workdir, options)
    parsed, unknown = parser.parse_known_args(rest)
    if unknown:
        known = [s for action in parser._actions for s in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1, cutoff=0.0)
        raise InputError(f"unknown argument {unknown[0]!r}" + (f"; did you mean {near[0]}?" if near else ""))
    workdir = getattr(parsed, "workdir", None)
    if needs_workdir and workdir is None and not parsed.dry_run:
        raise InputError("--workdir is missing: say where results go, for example --workdir=runs/first")
    if workdir is not None and os.path.exists(workdir) and not os.path.isdir(workdir):
        raise InputError(f"--workdir: {workdir} is a file; name a folder")
    config = load_config(parsed.config, overrides)
    return Invocation(
        config=config,
        config_path=parsed.config,
        workdir=Path(workdir) if workdir is not None else None,
        dry_run=parsed.dry_run,
        options=parsed,
        overrides=tuple(overrides),
    )


def _say(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def _farewell(number: int) -> int:
    print(interrupts.farewell(number), file=sys.stderr)
    return 128 + number


def _refuse(error: InputError) -> int:
    _say(error)
    return 2


def _show_anywhere() -> None:
    """Standard output may have any encoding, or be closed: what it cannot show is replaced, and never an error."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _nobody_reads() -> bool:
    """Whether the reader of standard output has gone, as `head` does; what is left for it then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def run_command(
    main: Callable[[Invocation], Any],
    *,
    description: str,
    needs_workdir: bool = True,
    options: Callable[[argparse.ArgumentParser], None] | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parses, runs `main(invocation)` and returns the exit code that DESIGN's command contract asks for."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    _show_anywhere()
    try:
        with interrupts.noted():
            invocation = parse(arguments, description=description, needs_workdir=needs_workdir, options=options)
            gpu_caps.take_whole_machine()
            compilation_cache.enable()
            main(invocation)
            sys.stdout.flush()
    except InputError as error:
        return _refuse(error)
    except Unfinished as error:
        _say(error)
        return 1
    except BrokenPipeError:
        if _nobody_reads():
            return 141  # as a shell shows what SIGPIPE ends
        traceback.print_exc()
        return 1
    except interrupts.Terminated:
        return _farewell(signal.SIGTERM)
    except KeyboardInterrupt:
        return _farewell(signal.SIGINT)
    except Exception as error:
        if (reason := refused_write(error)) is not None:  # of a library that writes files itself
            return _refuse(write_error(reason.filename or "a file", reason))
        traceback.print_exc()
        return 1
    return 0
