"""What a CPU, a GPU and a TPU do differently, as one value that is handed to networks and sampler.

    Platform.of()                                   this machine's default device
    Platform.of("tpu")                              a device that need not be there
    Platform.of(topology.tpu_devices("v5e:4x4")[0]) likewise, with what is known of its kind

A network carries its platform as a field, and no layer asks the machine that it is traced on. A program that is traced
with `Platform.of("tpu")` is therefore the TPU's own program, wherever it is traced, and tests need no patched backend.
All platforms compute the same numbers, but for rounding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from realcustom_jax.errors import check_choice

NAMES = ("cpu", "gpu", "tpu")
DTYPES = ("float32", "bfloat16", "float16")
PEAKS = {"v6 lite": 918e12, "v5 lite": 197e12, "v5": 459e12, "v4": 275e12, "H200": 989e12, "H100": 989e12,
         "A100": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "T4": 65e12}
"""Dense bfloat16 operations a second of one device, as its maker publishes them, by a part of JAX's name of its kind;
the first that is found counts."""
_OF_DEVICES = {"cuda": "gpu", "rocm": "gpu"}  # what descriptions of absent GPUs call their platform
_CUDNN_FROM = 8.0
"""The compute capability (Ampere's) from which cuDNN has fused attention."""


@dataclasses.dataclass(frozen=True)
class Platform:
    """The choices, hashable. The defaults are a CPU's, and they run everywhere."""

    name: str = "cpu"
    """cpu | gpu | tpu."""

    norms_read_once: bool = False
    """Whether a group norm takes mean and variance from one reading of its input, because memory is the bottleneck,
    or from two, the second around the mean, which is faster where the input stays in a cache."""

    norm_barrier: bool = False
    """Whether a group norm's mean and factor are finished before they are applied; XLA would otherwise make each of
    them in a kernel of its own."""

    shift_barrier: bool = False
    """Whether a residual block's convolution is finished before the timestep's shift is added; cuDNN's convolution
    would otherwise be given the shift of every pixel."""

    tokens_last: bool = True
    """Whether keys and values that are kept for all steps are [B, C, T] instead of [B, T, C]. A CPU then takes half as
    long for their product with the queries; the kernels of other devices take [B, T, C], and would wait for it."""

    scan_layers: bool = True
    """Whether a sampler scans equal transformer layers instead of keeping them apart. Scanning compiles faster, but it
    copies a layer's weights in every step, which takes a GPU a seventh of SDXL's time."""

    attention: str = "plain"
    """The UNet's attention where its shapes allow: plain (XLA's products) | cudnn (half precision only) | pallas."""

    encoder_attention: str = "xla"
    """The attention of encoders and autoencoder, `jax.nn.dot_product_attention`'s `implementation`: xla | cudnn."""

    float16: bool = False
    """Whether attention in float16 can be compiled."""

    half_as_float32: bool = True
    """Whether half precision is computed in float32, on copies of the weights that take memory of their own."""

    compiler_options: tuple[tuple[str, bool | int], ...] = ()
    """XLA's options that make a sampler fast, as pairs: `jax.jit(…, compiler_options=dict(…))`."""

    compiles_ahead: bool = True
    """Whether a sampler's programs are compiled side by side and while others run. A GPU measures kernels when it
    compiles, so that one program would disturb the choices for the other."""

    peak: float | None = None
    """Operations a second that one device can do at most, in bfloat16; None where its kind is not known."""

    @classmethod
    def of(cls, device: Any = None) -> "Platform":
        """The platform of a device.

        Args:
            device: None, this machine's default device; a `jax.Device`, also one that is only described
                (`topology.tpu_devices`); "cpu" | "gpu" (NVIDIA's, from Ampere on) | "tpu"; or a Platform, which is
                returned as it is.
        Raises:
            ValueError: for anything else.
        """
        if isinstance(device, cls):
            return device
        if isinstance(device, str):
            check_choice("platform", device, NAMES)
            return _MADE[device]
        device = jax.devices()[0] if device is None else device
        name = getattr(device, "platform", None)
        name = _OF_DEVICES.get(name, name)
        if name not in NAMES:
            raise ValueError(f"There is no platform of {device!r}; expected a JAX device of a kind that is known here, "
                             f"or one of {', '.join(NAMES)}.")
        made = dataclasses.replace(_MADE[name], peak=peak_flops(device.device_kind))
        if made.attention == "cudnn" and not _has_cudnn_attention(device):
            return dataclasses.replace(made, attention="plain")
        return made

    def dtype_of(self, dtype: Any) -> jnp.dtype:
        """The type of numbers of this name. Raises ValueError for one that the networks or the platform do not
        compute."""
        name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
        check_choice("dtype", name, DTYPES)
        if name == "float16" and not self.float16:
            raise ValueError("XLA has no float16 attention on the CPU; choose bfloat16 or float32 there.")
        return jnp.dtype(name)


# A GPU's matrix products are left to cuBLAS, because its kernels add bias and residual themselves and Triton's do not.
# No product is merged with its neighbours, because that copies their weights (benchmarks/RESULTS.md).
_GPU_OPTIONS = (("xla_gpu_enable_triton_gemm", False), ("xla_gpu_dot_merger_threshold_mb", 0))
_ACCELERATOR = Platform(norms_read_once=True, norm_barrier=True, tokens_last=False, float16=True, half_as_float32=False,
                        compiles_ahead=False)
_MADE = {
    "cpu": Platform(),
    "gpu": dataclasses.replace(_ACCELERATOR, name="gpu", shift_barrier=True, scan_layers=False, attention="cudnn",
                               compiler_options=_GPU_OPTIONS),
    "tpu": dataclasses.replace(_ACCELERATOR, name="tpu", attention="pallas"),
}


def peak_flops(device_kind: str) -> float | None:
    """Operations a second that a device can do at most, by JAX's name of its kind; None where that is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)


def _has_cudnn_attention(gpu: Any) -> bool:
    """False for GPUs that are too old, and for AMD's, whose compute capability is no number ("gfx…")."""
    capability = str(getattr(gpu, "compute_capability", "0"))
    return capability.replace(".", "").isdigit() and float(capability) >= _CUDNN_FROM
