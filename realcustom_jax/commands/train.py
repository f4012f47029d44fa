"""The command that trains the miniature, all stages or one, or the adapter of a published model on your own pictures:

    realcustom-train --config=configs/mini.py --workdir=runs/mini
    realcustom-train --config=configs/sdxl.py --workdir=runs/toys --config.train.data.folder=toys

and says of the latter, without running it, how its step (or, with --program=sampler, its sampler) lies on a mesh and
whether it fits:

    realcustom-train --config=configs/sdxl.py --print_sharding --topology=v5e:4x4
    realcustom-train --config=configs/sdxl.py --compile_only --topology=v5e:4x4 --json=FILE
"""

import math
import os
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from realcustom_jax import interruption
from realcustom_jax.commands import overrides
from realcustom_jax.commands.program import program, say_nothing_of_accelerators, warnings_as_sentences
from realcustom_jax.devices import xla_flags
from realcustom_jax.disk import enough_disk
from realcustom_jax.errors import exit_code, needs_extra
from realcustom_jax.paths import as_path, check_reachable, is_bucket

if TYPE_CHECKING:
    from realcustom_jax.paths import AnyPath

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration, e.g. configs/mini.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints, samples and bundle; run again to resume.")
_RESUME = flags.DEFINE_bool("resume", False, "Continue from the checkpoints in the workdir, as the default is.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete the checkpoints in the workdir and begin anew.")
_COMPILE_ONLY = flags.DEFINE_bool("compile_only", False, "Compile the step and report its memory; nothing is run.")
_PRINT_SHARDING = flags.DEFINE_bool("print_sharding", False, "Print where each parameter lies; nothing is run.")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, e.g. 100:105: traces these steps to the workdir's profile/, for XProf.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "A TPU slice that is not there, e.g. v5e:4x4 (needs libtpu).")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes, as a TPU pod, SLURM or GKE starts them; or give the next three.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, the same for all processes.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
_PROGRAM = flags.DEFINE_string("program", "step", "What the two above are about: the step of training, or sampler.")
_JSON = flags.DEFINE_string("json", None, "File to write the report of --compile_only to.")
_XLA_RECIPE = flags.DEFINE_bool(
    "xla_recipe", True, "Set XLA's options for training as public recipes have them (devices/xla_flags.py).")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of whatever goes wrong.")


def main() -> None:
    """Reads the flags of the command line and does what they say; ends the process with an exit code."""
    # absl's --help shows what the script that was started says and defines.
    sys.modules["__main__"].__doc__ = __doc__.replace("realcustom-train", program("realcustom-train"))
    for flag in flags.FLAGS.flags_by_module_dict()[__name__]:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    flags.mark_flag_as_required("config")
    flags.mark_bool_flags_as_mutual_exclusive(["resume", "overwrite"])
    app.run(_main, flags_parser=_parse)


def _main(argv: list[str]) -> None:
    del argv
    say_nothing_of_accelerators()
    if not flags.FLAGS["verbosity"].present:  # Orbax tells of every file that it opens
        absl_logging.set_verbosity(absl_logging.WARNING)
    with warnings_as_sentences(_say):
        code = exit_code(_work, debug=_DEBUG.value, report=_say, unusable=(ValueError, OSError, FloatingPointError))
    sys.exit(code)


def _work() -> None:
    config = _CONFIG.value
    if _XLA_RECIPE.value:
        xla_flags.set_recipe("tpu" if _TOPOLOGY.value else xla_flags.platform_here())
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if jax.config.jax_num_cpu_devices == -1 and not asked:
        jax.config.update("jax_num_cpu_devices", _cpu_devices(config))
    if _RESUME.value or _OVERWRITE.value:
        (config.train if "train" in config else config).on_existing = "resume" if _RESUME.value else "overwrite"
    if _PROFILE_STEPS.value is not None:
        with config.unlocked():  # a file need not name the key
            for part in _optimizations(config):
                part.profile_steps = _PROFILE_STEPS.value
    config.lock()
    _join()
    # Only now, because a process that waits for others in `_join` would not hear of the signal.
    with interruption.raised():
        _run(config)


