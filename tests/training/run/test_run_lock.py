"""One run at a time in a folder; one that has ended, however it ended, is in nobody's way."""

import errno
import logging
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from spp_cls import UserError
from spp_cls.cli.files import lock_file
from spp_cls.training.run import lock as run_lock
from spp_cls.training.run.lock import RunLock
from tests.server import Server
from tests.training.run.test_resume import STEP, Runs, runs  # noqa: F401 (a fixture)


def start_owner(folder: Path) -> tuple[int, int]:
    """Start a process that holds the lock, and a process that it has forked, as it would a worker."""
    ready, tell = os.pipe()
    if (owner := os.fork()) == 0:
        RunLock(folder).acquire()
        lock = RunLock(folder)
        lock.acquire()
        if (worker := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        os.write(tell, f"{worker}\n".encode())
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 100))
    return owner, worker


def test_the_lock_goes_with_its_owner_and_not_with_what_it_forked(tmp_path: Path) -> None:
    owner, worker = start_owner(tmp_path)
    try:
        with pytest.raises(UserError, match=rf"another run is training in {tmp_path} \(process {owner} on \S+\); wait"):
            RunLock(tmp_path).acquire()
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        # Still there: signal 0 asks.
        os.kill(worker, 0)
        lock = RunLock(tmp_path)
        assert lock.acquire()
        assert not lock.acquire()
        lock.release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_the_owner_is_named_however_soon_it_is_asked_for(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    if (owner := os.fork()) == 0:
        with (tmp_path / ".lock").open("w") as file:
            lock_file(file)
            os.write(tell, b"locked")
            time.sleep(0.3)
            file.write("process 7 on a machine\n")
            file.flush()
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(ready, 100) == b"locked"
        with pytest.raises(UserError, match=r"\(process 7 on a machine\); wait for its end"):
            RunLock(tmp_path).acquire()
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock, "lock_file", refuse)
    with caplog.at_level(logging.WARNING):
        assert RunLock(tmp_path).acquire()
    (message,) = caplog.messages
    assert message == f"{tmp_path} cannot be locked (No locks available); start no other run in this folder"


@pytest.mark.slow
def test_two_trainings_started_together_twenty_times(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    with Server() as second:
        other = Runs(runs.images, second)
        for number in range(20):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            for name in ("a", "b"):
                (tmp_path / name).mkdir(exist_ok=True)
                (tmp_path / name / "output").unlink(missing_ok=True)
            statuses: dict[str, int] = {}

            def train(name: str, server: Runs, statuses: dict[str, int] = statuses, number: int = number) -> None:
                keys = ("data.num_workers=0", f"run_folder={tmp_path}/run", f"seed={number}")
                statuses[name] = server(tmp_path / name, *keys)

            threads = [threading.Thread(target=train, args=each) for each in (("a", runs), ("b", other))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(statuses.values()) == [0, 1], [(tmp_path / name / "output").read_text() for name in "ab"]
            (refused,) = [name for name, status in statuses.items() if status == 1]
            lines = (tmp_path / refused / "output").read_text().strip().splitlines()
            assert len(lines) == 1, lines
            assert lines[0].startswith(f"error: another run is training in {tmp_path}/run (process ")


@pytest.mark.slow
def test_after_a_kill_the_run_starts_again_at_once(runs: Runs, tmp_path: Path) -> None:  # noqa: F811
    # Its two workers live on for seconds.
    for call in (4, 3):
        assert runs(tmp_path, "data.num_workers=2", strikes=[(STEP, call, signal.SIGKILL)]) == -signal.SIGKILL
    assert runs(tmp_path, "data.num_workers=2") == 0, (tmp_path / "output").read_text()
