"""The live file: what is written is read, not too often; a process that is gone, a file cut off, a full disk."""

import json
import os
import socket
import subprocess
import sys

from rankprobe.experiment import live
from rankprobe.experiment.live import LIVE_FILE, Live, LiveFile, read_live


def test_what_is_told_is_read_until_the_end(tmp_path):
    file = LiveFile(tmp_path, every_s=0)
    file.tell(("full seed 0: 1/10",), 1, 20, None)
    file.tell(("full seed 0: 2/10", "LoRA"), 2, 20, 90.0)
    found = read_live(tmp_path)
    assert (found.now, found.done, found.total, found.eta_s) == (("full seed 0: 2/10", "LoRA"), 2, 20, 90.0)
    assert found.pid == os.getpid() and found.host == socket.gethostname() and found.works
    file.end()
    assert read_live(tmp_path) is None and not list(tmp_path.iterdir())
    file.end()


def test_it_is_not_written_more_often_than_asked(tmp_path, monkeypatch):
    clock = iter([0.0, 1.0, 1.9, 2.1])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    file = LiveFile(tmp_path, every_s=2)
    seen = []
    for done in range(4):
        file.tell(("x",), done, 4, None)
        seen.append(read_live(tmp_path).done)
    assert seen == [0, 0, 0, 3]


def test_a_process_that_has_ended_does_not_work(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    said = Live(("x",), 0, 1, None, int(ended.stdout), socket.gethostname(), 0.0)
    assert not said.works
    far = Live(("x",), 0, 1, None, os.getpid(), "elsewhere", 0.0)
    assert not far.works, "it has said nothing since 1970"
    assert Live(("x",), 0, 1, None, 1, "elsewhere", live.time.time() - 5).works


def test_what_cannot_be_read_is_nothing(tmp_path):
    for text in ("", "{", "[]", '{"now": 3}', json.dumps({"now": ["x"], "done": 1})):
        (tmp_path / LIVE_FILE).write_text(text)
        assert read_live(tmp_path) is None
    assert read_live(tmp_path / "nowhere") is None


def test_a_folder_that_is_gone_stops_nobody(tmp_path):
    (tmp_path / "file").write_text("")
    LiveFile(tmp_path / "file", every_s=0).tell(("x",), 0, 1, None)
    assert read_live(tmp_path / "file") is None
