"""A small file system that tests can fill."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import skip_without


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of this size at a folder; skip the test if that is not possible."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.getuid() != 0 or shutil.which("mount") is None:
        skip_without("a small disk to fill up", "run as root, where tmpfs may be mounted")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        skip_without("a small disk to fill up", "run as root, where tmpfs may be mounted")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """Make a small disk read-only ("ro") or writable ("rw"); no file on it may be open."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Make the system refuse every write to a file; skip the test if that is not possible.

    This works also if the file is open for writing, when its file system cannot be remounted
    read-only.
    """
    lock = ["chattr", "+i"]
    if shutil.which("chattr") is None or os.getuid() != 0:
        skip_without("a file that the system writes nothing to", "run as root, with chattr")
    probe = path.with_name("probe")
    with probe.open("wb", buffering=0) as file:
        subprocess.run([*lock, probe], capture_output=True, check=False)
        try:
            is_refused = not file.write(b"x")
        except OSError:
            is_refused = True
        finally:
            subprocess.run(["chattr", "-i", probe], capture_output=True, check=False)
    if not is_refused:
        skip_without("a file that the system writes nothing to", "have temporary files on ext4")
    subprocess.run([*lock, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def fill(ballast: Path) -> None:
    """Write zeros to a file until the disk is full."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\0" * 65_536):
                pass
        except OSError:
            pass
