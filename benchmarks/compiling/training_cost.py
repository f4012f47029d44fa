"""Time and cost of a training, computed from the operations of its step; nothing is run or compiled.

    python -m benchmarks.compiling.training_cost --kind sdxl --side 1024 --steps 40000 --batch 256 --device "v5 lite" \
        --chips 256 --mfu 0.3 --price 1.2

    operations of an example (the traced step, recomputed ones counted) x batch x steps
        = seconds x chips x the peak of one of them x MFU;        cost = chips x hours x price

The peak is `platform.PEAKS`'s dense bfloat16 figure. MFU and price (of a chip and an hour) are what you assume: measure
the first with benchmarks.speed.train_step, look up the second. Reading, saving, compiling and stops are not in it.
"""

import dataclasses

from benchmarks.common import parser_of, show
from realcustom_jax.devices.ahead_of_time import AdapterStep
from realcustom_jax.devices.jaxprs import flops
from realcustom_jax.devices.platform import PEAKS, peak_flops
from realcustom_jax.training.published.config import PublishedConfig


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--kind", choices=("sdxl", "sd15"), default="sdxl")
    parser.add_argument("--side", type=int, required=True)
    parser.add_argument("--precomputed", action="store_true")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", choices=PEAKS, required=True)
    parser.add_argument("--chips", type=int, required=True)
    parser.add_argument("--mfu", type=float, required=True)
    parser.add_argument("--price", type=float, help="of a chip and an hour")
    options = parser.parse_args()
    operations = operations_of_example(options.kind, options.side, precomputed=options.precomputed)
    rate = options.chips * peak_flops(options.device) * options.mfu
    hours = options.batch * options.steps * operations / rate / 3600
    found = {"teraflop_per_example": operations / 1e12, "examples": options.batch * options.steps,
             "examples_per_second": rate / operations, "step_seconds": options.batch * operations / rate,
             "hours": hours, "chip_hours": hours * options.chips}
    show(found if options.price is None else found | {"cost": hours * options.chips * options.price}, None)


def operations_of_example(kind: str, side: int, *, precomputed: bool) -> float:
    """Operations of the training step for each example, as XLA's own products compute it (platform "cpu")."""
    train = PublishedConfig(kind=kind, side=side, precomputed=precomputed)
    step = AdapterStep(dataclasses.replace(
        train, optimization=dataclasses.replace(train.optimization, batch_size=1)), "cpu")
    return flops(step.function([None]).trace(*step.arguments(), *step.numbers()).jaxpr.jaxpr)


if __name__ == "__main__":
    main()
