"""Whether the parts of a model fit each other, told before anything is computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def check_fit(
    folder: Path, configs: Mapping[str, Any], texts, tokenizers, *, layers, pooled: str, sample_size: int,
) -> None:
    """Raises ValueError that lists what does not fit.

    Args:
        folder: of the model, for the message.
        configs: of the networks, by the names unet, vae, siglip, dino and projector.
        texts, tokenizers: the configurations of the text encoders, and their tokenizers.
        layers: the `references.VisionSettings` of the adapter.
        pooled: which pooled text the preset takes, "projected" or "unprojected".
        sample_size: the side of the latents that the UNet was made for.
    """
    unet, vae, siglip, dino, projector = (configs[name] for name in ("unet", "vae", "siglip", "dino", "projector"))
    width = unet.cross_attention_dim
    made = sum(text.hidden_size for text in texts)
    pooled_width = texts[-1].projection_dim if pooled == "projected" else texts[-1].hidden_size
    checks = {
        f"the UNet's sample_size is {sample_size!r}, expected a whole number above 0":
            type(sample_size) is int and sample_size > 0,
        f"the UNet takes {unet.in_channels} channels, the autoencoder makes {vae.latent_channels}":
            unet.in_channels == vae.latent_channels,
        f"the UNet takes text of width {width}, the text encoder makes {made}"
        + (" (a second one, text_encoder_2/, would be read too)" if len(texts) == 1 else ""): width == made,
        f"the UNet takes pooled text of width {unet.pooled_dim}, the text encoder makes {pooled_width}":
            unet.pooled_dim in (None, pooled_width),
        f"the UNet takes vision tokens of width {width}, the adapter makes {projector.out_dim}":
            width == projector.out_dim,
        f"the adapter takes {projector.vision_dim} channels, the image encoders make {siglip.embed_dim} and "
        f"{dino.embed_dim}": projector.vision_dim == siglip.embed_dim + dino.embed_dim,
        f"the adapter reads layers that the image encoders of {siglip.depth} and {dino.depth} layers do not have":
            max(layers.siglip_layers) < siglip.depth and max(layers.dino_layers) < dino.depth,
    }
    for tokenizer, text in zip(tokenizers, texts, strict=True):
        size, length = len(tokenizer), tokenizer.model_max_length
        checks |= {
            f"the tokenizers make {tokenizers[0].model_max_length} and {length} tokens of a prompt":
                length == tokenizers[0].model_max_length,
            f"the tokenizer has {size} tokens, the text encoder {text.vocab_size}": size <= text.vocab_size,
            f"the tokenizer makes {length} tokens of a prompt, the text encoder takes "
            f"{text.max_position_embeddings}": length <= text.max_position_embeddings,
        }
    if problems := [problem for problem, fits in checks.items() if not fits]:
        raise ValueError(f"The parts in {folder} do not fit each other: {'; '.join(problems)}.")
