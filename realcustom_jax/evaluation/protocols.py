"""How pictures are scored, by whose script: every difference between the scripts is a field here.

Published figures of one model disagree because the scripts that made them do. A `Protocol` is one script: its networks,
how it reads and prepares a picture, what it compares, and how it makes one number of many.
"""

import dataclasses

from realcustom_jax.errors import check_choice

SLOTS = {
    "clip": "transformers' folder of the protocol's CLIP (config, tokenizer, weights)",
    "clip_l14": "the same of ViT-L/14, where the protocol has a second CLIP",
    "clip_l14_336": "the same of ViT-L/14-336",
    "dino": "weights of DINO by timm's, the hub's or transformers' names: a file or a folder",
    "dinov2": "likewise of DINOv2",
    "image_reward": "weights of ImageReward, for its own package",
}
"""What files a protocol may want. `clip` is a protocol's main CLIP, whichever that is."""


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that a protocol scores by.

    Attributes:
        slot: of `SLOTS`, under which its files are given.
        published: which one the script loads: a name on transformers' hub ("openai/…"), of torch.hub ("dino_vits16";
            also where the script takes the same weights from transformers' hub) or of its own package.
        preparation: "transformers" (the processor in the network's folder, or as its published one) or "torchvision"
            (the script's own Resize, CenterCrop and Normalize).
        positions: as whose code positions of another grid are resampled, see `load_vision_encoder`; of DINO alone.
    """

    slot: str
    published: str
    preparation: str = "torchvision"
    positions: str = "dino"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number of a picture.

    Attributes:
        name: in reports. network: the slot of its network.
        compared: with what the picture is: "prompt", "references", or "reward" (the network scores picture and prompt).
        scale: by which the cosine is multiplied.
        floor: the least that one picture scores, before `scale`; None: whatever the cosine is.
        part: of the picture that is compared: "whole", "mask" (the subject, cut out in both pictures) or "boxes" (the
            best of the detections of the subject).
        normalised: of a reward, whether it is mapped to 0 … 1.
    """

    name: str
    network: str
    compared: str
    scale: float = 1.0
    floor: float | None = None
    part: str = "whole"
    normalised: bool = False


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One script's way to score pictures.

    A picture's score of a metric that compares with references is the mean over the references of a subject, then the
    mean over subjects; a benchmark's is the mean over pictures.

    Attributes:
        name: of `PROTOCOLS`. title: for reports.
        source: repository, file and lines, or paper, where this is said.
        networks, metrics: what is scored, in the reports' order.
        turned: whether a picture is turned as its EXIF says.
        opacity: "dropped" (colours of clear pixels show) or "white" (they are laid on white).
        converted: to RGB, "first" or "last", after resizing and cropping.
        paper: the colour behind what is cut out or padded.
        detections: how many of a subject's boxes are looked at, in their order.
        notes: what the source leaves open, and what was taken; for reports.
    """

    name: str
    title: str
    source: str
    networks: tuple[Network, ...]
    metrics: tuple[Metric, ...]
    turned: bool = False
    opacity: str = "dropped"
    converted: str = "first"
    paper: tuple[int, int, int] = (255, 255, 255)
    detections: int = 3
    notes: tuple[str, ...] = ()

    def network(self, slot: str) -> Network:
        """The network of a slot, which the protocol has."""
        return next(network for network in self.networks if network.slot == slot)


_B32, _L14 = "openai/clip-vit-base-patch32", "openai/clip-vit-large-patch14"
_CLIP_T, _CLIP_I = Metric("clip_t", "clip", "prompt"), Metric("clip_i", "clip", "references")
_DINO_I, _DINOV2_I = Metric("dino_i", "dino", "references"), Metric("dinov2_i", "dinov2", "references")
_REWARD = Network("image_reward", "ImageReward-v1.0")
_LONG = "A prompt of more than 77 tokens is cut, its end kept; the script stops at one."


def _times(scale: float, *metrics: Metric) -> tuple[Metric, ...]:
    return tuple(dataclasses.replace(metric, scale=scale) for metric in metrics)


_ALL = (
    Protocol(
        name="dreambench_plus", title="DreamBench++",
        source="yuangpeng/dreambench_plus: dreambench_plus/metrics/clip_score.py:17-94, metrics/dino_score.py:18-110, "
               "utils/image_utils.py:34-83",
        networks=(Network("clip", _B32, "transformers"), Network("dino", "dino_vits8"),
                  Network("dinov2", "dinov2_vits14", "transformers", "transformers")),
        metrics=_times(100.0, _CLIP_T, _CLIP_I, _DINO_I, _DINOV2_I),
        turned=True, opacity="white",
        notes=("The script compares a picture with one reference; the mean over several is taken.", _LONG)),
    Protocol(
        name="kosmos_g", title="KOSMOS-G",
        source="microsoft/unilm: kosmos-g/eval/clip_score.py (_DEFAULT_MODEL, _clip_score_update and compute of both "
               "classes), kosmos-g/eval/dino_score.py (_DEFAULT_MODEL, _get_model_and_processor, _dino_score_update)",
        networks=(Network("clip", _L14, "transformers"), Network("dino", "dino_vits16")),
        metrics=(_CLIP_T, _CLIP_I, _DINO_I),
        notes=("The script counts in hundredths; its paper prints cosines, as here. It shows a mean below 0, which no "
               "trained CLIP has, as 0.", _LONG)),
    Protocol(
        name="mip_adapter", title="MIP-Adapter",
        source="hqhQAQ/MIP-Adapter: evaluation/evaluate_func.py:43-91,127-149,173-208,218-255",
        networks=(Network("clip", _B32), Network("dino", "dino_vits16")),
        metrics=(dataclasses.replace(_CLIP_T, scale=2.5, floor=0.0), _CLIP_I, _DINO_I), converted="last",
        notes=("The script gives each pair of subjects the same weight, here each picture: the same where all have "
               "equally many.",)),
    Protocol(
        name="uno", title="UNO",
        source="bytedance/UNO: eval/evaluate_clip_dino_score_single_subject.py (CLIPImageDataset, DINOImageDataset, "
               "get_clip_score, clipeval_image, dinoeval_image), and its brother for two subjects",
        networks=(Network("clip", _B32), Network("dino", "dino_vits16")),
        metrics=(dataclasses.replace(_CLIP_T, floor=0.0), _CLIP_I, _DINO_I), converted="last",
        notes=("The script gives each subject the same weight, here each picture: the same where all have equally "
               "many.",)),
    Protocol(
        name="dsh_bench", title="DSH-Bench",
        source="sunriverhzy/DSH-Bench: code/metric_calculation/clip_{i,t}_{b,l}.py, dino_i_v2.py, image_reward.py, "
               "metrics_ip/clip_score.py:100-123,271-295, metrics_ip/dino_score.py:31,79-85,119-122, "
               "metrics_ip/dinov2_score.py:78-86,119-122",
        networks=(Network("clip", _B32, "transformers"), Network("clip_l14", _L14, "transformers"),
                  Network("clip_l14_336", f"{_L14}-336", "transformers"), Network("dino", "dino_vits8"),
                  Network("dinov2", "dinov2_vitl14", positions="dinov2"), _REWARD),
        metrics=(_CLIP_T, Metric("clip_l_t", "clip_l14", "prompt"), _CLIP_I,
                 Metric("clip_l_i", "clip_l14_336", "references"), _DINO_I, _DINOV2_I,
                 Metric("image_reward", "image_reward", "reward"),
                 Metric("image_reward_normalised", "image_reward", "reward", normalised=True)),
        notes=("The script counts in hundredths; its paper prints cosines, as here.",
               "How a reward is normalised is said nowhere: image_reward_normalised is the normal distribution's share "
               "below it, which is a guess.", _LONG)),
    Protocol(
        name="xverse", title="XVerse",
        source="bytedance/XVerse: eval/tools/dino.py:33-66, eval/tools/idip_sam-dino_score.py:99-117, "
               "eval/tools/florence_sam.py:27-44, src/utils/data_utils.py:278-284",
        networks=(Network("dino", "dino_vits16", positions="transformers"),),
        metrics=(dataclasses.replace(_DINO_I, scale=100.0, part="boxes"),),
        notes=("The boxes are the user's own; the script finds them with Florence-2 and SAM 2. Where a mask is given, "
               "what lies outside of it is white, as there.",)),
    Protocol(
        name="realcustom", title="RealCustom",
        source="arXiv 2403.00483, section 4.1",
        networks=(Network("clip", _B32, "transformers"), Network("clip_l14", _L14, "transformers"),
                  Network("dino", "dino_vits16"), _REWARD),
        metrics=(_CLIP_T, Metric("clip_l_t", "clip_l14", "prompt"), dataclasses.replace(_CLIP_I, part="mask"),
                 Metric("clip_l_i", "clip_l14", "references", part="mask"), dataclasses.replace(_DINO_I, part="mask"),
                 Metric("image_reward", "image_reward", "reward")),
        notes=("The paper does not say which DINO: dino_vits16 is taken.",
               "It does not say what stands behind a subject that is cut out: white is taken, and the picture keeps "
               "its size.")),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def find_protocol(name: str) -> Protocol:
    """The protocol of a name. Raises ValueError with the nearest one if there is none."""
    check_choice("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
