"""Buckets on this machine: emulators of Google's and Amazon's storage, each a process of its own on a free port."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

from fresh_process import free_port

BUCKET = "pictures-bucket"
_PACKAGES = {"gs": ("gcsfs", "gcp_storage_emulator"), "s3": ("s3fs", "moto.server")}


@contextlib.contextmanager
def emulator(scheme: str, cache) -> Iterator[str]:
    """Starts one of them with a bucket, whose URL it gives; until the end this process's environment leads there, and
    host copies lie in the folder `cache`."""
    for package in _PACKAGES[scheme]:
        pytest.importorskip(package)
    import fsspec

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
            for name, value in {**variables, "REALCUSTOM_BUCKET_CACHE": os.fspath(cache)}.items():
                patch.setenv(name, value)
            _wait_for(address, server)
            files = fsspec.filesystem(scheme)
            files.mkdir(f"{scheme}://{BUCKET}")
            yield f"{scheme}://{BUCKET}"
            files.clear_instance_cache()
    finally:
        server.terminate()
        server.wait()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(300):
        assert server.poll() is None, "the emulator has ended"
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no emulator at {address}")
