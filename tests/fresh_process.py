"""Python in a process of its own: with other devices, to be killed, or beside another one."""

import os
import socket
import subprocess
import sys
from pathlib import Path


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
