"""What a person has set on the page, and what is wrong with it, field by field."""

import argparse
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Real

from realcustom_jax.commands.sample_options import PROMPT
from realcustom_jax.conditioning.prompts import encode_prompt
from realcustom_jax.conditioning.targets import target_phrase
from realcustom_jax.demo.uploads import EXAMPLES, check_upload
from realcustom_jax.demo.words import LONGEST_PROMPT, target_of, words_of_target
from realcustom_jax.errors import quoted, sentence
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.sampling.options import check_options

MOST_PICTURES, MOST_STEPS = 4, 60
"""Of one call: others are waiting. A model whose preset has more steps may take twice as many."""

_NUMBERS = ("width", "height", "steps", "guidance", "scope", "strength", "seed", "count")

# Python's warnings are the whole process's.
_RECORDING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Settings:
    """The page's fields.

    Attributes:
        prompt: the text.
        references: paths of one or two pictures; None where there is none.
        words: for each reference the keys of the clicked words, see module `words`.
        width, height: of the pictures, in pixels.
        steps, guidance, scope, strength, seed, count: as `steps`, `guidance_scale`, `scope`, `vision_scale`, `seed` and
            `num_images` of `Pipeline.__call__`.
    """

    prompt: str
    references: tuple[str | None, ...]
    words: tuple[tuple[str, ...], ...]
    width: int
    height: int
    steps: int
    guidance: float
    scope: float
    strength: float
    seed: int
    count: int

    def subjects(self, match: str = "word") -> tuple[list[str], list[str]]:
        """(references, targets) as the pipeline takes them. Raises ValueError as `words.target_of`."""
        pairs = [(path, target_of(self.prompt, keys, match=match))
                 for path, keys in zip(self.references, self.words, strict=True) if path is not None]
        return [path for path, _ in pairs], [target for _, target in pairs]

    def arguments(self) -> dict:
        """The others of `Pipeline.__call__`."""
        return {"prompt": self.prompt, "width": self.width, "height": self.height, "steps": self.steps,
                "guidance_scale": self.guidance, "scope": self.scope, "vision_scale": self.strength, "seed": self.seed,
                "num_images": self.count}


def first_settings(pipeline: Pipeline, options: argparse.Namespace) -> Settings:
    """What the fields hold when the page is opened: the bundled dog, and what the options say or else the preset.

    Raises:
        ValueError: an option that no field can hold.
    """
    preset, prompt = pipeline.preset, options.prompt or PROMPT
    width, height = pipeline.sizes.check(options.width, options.height)
    first = Settings(
        prompt, (str(EXAMPLES / "dog.png"), None), (tuple(words_of_target(prompt, "dog")), ()), width, height,
        steps=options.steps or preset.steps, scope=preset.scope if options.scope is None else options.scope,
        guidance=preset.guidance_scale if options.guidance is None else options.guidance,
        strength=options.vision_scale, seed=options.seed, count=options.num_images)
    # A prompt without a dog is only short of a click.
    if wrong := [said for field, said in problems(pipeline, first).items() if not field.startswith("words")]:
        raise ValueError(" ".join(wrong))
    return first


def problems(pipeline: Pipeline, settings: Settings) -> dict[str, str]:
    """A sentence for each field that keeps the pictures from being made, by the field's name in `Settings`; those of
    references and words have a number, from 1: "reference_1", "words_2".

    Nothing runs on the device for it, so that nobody waits in the queue for a mistake.
    """
    found = dict(_of_references(settings.references))
    if said := _said(lambda: _check_prompt(pipeline, settings.prompt)):
        return found | {"prompt": said}
    found |= _of_targets(pipeline, settings)
    most = max(MOST_STEPS, 2 * pipeline.preset.steps)
    numbers = {field: getattr(settings, field) for field in _NUMBERS}
    strange = {field: f"{field} is {'empty' if value is None else quoted(value)}; give a number."
               for field, value in numbers.items() if not isinstance(value, Real) or isinstance(value, bool)}
    checks = {
        "width": lambda: pipeline.sizes.check(settings.width, None),
        "height": lambda: pipeline.sizes.check(None, settings.height),
        "steps": lambda: _check_most("steps", settings.steps, most) or check_options(steps=settings.steps),
        "guidance": lambda: check_options(guidance_scale=settings.guidance),
        "scope": lambda: check_options(scope=settings.scope),
        "strength": lambda: check_options(vision_scale=settings.strength),
        "seed": lambda: check_options(seed=settings.seed),
        "count": lambda: _check_most("the number of pictures", settings.count, MOST_PICTURES) or check_options(
            num_images=settings.count),
    }
    return found | strange | {field: said for field, check in checks.items()
                          if field not in strange and (said := _said(check))}


def notes(pipeline: Pipeline, prompt: str) -> list[str]:
    """What the pipeline would warn of in this prompt: words that it does not know, an end that it does not read."""
    if _said(lambda: _check_prompt(pipeline, prompt)):
        return []
    with _RECORDING, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encode_prompt(pipeline.tokenizer, prompt)
        if pipeline.vocabulary:
            pipeline.vocabulary.check(prompt, [])
    return [sentence(warning.message) for warning in said]


def _said(check: Callable[[], object]) -> str:
    """What is wrong; "" where nothing is."""
    try:
        check()
    except (ValueError, OSError) as error:
        return sentence(error)
    return ""


def _check_prompt(pipeline: Pipeline, prompt: str) -> None:
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(f"The prompt has {len(prompt)} characters; at most {LONGEST_PROMPT} are taken.")
    with _RECORDING, warnings.catch_warnings(action="ignore"):
        encode_prompt(pipeline.tokenizer, prompt)


def _check_most(what: str, number: float, most: int) -> None:
    if number > most:
        raise ValueError(f"{what} is {number}; at most {most} here, because others wait for the same model.")


def _of_references(references: Sequence[str | None]) -> Iterator[tuple[str, str]]:
    for i, path in enumerate(references, 1):
        # One of the two is enough. Which of them is no matter.
        if (path is not None or (i == 1 and not any(references))) and (said := _said(lambda path=path: check_upload(
                path))):
            yield f"reference_{i}", said


def _of_targets(pipeline: Pipeline, settings: Settings) -> dict[str, str]:
    """Problems of each target alone, or else of all of them together, which the last one is told of."""
    given = [i for i, path in enumerate(settings.references, 1) if path is not None]
    found = {f"words_{i}": said for i in given if (said := _said(
        lambda i=i: _check_target(pipeline, settings.prompt, settings.words[i - 1])))}
    if not found and len(given) > 1:
        targets = settings.subjects(pipeline.preset.match)[1]
        overlapping = pipeline.preset.overlap == "sum"
        if said := _said(lambda: pipeline.mark_targets(settings.prompt, targets, overlapping=overlapping)):
            found[f"words_{given[-1]}"] = said
    return found


def _check_target(pipeline: Pipeline, prompt: str, keys: Sequence[str]) -> None:
    target = target_of(prompt, keys, match=pipeline.preset.match)
    if not target:
        raise ValueError("Click on the word of the prompt that this reference stands for.")
    pipeline.mark_targets(prompt, [target])
    if pipeline.vocabulary:
        with _RECORDING, warnings.catch_warnings(action="ignore"):
            pipeline.vocabulary.check(prompt, [target_phrase(prompt, target, match=pipeline.preset.match)])
