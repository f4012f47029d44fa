"""The page. Its functions hold no state: a person's results are in `gr.State`, which belongs to their session."""

import dataclasses
import sys
import time
import traceback
from collections.abc import Iterator
from html import escape
from pathlib import Path

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from realcustom_jax.demo.pictures import legend, mask_of_step
from realcustom_jax.demo.settings import MOST_PICTURES, MOST_STEPS, Settings, notes, problems
from realcustom_jax.demo.studio import Studio
from realcustom_jax.demo.uploads import EXAMPLES, MOST_BYTES, check_upload
from realcustom_jax.demo.words import kept_words, side_by_side, words_of_target, words_to_click
from realcustom_jax.errors import needs_extra, sentence
from realcustom_jax.model_files.locate import ASSETS
from realcustom_jax.pipeline import Pipeline, Result

with needs_extra("demo", "The web page"):
    import gradio as gr
    from gradio.exceptions import InvalidPathError

_LONGEST_QUEUE = 50
_FORGOTTEN_AFTER = 3600  # seconds in which nobody looks at a result or an upload
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")  # none from elsewhere
_SHOWN = [
    ("a dog on the beach", {"dog": "dog.png"}),
    ("a cat in space", {"cat": "cat.png"}),
    ("a teapot in the forest", {"teapot": "teapot.png"}),
    ("a dog and a car in the snow", {"dog": "dog.png", "car": "car.png"}),
]
_QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class _Picture(gr.Image):
    """An image whose value is its file, unread: what is wrong with it is for `check_upload` to say."""

    is_template = True  # looks as its parent does

    def preprocess(self, payload):
        return None if payload is None else payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path):
        """Gradio would download what a request names by an address."""
        if url_or_file_path is not None and "://" in str(url_or_file_path):
            raise InvalidPathError("Only uploaded files are read.")
        return await super().async_move_resource_to_block_cache(url_or_file_path)


