"""The scripts that start training on many machines, with stand-ins for `gcloud`, `srun` and Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONS = ["--config=configs/sdxl.py", "--workdir=/mnt/shared/my toys", "--config.train.mesh.data=16"]


@pytest.fixture
def machine(tmp_path):
    """A home folder with a checkout; what programs were called with, by those who append to its file `calls`."""
    (tmp_path / "bin").mkdir()
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "docs/launch", checkout / "docs/launch")
    shutil.copy(ROOT / "train.py", checkout)
    for command in ("init -q", "add .", "-c user.name=a -c user.email=b commit -qm c"):
        subprocess.run(["git", *command.split()], cwd=checkout, check=True)

    def program(path: str, body: str = "") -> None:
        """A program that notes its arguments."""
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        note = (f"import json, os, sys; open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps("
                f"[{Path(path).name!r}, os.environ.get('JAX_LOCAL_DEVICE_IDS'), *sys.argv[1:]]) + '\\n')\n")
        file.write_text(f"#!{sys.executable}\n{note}{body}")
        file.chmod(0o755)

    def run(script: str, *arguments: str, **variables: str):
        environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"} | variables
        done = subprocess.run(["bash", checkout / "docs/launch" / script, *arguments], env=environment, cwd=tmp_path,
                              capture_output=True, text=True, check=False)
        calls = tmp_path / "calls"
        return done, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return program, run


def test_slurm(machine):
    program, run = machine
    program("bin/srun")
    done, calls = run("slurm.sh", *OPTIONS, SLURM_GPUS_ON_NODE="8", SLURM_CPUS_ON_NODE="64")
    assert done.returncode == 0, done.stderr
    assert calls == [["srun", "0,1,2,3,4,5,6,7", "--kill-on-bad-exit=0", "--wait=120", "--cpus-per-task=64",
                      ".venv/bin/python", "train.py", "--distributed", *OPTIONS]]
    done, _ = run("slurm.sh", *OPTIONS)
    assert done.returncode and "start this with sbatch" in done.stderr
    assert run("slurm.sh")[0].returncode == 2


@pytest.mark.parametrize("code", [75, 2, 137])
def test_slurm_puts_a_job_that_saved_back_into_the_queue(machine, code):
    program, run = machine
    program("bin/srun", f"sys.exit({code})")
    program("bin/scontrol")
    done, calls = run("slurm.sh", *OPTIONS, SLURM_GPUS_ON_NODE="8", SLURM_JOB_ID="17")
    assert [call[2:] for call in calls[1:]] == ([["requeue", "17"]] if code == 75 else [])
    assert done.returncode == (0 if code == 75 else code)


# A cloud whose slice is there from the second time on that it is asked for, and whose training ends with these codes.
CLOUD = """
import pathlib
folder, codes = pathlib.Path(os.environ["HOME"]), [int(code) for code in os.environ["CODES"].split()]
count = len((folder / "calls").read_text().splitlines())
before = [json.loads(line)[2:] for line in (folder / "calls").read_text().splitlines()][:-1]
if "describe" in sys.argv:
    print("READY" if any("create" in call for call in before) else "CREATING")
    sys.exit(not any("create" in call for call in before))
if "ssh" in sys.argv:
    sys.exit(codes[sum("ssh" in call for call in before)])
"""


@pytest.mark.parametrize("codes, ended", [("75 75 0", 0), ("75 2", 2), ("1", 1)])
@pytest.mark.parametrize("queued", ["", "1"])
def test_tpu_begins_again_after_a_stop_that_saved(machine, tmp_path, codes, ended, queued):
    program, run = machine
    program("bin/gcloud", CLOUD)
    done, calls = run("tpu.sh", "rc16", "v5litepod-16", *OPTIONS, ZONE="us-west4-a", HOME=str(tmp_path), CODES=codes,
                      QUEUED=queued, POLL="0")
    assert done.returncode == ended, done.stderr
    assert sum("ssh" in call for call in calls) == len(codes.split())
    made = [call for call in calls if "create" in call]
    assert len(made) == 1 and ("queued-resources" in made[0]) == bool(queued)


def test_tpu(machine, tmp_path):
    """No slice of that name: it is made. Its one host, the home folder, gets the code and trains with the options."""
    program, run = machine
    host = f"""
import shutil, subprocess
if "describe" in sys.argv:
    sys.exit(1)
if "scp" in sys.argv:
    shutil.copy(sys.argv[5], {str(tmp_path / "realcustom.tar.gz")!r})
if "ssh" in sys.argv:
    subprocess.run(["bash", "-c", sys.argv[-1].removeprefix("--command=")], cwd={str(tmp_path)!r}, check=True)
"""
    program("bin/gcloud", host)
    program("python")
    program(".local/bin/uv", f"""
import pathlib, shutil
if sys.argv[1] == "venv":
    pathlib.Path(sys.argv[-1], "bin").mkdir(parents=True)
    shutil.copy({str(tmp_path / "python")!r}, pathlib.Path(sys.argv[-1], "bin"))
""")
    done, calls = run("tpu.sh", "rc16", "v5litepod-16", *OPTIONS, ZONE="us-west4-a", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    on_host = [call for call in calls if call[0] != "gcloud"]
    assert on_host == [["uv", None, "venv", "-q", "--python", "3.12", ".venv"],
                       ["uv", None, "pip", "install", "-q", "--python", ".venv/bin/python", "-r", "requirements.txt",
                        "jax[tpu]"],
                       ["python", None, "train.py", "--distributed", *OPTIONS]]
    cloud = [call[5] for call in calls if call[0] == "gcloud"]
    assert cloud == ["describe", "create", "scp", "ssh"] and "--accelerator-type=v5litepod-16" in calls[1]
    assert all("--zone=us-west4-a" in call for call in calls if call[0] == "gcloud")
    assert (tmp_path / "realcustom/train.py").exists()
    done, _ = run("tpu.sh", "rc16", "v5litepod-16", *OPTIONS, ZONE="")
    assert done.returncode and "the zone of Google Cloud" in done.stderr