def _cpu_devices(config: ConfigDict) -> int:
    """How many devices a CPU pretends to be: two half-batches side by side keep two cores busier than one batch whose
    every operation is divided (1.3x). As many as divide all batches."""
    batches = [part.batch_size // max(part.accumulate, 1) for part in _optimizations(config)]
    return max(1, math.gcd(os.cpu_count() or 1, 8, *batches))


def _optimizations(config: ConfigDict) -> list[ConfigDict]:
    """How each of its trainings is optimised."""
    return [config.train.optimization] if "train" in config else list(config.optimization.values())


def _run(config) -> None:
    from realcustom_jax.memory import enough_memory

    workdir = _WORKDIR.value and as_path(_WORKDIR.value)
    if workdir:
        check_reachable(workdir)
    with enough_disk(_WORKDIR.value), \
            enough_memory("choose a smaller batch, more accumulate, more fsdp, or precomputed features"):
        if _COMPILE_ONLY.value or _PRINT_SHARDING.value:
            _look_ahead(config)
        elif not workdir:
            raise ValueError("--workdir is missing: the folder that checkpoints and results are written to.")
        elif (said := _unusable(workdir)) is not None:
            raise OSError(f"--workdir={_WORKDIR.value} cannot be used: {said}; give a folder that can be written to.")
        elif "train" in config:
            with needs_extra("train", "training"):
                from realcustom_jax.training.published import run as published

            published.train_adapter(config, workdir)
        else:
            with needs_extra("train", "training"):
                from realcustom_jax.training.miniature import stages

            stages.run(config, workdir)


def _unusable(workdir: "AnyPath") -> str | None:
    """Why nothing can be written to a folder of this machine, or None. Nothing is made."""
    if is_bucket(workdir):
        return None
    whole = os.path.abspath(workdir)
    there = next(path for path in map(str, (whole, *Path(whole).parents)) if os.path.exists(path))
    if not os.path.isdir(there):
        return f"{there} is a file"
    folders = (there, *(os.path.join(there, name) for name in ("checkpoints", "data") if there == whole))
    closed = (path for path in folders if os.path.exists(path) and not os.access(path, os.W_OK | os.X_OK))
    return next((f"{path} is not open for writing" for path in closed), None)


def _parse(argv: list[str]) -> list[str]:
    config_flags.register_flag_parser_for_type(list, overrides.ListParser())
    try:
        return flags.FLAGS(argv)
    except Exception as error:
        if _is_of_the_users_file(error, argv):
            _fail(f"the file of --config cannot be used: {type(error).__name__}: {error}.")
        if isinstance(error, (OSError, flags.Error)):
            _fail(overrides.explained(error))
        if isinstance(error, (AttributeError, KeyError)):  # ml_collections' for a key that is not there
            message = str(error.args[0])
            unknown, nearest = re.search(r"\w+", message), re.search(r'mean "(\w+)"', message)
            _fail(f"the configuration has no key {unknown[0]!r}"
                  + (f"; did you mean {nearest[1]!r}?" if nearest else "."))
        if isinstance(error, (TypeError, ValueError)):  # its own for a value that the key does not take
            _fail(overrides.explained(error))
        raise


def _is_of_the_users_file(error: Exception, argv: list[str]) -> bool:
    """Whether an exception comes out of a Python file that the command line names: that is the user's program."""
    named = {os.path.abspath(argument.rpartition("=")[2]) for argument in argv[1:]}
    passed = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    passed |= {error.filename} if isinstance(error, SyntaxError) and error.filename else set()
    return bool(named & set(map(os.path.abspath, passed)))


def _fail(problem: object) -> NoReturn:
    """One sentence, and exit code 2."""
    _say(f"error: {' '.join(str(problem).split())}")
    sys.exit(2)


def _say(line: str) -> None:
    if "Failed loading config file" in line:  # ml_collections', which reads it when it is first looked at
        reason = line.removeprefix("error: ")
        line = f"error: the file of --config cannot be read ({reason}); give one such as configs/mini.py."
    print(line, file=sys.stderr)


def _join() -> None:
    """Waits for the other processes, if there are any."""
    explicit = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if any(value is not None for value in explicit):
        if None in explicit:
            raise ValueError("--coordinator, --num_processes and --process_id belong together; give all three.")
        given = explicit
    elif _DISTRIBUTED.value:
        given = ()
    else:
        return
    try:
        jax.distributed.initialize(*given)
    except RuntimeError as error:
        raise ValueError(f"the other processes cannot be reached ({str(error).splitlines()[0]}); are all of them "
                         "started, and with the same --coordinator and --num_processes?") from None


def _look_ahead(config) -> None:
    with needs_extra("train", "compiling a step of training"):
        from realcustom_jax.devices import ahead_of_time

    if "train" not in config:
        raise ValueError("--compile_only and --print_sharding are for published models: configs/sdxl.py, "
                         "configs/sd15.py.")
    program, mesh = ahead_of_time.from_config(config.train, _TOPOLOGY.value, _PROGRAM.value)
    if _PRINT_SHARDING.value:
        print(ahead_of_time.describe_program(program, mesh))
    if _COMPILE_ONLY.value:
        ahead_of_time.report_compilation(program, mesh, _JSON.value)
