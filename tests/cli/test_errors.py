"""However a command ends, the user reads one line; a traceback is for those who ask for it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spp_cls.cli import errors
from spp_cls.cli.errors import end_in_one_line
from spp_cls.training.module import LitClassifier
from tests.conftest import Command, Tool, error_of
from tests.training.run.test_checkpointing import RUN

LINE = re.compile(r"error: unexpected error: ZeroDivisionError: division by zero; the details are in (\S+\.log)\n")


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(errors.tempfile, "tempdir", str(folder))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return folder


def divide(*_: object, **__: object) -> float:
    return 1 / 0


def test_a_bug_in_training_is_one_line_and_a_log_in_the_run_folder(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LitClassifier, "training_step", divide)
    result = command("train.py", *RUN)
    assert result.returncode == 2
    found = LINE.fullmatch(result.stderr)
    assert found, result.stderr
    log = tmp_path / found[1]
    assert log.parent == tmp_path / "runs/small"
    text = log.read_text()
    assert "name=small" in text.splitlines()[0]
    assert "torch 2." in text.splitlines()[1]
    assert text.count("Traceback") == 1
    assert "ZeroDivisionError: division by zero" in text.splitlines()[-1]


@pytest.mark.parametrize("shown", ["debug=true", "HYDRA_FULL_ERROR"])
def test_debug_shows_the_traceback(
    shown: str, image_folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LitClassifier, "training_step", divide)
    if "=" not in shown:
        monkeypatch.setenv(shown, "1")
    with pytest.raises(ZeroDivisionError):
        command("train.py", *RUN, *([shown] if "=" in shown else []))


def test_errors_of_the_user_have_no_traceback_with_debug(command: Command) -> None:
    assert "there is no folder nowhere" in error_of(
        command("train.py", *RUN[2:], "data=imagefolder", "data.root=nowhere", "debug=true")
    )


def test_a_bug_in_one_of_several_runs(
    image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LitClassifier.training_step

    def fails_in_the_first_run(self: LitClassifier, batch: Any, batch_idx: int) -> Any:
        return step(self, batch, batch_idx) if self.seed else divide()

    monkeypatch.setattr(LitClassifier, "training_step", fails_in_the_first_run)
    result = command("train.py", "--multirun", *RUN, "seed=0,1")
    assert result.returncode == 1
    assert LINE.search(result.stderr)
    (table,) = (tmp_path / "multirun").rglob("results.csv")
    first, second = table.read_text().splitlines()[1:]
    assert "unexpected error: ZeroDivisionError" in first
    assert "unexpected" not in second


def test_a_bug_in_a_small_command(tool: Tool, temporary_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spp_cls.evaluation.tables.read_results", divide)
    result = tool("spp_cls.evaluation.tables")
    assert result.returncode == 2
    found = LINE.fullmatch(result.stderr)
    assert found, result.stderr
    assert Path(found[1]).parent == temporary_folder
    with pytest.raises(ZeroDivisionError):
        tool("spp_cls.evaluation.tables", "debug=true")
    line = error_of(tool("spp_cls.evaluation.tables", "debug=maybe"))
    assert line == "error: debug is true or false, not 'maybe'"
    assert re.search(r"debug +false +show an unexpected error with its traceback", tool("spp_cls.predict", "-h").stdout)


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (MemoryError(), "memory ran out (MemoryError); train with a smaller data.batch_size", 1),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "memory ran out (RuntimeError: CUDA out", 1),
        (OSError(28, "No space left on device", "x"), "cannot write x: No space left on device; free some space", 1),
        (OSError(36, "File name too long", "x"), "cannot use x: File name too long; choose another", 1),
        (OSError(71, "Protocol error"), "unexpected error: OSError: [Errno 71] Protocol error; the details", 2),
        (RuntimeError("[gloo] Connection closed by peer [::1]"), "another process of this command has ended", 1),
        (RuntimeError("Caught KeyError in worker 0.\nTrace\nKeyError: 'a'"), "unexpected error: KeyError: 'a'; the", 2),
        (RuntimeError("one\ntwo"), "unexpected error: RuntimeError: one; the details are in ", 2),
        (ValueError(300 * "x"), f"unexpected error: ValueError: {185 * 'x'}...; the details", 2),
    ],
)
def test_how_errors_end(
    error: Exception, line: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        end_in_one_line(fail, tmp_path / "no folder")
    printed = capsys.readouterr().err
    assert left.value.code == status
    assert printed.startswith(f"error: {line}")
    assert printed.count("\n") == 1


def test_an_interrupt_is_none(tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_in_one_line(interrupt, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "program", "status", "line"),
    [
        (2, "import time; print('begun', flush=True); time.sleep(60)", 130, "interrupted\n"),
        # More than a pipe holds; and so little that Python would write it at its end.
        (None, "print('begun'); print('x' * 1_000_000)", 141, ""),
        (None, "input(); print('begun')", 141, ""),
        (None, "raise BrokenPipeError(32, 'Broken pipe')", 2, "error: unexpected error: BrokenPipeError: "),
    ],
)
def test_a_command_that_is_interrupted_or_not_read_ends_quietly(
    number: int | None, program: str, status: int, line: str
) -> None:
    # A shell lets what it starts in the background ignore Ctrl-C, and so do the tests of such a run.
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = f"from spp_cls.cli.arguments import run_tool\ndef main(arguments):\n    {program}\nrun_tool(main, [])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", heed + command], **pipes, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        if "'begun'" in program and "input()" not in program:
            # The whole line, which Python may write in two parts.
            process.stdout.readline()
        if status != 2:
            process.stdout.close()
        if number:
            process.send_signal(number)
        process.stdin.write("\n" * ("input()" in program))
        process.stdin.close()
        printed = process.stderr.read()
    assert process.returncode == status, printed
    assert printed.startswith(line)
    assert len(printed.splitlines()) == bool(line)


def test_a_log_that_cannot_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(errors.tempfile, "mkstemp", full)
    with pytest.raises(SystemExit):
        end_in_one_line(divide)
    assert capsys.readouterr().err == (
        "error: unexpected error: ZeroDivisionError: division by zero; debug=true shows the details\n"
    )
