"""Figures that papers print, by the benchmark and the protocol that they were measured with.

Only figures of the same benchmark by the same protocol can be compared: the same pictures have other scores by another
script. They are in the protocol's own scale. What the paper of RealCustom++ prints of its own is not here, because it
does not say of which list of subjects and prompts; nor DSH-Bench's ImageReward, which is normalised in a way that is
said nowhere.
"""

import dataclasses
from collections.abc import Mapping

_DSH = "measured by the authors of DSH-Bench, github.com/sunriverhzy/DSH-Bench"
_UNO = "measured by the authors of UNO, github.com/bytedance/UNO, arXiv 2504.02160"


@dataclasses.dataclass(frozen=True)
class Published:
    """What somebody measured of a system.

    Attributes:
        system: and its version, where the source says it. benchmark, protocol: by their names here.
        figures: by the metric's name. source: of the figures.
    """

    system: str
    benchmark: str
    protocol: str
    figures: Mapping[str, float]
    source: str


def _dsh(benchmark: str, *figures: float) -> Published:
    names = "clip_i", "clip_l_i", "dino_i", "dinov2_i", "clip_t", "clip_l_t"
    return Published("RealCustom++", benchmark, "dsh_bench", dict(zip(names, figures, strict=True)), _DSH)


def _uno(system: str, dino: float, clip_i: float, clip_t: float) -> Published:
    return Published(system, "uno_single", "uno", {"clip_t": clip_t, "clip_i": clip_i, "dino_i": dino}, _UNO)


FIGURES: tuple[Published, ...] = (
    _dsh("dreambench", 0.794, 0.770, 0.746, 0.698, 0.325, 0.278),
    _dsh("dreambench_plus", 0.819, 0.810, 0.714, 0.706, 0.330, 0.280),
    _dsh("dsh_bench", 0.781, 0.769, 0.645, 0.624, 0.332, 0.285),
    _uno("RealCustom++", 0.702, 0.794, 0.318), _uno("UNO", 0.760, 0.835, 0.304),
    _uno("OmniGen", 0.693, 0.801, 0.315), _uno("OminiControl", 0.684, 0.799, 0.312),
    _uno("BLIP-Diffusion", 0.670, 0.805, 0.302), _uno("ELITE", 0.647, 0.772, 0.296),
    _uno("SSR-Encoder", 0.612, 0.821, 0.308),
)
"""All that are known here, RealCustom++ first."""


def published(benchmark: str, protocol: str) -> tuple[Published, ...]:
    """The figures of a benchmark by a protocol; none where nobody has printed any."""
    return tuple(one for one in FIGURES if (one.benchmark, one.protocol) == (benchmark, protocol))
