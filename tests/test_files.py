"""Files are whole or not there; of two processes one has a run folder."""

import subprocess
import sys

import pytest

from bnn_jax import files
from bnn_jax.types import UserError


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    with files.whole(path) as file:
        file.write("é\n")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"\xc3\xa9\n"
    with pytest.raises(ZeroDivisionError), files.whole(path) as file:
        file.write(str(1 / 0))
    assert path.read_bytes() == b"\xc3\xa9\n"
    with files.whole(path, "wb") as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"


def test_names_that_are_no_utf_8_stay_as_they_are(tmp_path):
    with files.whole(tmp_path / "a.csv", newline="") as file:
        file.write(b"caf\xe9.png".decode("utf-8", "surrogateescape"))
    assert (tmp_path / "a.csv").read_bytes() == b"caf\xe9.png"


HOLD = """
import sys
from pathlib import Path
from bnn_jax import files
with files.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(UserError, match=r"^another process is at work in .*: wait for it, or choose another$"),
        files.held(tmp_path),
    ):
        pass
    other.kill()
    other.communicate()
    for _ in range(2):  # let go of at the end of the context, too
        with files.held(tmp_path):
            assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), files.held(tmp_path):
        print(1 / 0)
    with files.held(tmp_path):
        pass
