"""`python -m subnet.localnet` from outside: mistakes, Ctrl-C, and no process left behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = [sys.executable, "-m", "subnet.localnet"]
TIMEOUT_S = 60
# what a Ctrl-C may take, with room for a machine that runs other things
STOP_S = 10


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *flags], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)


def refused(done: subprocess.CompletedProcess[str], field: str) -> str:
    """The one line of a mistake."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {field}: ") and "; " in line
    assert "Traceback" not in done.stdout
    return line


@contextmanager
def launched(*flags: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher that has begun: its first line was printed, so signals are taken."""
    launcher = subprocess.Popen(
        [*COMMAND, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        assert launcher.stdout is not None
        assert "run folder" in launcher.stdout.readline()
        yield launcher
    finally:
        if launcher.poll() is None:
            launcher.kill()
        launcher.communicate()


def test_more_stages_than_miners(tmp_path: Path) -> None:
    """1. --miners 2 --stages 3."""
    line = refused(run("--miners", "2", "--stages", "3", "--run-dir", str(tmp_path / "run")), "--miners")
    assert line == "error: --miners: 2 cannot fill 3 stages; give at least 3, or fewer --stages"
    assert not (tmp_path / "run").exists()


def test_more_stages_than_layers(tmp_path: Path) -> None:
    """2. The default model has six layers; nine stages cannot each have one."""
    refused(run("--miners", "9", "--stages", "9", "--run-dir", str(tmp_path / "run")), "--stages")


def test_a_missing_text(tmp_path: Path) -> None:
    """3. The file name is mistyped: told before anything is started."""
    line = refused(run("--text", str(tmp_path / "nothing.txt"), "--run-dir", str(tmp_path / "run")), "--text")
    assert "nothing.txt" in line


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    """4. What only the preparing process can find reaches the operator in the same form."""
    (tmp_path / "short.txt").write_text("In the beginning\n")
    flags = ["--text", str(tmp_path / "short.txt"), "--run-dir", str(tmp_path / "run")]
    refused(run(*flags, "--cache-dir", str(tmp_path / "cache")), "--text")


def test_an_unwritable_folder(tmp_path: Path) -> None:
    """5. The run folder would lie below a file; not even root can write there."""
    (tmp_path / "file").write_text("")
    refused(run("--run-dir", str(tmp_path / "file" / "run")), "--run-dir")
    refused(run("--run-dir", str(tmp_path / "run"), "--report", str(tmp_path / "file" / "r.json")), "--report")


def test_a_busy_port(tmp_path: Path) -> None:
    """6. Something else listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        line = refused(run("--port", str(port), "--run-dir", str(tmp_path / "run")), "--port")
    assert str(port) in line


def test_resuming_what_is_not_there(tmp_path: Path) -> None:
    """7. --resume with a wrong folder."""
    refused(run("--resume", str(tmp_path)), "--resume")


def test_rules_that_do_not_fit(tmp_path: Path) -> None:
    """7b. The owner's file asks for more than all replicas: the line names the rule, and nothing was started."""
    (tmp_path / "rules.toml").write_text("[merge]\nquorum = 1.5\n")
    refused(run("--config", str(tmp_path / "rules.toml"), "--run-dir", str(tmp_path / "run")), "merge.quorum")
    assert not (tmp_path / "run").exists()


def test_ctrl_c_ends_everything_and_the_run_can_go_on(tmp_path: Path) -> None:
    """8. Ctrl-C while the text is being prepared: code 130, one line that says how to continue, nobody left."""
    folder = tmp_path / "run"
    with launched("--run-dir", str(folder), "--cache-dir", str(tmp_path / "cache")) as launcher:
        launcher.send_signal(signal.SIGINT)
        out, err = launcher.communicate(timeout=STOP_S)
    assert launcher.returncode == 130, err
    assert out.splitlines()[-1] == f"stopped; continue with: python -m subnet.localnet --resume {folder}"
    assert processes_naming(folder) == []
    line = refused(run("--run-dir", str(folder)), "--run-dir")
    assert f"--resume {folder}" in line
    refused(run("--resume", str(folder), "--seed", "8"), "--seed")


def test_no_child_outlives_the_launcher(tmp_path: Path) -> None:
    """9. The launcher is killed outright; its children are gone with it (the kernel sees to it, on Linux)."""
    if sys.platform != "linux":
        return  # elsewhere nothing can promise this
    folder = tmp_path / "run"
    with launched("--run-dir", str(folder), "--cache-dir", str(tmp_path / "cache")) as launcher:
        while not (children := processes_naming(folder, below=launcher.pid)) and launcher.poll() is None:
            pass
        launcher.kill()
        launcher.wait(STOP_S)
        for child in children:
            wait_for_end(child)
    assert children and not (folder / "opening.json").exists(), "the child ended because it was done"


def processes_naming(folder: Path, below: int | None = None) -> list[int]:
    """Processes that have the folder on their command line; `below` keeps the children of one process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            named = str(folder) in (entry / "cmdline").read_text()
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if named and int(entry.name) != os.getpid() and below in (None, parent):
            found.append(int(entry.name))
    return found


def wait_for_end(pid: int) -> None:
    """Returns when the process is gone; a process that is nobody's child is waited for by its descriptor."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ready, _, _ = select.select([descriptor], [], [], STOP_S)
        assert ready, f"process {pid} outlived the launcher"
    finally:
        os.close(descriptor)
