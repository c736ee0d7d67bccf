"""A fixture for processes that start fast, because they import nothing but the standard library."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def start_plain(tmp_path_factory):
    """Starts a program that may import `dbl_tf.atomic` and `dbl_tf.lock`, and no other package."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "dbl_tf").mkdir()
    (folder / "dbl_tf" / "__init__.py").touch()
    for name in ("atomic.py", "lock.py"):
        (folder / "dbl_tf" / name).symlink_to(ROOT / "dbl_tf" / name)

    def start(code: str, *arguments: object) -> subprocess.Popen:
        code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
