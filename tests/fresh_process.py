"""Python in a process of its own: with other devices, to be killed, or beside another one; and emulators of buckets."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

_PACKAGES = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto.server")}


def start(script: str, *arguments, devices: int = 1, **options) -> subprocess.Popen:
    """Starts a script with this process's imports and the tests' folder, on so many simulated devices."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], env=environment,
                            cwd=Path(__file__).parent, text=True, **options)


def run(script: str, *arguments, **options) -> str:
    """Runs it to its end, which must be a good one, and returns what it printed."""
    process = start(script, *arguments, stdout=subprocess.PIPE, **options)
    printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    return printed


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def emulator(scheme: str) -> Iterator[None]:
    """Starts an emulator of Google's (gs) or Amazon's (s3) storage, to which this process's environment leads from then
    on. Once a scheme and process, because etils keeps the connection."""
    for package in _PACKAGES[scheme]:
        pytest.importorskip(package)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command, variables = {
        "gs": (["-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}", "--in-memory", "--quiet"],
               {"STORAGE_EMULATOR_HOST": address, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}),
        "s3": (["-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
               {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_DEFAULT_REGION": "us-east-1"})}[scheme]
    server = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            _wait_for(address, server)
            yield
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(900):
        assert server.poll() is None, "the emulator has ended"
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no emulator at {address}")