class _Words(gr.CheckboxGroup):
    """Words to click on, whose keys our own functions compare with the prompt: it may have changed meanwhile."""

    is_template = True

    def preprocess(self, payload):
        return payload or []


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The components that hold the settings, in the order of `Settings`' fields."""

    prompt: gr.Textbox
    references: list[_Picture]
    words: list[_Words]
    numbers: list[gr.components.Component]

    @property
    def all(self) -> list[gr.components.Component]:
        return [self.prompt, *self.references, *self.words, *self.numbers]

    @property
    def names(self) -> list[str]:
        """Of the same, as `problems` has them."""
        names = [field.name for field in dataclasses.fields(Settings)]
        return ["prompt", "reference_1", "reference_2", "words_1", "words_2", *names[3:]]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The components that show what was made."""

    status: gr.HTML
    gallery: gr.Gallery
    use: list[gr.Button]
    mask: gr.Image
    legend: gr.HTML
    step: gr.Slider
    command: gr.Code
    result: gr.State
    picture: gr.State

    @property
    def all(self) -> list[gr.components.Component]:
        return [self.status, self.gallery, *self.use, self.mask, self.legend, self.step, self.command, self.result,
                self.picture]


def build_page(studio: Studio, first: Settings) -> gr.Blocks:
    """The page of a model, whose fields hold `first` when it is opened."""
    with gr.Blocks(title="RealCustom++", analytics_enabled=False, delete_cache=(600, _FORGOTTEN_AFTER)) as page:
        gr.HTML("<h1>RealCustom++</h1><p>Show one picture of your subject, click on its word in the prompt, and get new "
                "pictures of it.</p>", elem_id="headline")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=360):
                fields, note = _add_fields(studio.pipeline, first)
                start = gr.Button("Generate", variant="primary", size="lg", elem_id="generate")
            with gr.Column(scale=5, min_width=360):
                outcome = _add_outcome(first)
        _connect_fields(studio.pipeline, fields, note)
        _connect_outcome(studio, fields, outcome, start)
    return page


def serve(page: gr.Blocks, folder: Path, *, host: str, port: int, share: bool = False, wait: bool = True) -> str:
    """Serves the page until the process is interrupted, or, without `wait`, in the background. Returns its address.

    Args:
        folder: where Gradio keeps uploads and pictures (GRADIO_TEMP_DIR). Besides it only the bundled references are
            served.
    Raises:
        OSError: the port is taken.
    """
    page.queue(default_concurrency_limit=1, max_size=_LONGEST_QUEUE, api_open=False)
    theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=("ui-monospace", "monospace"))
    _, address, public = page.launch(
        server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, ssr_mode=False,
        theme=theme, css_paths=ASSETS / "demo.css", footer_links=[], run_history=False, max_file_size=MOST_BYTES,
        allowed_paths=[str(folder), str(EXAMPLES)], enable_monitoring=False, mcp_server=False, pwa=False,
        inbrowser=False, app_kwargs={"middleware": [Middleware(_OwnFilesOnly)], "docs_url": None, "redoc_url": None})
    print(f"The page is at {public or address} (Ctrl-C ends it).", file=sys.stderr, flush=True)
    if wait:
        page.block_thread()
    return address


class _OwnFilesOnly:
    """Refuses requests in which Gradio would fetch an address for the one who asks."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "")
        if any(f"{kind}=http" in path for kind in ("file", "proxy")) or "/proxy=" in path:
            await PlainTextResponse("Only the page's own files are served.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _add_fields(pipeline: Pipeline, first: Settings) -> tuple[_Fields, gr.HTML]:
    prompt = gr.Textbox(first.prompt, label="Prompt", lines=2, max_lines=4, elem_id="prompt")
    note = gr.HTML(_note(pipeline, first.prompt), elem_id="note")
    references, words = [], []
    with gr.Row(equal_height=False):
        for i, (path, keys) in enumerate(zip(first.references, first.words, strict=True), 1):
            with gr.Column(min_width=160):
                references.append(_Picture(
                    path, label=f"Reference {i}" + " (optional)" * (i > 1), type="filepath", format="png", height=210,
                    sources=["upload", "clipboard"], buttons=[], elem_id=f"reference_{i}",
                    placeholder="Drop a picture here\n- or -\nclick to choose one", elem_classes="pixels"))
                words.append(_Words(
                    _choices(first.prompt), value=keys, label=f"Reference {i} is the", elem_id=f"words_{i}",
                    elem_classes="words", visible=path is not None))
    gr.HTML("Examples", elem_classes="caption")
    with gr.Row(elem_id="examples"):
        examples = [gr.Button(text, size="sm", min_width=120, icon=str(EXAMPLES / next(iter(files.values()))))
                    for text, files in _SHOWN]
    with gr.Row():
        count = gr.Slider(1, MOST_PICTURES, first.count, step=1, label="Pictures", elem_id="count", min_width=120)
        seed = gr.Number(first.seed, label="Seed", precision=0, minimum=0, maximum=2**32 - 1, elem_id="seed",
                         min_width=120)
    with gr.Accordion("More settings", open=False, elem_id="more"):
        sizes = pipeline.sizes
        with gr.Row(visible=sizes.low < sizes.high):
            width, height = (gr.Slider(sizes.low, sizes.high, value, step=sizes.step, label=f"{name}, pixels",
                                       elem_id=name.lower(), min_width=120)
                             for name, value in (("Width", first.width), ("Height", first.height)))
        with gr.Row():
            steps = gr.Slider(1, max(MOST_STEPS, 2 * first.steps), first.steps, step=1, label="Steps", min_width=120,
                              elem_id="steps", info="A new number compiles for a while.")
            guidance = gr.Slider(1, 15, first.guidance, step=0.1, label="Guidance", min_width=120, elem_id="guidance",
                                 info="How closely the prompt is followed.")
        with gr.Row():
            scope = gr.Slider(0.05, 1, first.scope, step=0.01, label="Scope", min_width=120, elem_id="scope",
                              info="Share of the picture that a subject may take.")
            strength = gr.Slider(0, 1.5, first.strength, step=0.05, label="Vision strength", min_width=120,
                                 elem_id="strength", info="0: the text alone. 1: as trained.")
    fields = _Fields(prompt, references, words, [width, height, steps, guidance, scope, strength, seed, count])
    for button, (text, files) in zip(examples, _SHOWN, strict=True):
        button.click(lambda text=text, files=files: _example(pipeline, text, files), None,
                     [prompt, note, *references, *words], **_QUICK)
    return fields, note


def _add_outcome(first: Settings) -> _Outcome:
    status = gr.HTML(_said("Press Generate. The first picture takes longer, because the model is compiled."),
                     elem_id="status")
    gallery = gr.Gallery(label="Pictures", format="png", columns=2, height=420, object_fit="contain", preview=True,
                         buttons=["download", "fullscreen"], interactive=False, elem_id="gallery", elem_classes="pixels")
    with gr.Row():
        use = [gr.Button(f"Use as reference {i}", size="sm", interactive=False, elem_id=f"use_{i}") for i in (1, 2)]
    with gr.Accordion("Where the subject went: the mask of each step", elem_id="masks"):
        step = gr.Slider(1, first.steps, first.steps, step=1, label="Step", interactive=True, elem_id="step")
        mask = gr.Image(label="Mask", show_label=False, format="png", height=260, interactive=False,
                        buttons=["download"], elem_id="mask", elem_classes="pixels")
        colours = gr.HTML(elem_id="legend")
    command = gr.Code(label="The same as a command line", language="shell", interactive=False, wrap_lines=True,
                      lines=2, elem_id="command")
    return _Outcome(status, gallery, use, mask, colours, step, command, gr.State(None, time_to_live=_FORGOTTEN_AFTER),
                    gr.State(0))


def _connect_fields(pipeline: Pipeline, fields: _Fields, note: gr.HTML) -> None:
    fields.prompt.input(
        lambda prompt, *keys: (*(gr.update(choices=_choices(prompt), value=kept_words(one, prompt)) for one in keys),
                               _note(pipeline, prompt)),
        [fields.prompt, *fields.words], [*fields.words, note], trigger_mode="always_last", **_QUICK)
    for reference, words in zip(fields.references, fields.words, strict=True):
        words.input(lambda prompt, keys: side_by_side(keys, words_to_click(prompt)), [fields.prompt, words], words,
                    **_QUICK)
        reference.change(lambda path: gr.update(visible=path is not None), reference, words, **_QUICK)
        reference.upload(lambda path: None, reference, None, validator=_validate_upload, concurrency_limit=4,
                         show_progress="hidden", api_visibility="private")


def _connect_outcome(studio: Studio, fields: _Fields, outcome: _Outcome, start: gr.Button) -> None:
    def validate(*values):
        found = problems(studio.pipeline, _settings(*values))
        return [gr.validate(name not in found, found.get(name, "")) for name in fields.names]

    def generate(*values) -> Iterator[dict]:
        yield from _generate(studio, _settings(*values), outcome)

    # One at a time, each in their turn: this is the queue.
    start.click(generate, fields.all, outcome.all, validator=validate, concurrency_limit=1, api_visibility="private",
                show_progress_on=outcome.status, trigger_mode="once", scroll_to_output=False)
    outcome.gallery.select(_selected, None, outcome.picture, **_QUICK).then(
        _mask, [outcome.result, outcome.picture, outcome.step], [outcome.mask, outcome.legend], **_QUICK)
    outcome.step.change(_mask, [outcome.result, outcome.picture, outcome.step], [outcome.mask, outcome.legend],
                        trigger_mode="always_last", **_QUICK)
    for button, reference in zip(outcome.use, fields.references, strict=True):
        button.click(lambda result, picture: result.images[picture] if result else gr.skip(),
                     [outcome.result, outcome.picture], reference, **_QUICK)


def _generate(studio: Studio, settings: Settings, outcome: _Outcome) -> Iterator[dict]:
    begun = time.monotonic()
    yield {outcome.status: _progress(0, settings.steps)}
    try:
        for made in studio.make(settings):
            if isinstance(made, Result):
                yield _finished(studio, settings, made, time.monotonic() - begun, outcome)
            else:
                yield {outcome.status: _progress(made, settings.steps)}
    except (ValueError, OSError) as error:
        yield {outcome.status: _said(sentence(error), "problem")}
    except Exception:
        traceback.print_exc()
        yield {outcome.status: _said("This is a bug in realcustom_jax, not a mistake of yours; the server's log says "
                                     "where.", "problem")}


def _finished(studio: Studio, settings: Settings, result: Result, seconds: float, outcome: _Outcome) -> dict:
    count, steps = len(result.images), len(result.masks)
    captions = [f"seed {result.seed}, picture {i}" for i in range(1, count + 1)]
    return {
        outcome.status: _said(f"{count} picture{'s' * (count > 1)} in {seconds:.1f} s."),
        outcome.gallery: gr.update(value=list(zip(result.images, captions, strict=True)), selected_index=0),
        outcome.mask: mask_of_step(result, 0, steps),
        outcome.legend: legend(result, steps),
        outcome.step: gr.update(maximum=steps, value=steps),
        outcome.command: studio.command(settings),
        outcome.result: result,
        outcome.picture: 0,
    } | {button: gr.update(interactive=True) for button in outcome.use}


def _settings(prompt, reference_1, reference_2, words_1, words_2, *numbers) -> Settings:
    # A browser knows no difference between 25 and 25.0.
    whole = [int(x) if isinstance(x, float) and x.is_integer() else x for x in numbers]
    return Settings(prompt or "", (reference_1, reference_2), (words_1, words_2), *whole)


def _validate_upload(path):
    try:
        check_upload(path)
    except ValueError as error:
        return gr.validate(False, sentence(error))
    return gr.validate(True, "")


def _example(pipeline: Pipeline, prompt: str, files: dict[str, str]) -> list:
    words = [*files, None][:2]
    return [
        prompt, _note(pipeline, prompt),
        *(word and str(EXAMPLES / files[word]) for word in words),
        *(gr.update(choices=_choices(prompt), value=words_of_target(prompt, word) if word else [],
                    visible=word is not None) for word in words)]


def _selected(event: gr.SelectData) -> int:
    return event.index


def _mask(result: Result | None, picture: int, step: int):
    return (mask_of_step(result, picture, step), legend(result, step)) if result else (gr.skip(), gr.skip())


def _choices(prompt: str) -> list[tuple[str, str]]:
    return [(word.label, word.key) for word in words_to_click(prompt)]


def _note(pipeline: Pipeline, prompt: str) -> str:
    return "".join(_said(line, "note") for line in notes(pipeline, prompt))


def _said(line: str, kind: str = "") -> str:
    return f'<p class="said {kind}">{escape(line)}</p>'


def _progress(step: int, steps: int) -> str:
    what = f"Step {step} of {steps}" if step else "Reading the references; a new shape is compiled first, for about half a minute"
    return f'<p class="said">{what} …</p><progress value="{step}" max="{steps}"></progress>'
