"""What a UNet predicts, the noise or v, as its file says: by marker tensors, or in a safetensors file's metadata.

In the order of trust: what the caller says, the marker tensors, the metadata, the scheduler's configuration, and else
Stable Diffusion's own, the noise. A UNet that is taken for the other kind paints noise, so what is nearest to its
weights is believed first.
"""

from collections.abc import Collection, Mapping
from typing import Any

from realcustom_jax.errors import check_choice

PREDICTIONS = ("epsilon", "v_prediction")
_KEY = "modelspec.prediction_type"  # Stability's sai_model_spec, which kohya's and ComfyUI's savers write
_SAID = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction",
         "v-prediction": "v_prediction", "v_pred": "v_prediction"}


def by_markers(names: Collection[str]) -> dict[str, Any]:
    """What the empty tensors `v_pred` and `ztsnr` say, in the keys of diffusers' `scheduler_config.json`: v prediction,
    and a schedule that ends in pure noise; empty where there are none."""
    return ({"prediction_type": "v_prediction"} if "v_pred" in names else {}) | (
        {"rescale_betas_zero_snr": True} if "ztsnr" in names else {})


def said_of(names: Collection[str], metadata: Mapping[str, str], given: str | None = None) -> dict[str, Any]:
    """What the caller (`given`), the markers and the metadata of the UNet's file say, in the keys of diffusers'
    `scheduler_config.json`. Raises ValueError for a value that is unknown."""
    said = by_markers(names)
    if given is not None:
        check_choice("prediction", given, PREDICTIONS)
        return said | {"prediction_type": given}
    value = str(metadata.get(_KEY, "")).strip()
    if "prediction_type" in said or not value:
        return said
    if value.lower() not in _SAID:
        raise ValueError(f"{_KEY} is {value!r} in the file's metadata; known are epsilon and v: if the model predicts "
                         "one of these, say so with prediction (--prediction epsilon or v_prediction).")
    return said | {"prediction_type": _SAID[value.lower()]}
