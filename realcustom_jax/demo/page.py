"""The page. Its functions hold no state: a person's results are in `gr.State`, which belongs to their session."""

import dataclasses
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from html import escape
from pathlib import Path

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
    from starlette.middleware import Middleware
    from starlette.responses import PlainTextResponse

_LONGEST_QUEUE = 50
_SMALL = 256  # pixels a side: such pictures are shown pixel by pixel
_FORGOTTEN_AFTER = 3600  # seconds in which nobody looks at a result or an upload
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")  # the machine's own
_FONTS_OF_CODE = ("ui-monospace", "Liberation Mono", "monospace")
_EXAMPLES = [
    ("a dog on the beach", {"dog": "dog.png"}),
    ("a cat in space", {"cat": "cat.png"}),
    ("a teapot in the forest", {"teapot": "teapot.png"}),
    ("a dog and a car in the snow", {"dog": "dog.png", "car": "car.png"}),
]
_QUICK = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def _unread(component: gr.components.Component) -> gr.components.Component:
    """The component, whose value comes as the browser sent it: what is wrong with it is for `settings.problems` to say,
    beside its field. (A subclass of Gradio's would write a file of its own beside this one.)"""
    component.preprocess = lambda payload: payload
    return component


def _picture(value: str | None, **options) -> gr.Image:
    """An image whose value is its file, unread."""
    picture = gr.Image(value, type="filepath", format="png", **options)
    move = picture.async_move_resource_to_block_cache

    async def move_uploaded(path):
        """Gradio would download what a request names by its address."""
        if path is not None and "://" in str(path):
            raise InvalidPathError("Only uploaded files are read.")
        return await move(path)

    picture.async_move_resource_to_block_cache = move_uploaded
    picture.preprocess = lambda payload: None if payload is None else payload.path
    return picture


@dataclasses.dataclass(frozen=True)
class _Fields:
    """The components that hold the settings, and the lines below them that say what is wrong.

    Attributes:
        inputs: in the order of the arguments of `_settings`.
        problems: by the names of `settings.problems`; one line for all numbers.
        note: what there is to know about the prompt.
    """

    prompt: gr.Textbox
    references: list[gr.Image]
    words: list[gr.CheckboxGroup]
    numbers: list[gr.components.Component]
    problems: dict[str, gr.HTML]
    note: gr.HTML

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [self.prompt, *self.references, *self.words, *self.numbers]

    def lines(self, found: dict[str, str]) -> dict[gr.HTML, dict]:
        """The updates that show these problems and no others."""
        rest = [said for name, said in found.items() if name not in self.problems]
        return {line: _line(" ".join(rest) if name == "numbers" else found.get(name, ""), "problem")
                for name, line in self.problems.items()}


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The components that show what was made."""

    status: gr.HTML
    gallery: gr.Gallery
    more: gr.Column
    use: list[gr.Button]
    mask: gr.Image
    legend: gr.HTML
    step: gr.Slider
    command: gr.Textbox
    order: gr.State
    result: gr.State
    picture: gr.State

    @property
    def shown(self) -> list[gr.components.Component]:
        return [self.status, self.gallery, self.more, self.mask, self.legend, self.step, self.command, self.result,
                self.picture]


def build_page(studio: Studio, first: Settings) -> gr.Blocks:
    """The page of a model, whose fields hold `first` when it is opened."""
    gr.set_static_paths([EXAMPLES])  # served from where they are: copies would be deleted when they are old
    with gr.Blocks(title="RealCustom++", analytics_enabled=False, delete_cache=(600, _FORGOTTEN_AFTER)) as page:
        gr.HTML("<h1>RealCustom++</h1><p>Show one picture of your subject, click on its word in the prompt, and get "
                "new pictures of it.</p>", elem_id="headline")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=360):
                fields, start = _add_fields(studio.pipeline, first)
            with gr.Column(scale=5, min_width=360):
                outcome = _add_outcome(first, "pixels" if studio.pipeline.sizes.native <= _SMALL else "")
        _connect_fields(studio.pipeline, fields)
        _connect_outcome(studio, fields, outcome, start)
    return page


def serve(page: gr.Blocks, folder: Path, *, host: str, port: int, share: bool = False, wait: bool = True) -> str:
    """Serves the page until the process is interrupted, or, without `wait`, in the background. Returns its address.

    Args:
        folder: where Gradio keeps uploads and pictures (GRADIO_TEMP_DIR). Besides it only the bundled references are
            served.
    Raises:
        OSError: nobody can listen there.
    """
    page.queue(default_concurrency_limit=1, max_size=_LONGEST_QUEUE, api_open=False)
    theme = gr.themes.Soft(primary_hue="indigo", neutral_hue="slate", font=_FONTS, font_mono=_FONTS_OF_CODE)
    _, address, public = page.launch(
        server_name=host, server_port=port, share=share, prevent_thread_lock=True, quiet=True, ssr_mode=False,
        theme=theme, css_paths=ASSETS / "demo.css", footer_links=[], run_history=False, max_file_size=MOST_BYTES,
        allowed_paths=[str(folder)], enable_monitoring=False, mcp_server=False, pwa=False,
        inbrowser=False, app_kwargs={"middleware": [Middleware(_OwnFilesOnly)], "docs_url": None, "redoc_url": None})
    print(f"The page is at {public or address} (Ctrl-C ends it).", file=sys.stderr, flush=True)
    if wait:
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return address


class _OwnFilesOnly:
    """Refuses requests in which Gradio would fetch an address for the one who asks."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "").lower()
        if "/file=http" in path or "/proxy=" in path:
            await PlainTextResponse("Only the page's own files are served.", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _add_fields(pipeline: Pipeline, first: Settings) -> tuple[_Fields, gr.Button]:
    problems: dict[str, gr.HTML] = {}

    def add_line(name: str) -> None:
        problems[name] = gr.HTML(visible=False, elem_id=f"problem_{name}")

    prompt = gr.Textbox(first.prompt, label="Prompt", lines=2, max_lines=4, elem_id="prompt")
    add_line("prompt")
    told, kind = _notes(pipeline, first.prompt)
    note = gr.HTML(_said(told, kind), visible=bool(told), elem_id="note")
    references, words = [], []
    with gr.Row(equal_height=False):
        for i, (path, keys) in enumerate(zip(first.references, first.words, strict=True), 1):
            with gr.Column(min_width=160):
                references.append(_picture(
                    path, label=f"Reference {i}", height=210, sources=["upload", "clipboard"], buttons=[],
                    placeholder=f"Drop {('a picture', 'another one')[i - 1]} here\n- or -\nclick to choose one",
                    elem_id=f"reference_{i}"))
                add_line(f"reference_{i}")
                words.append(gr.CheckboxGroup(
                    _choices(first.prompt), value=list(keys), label=f"Reference {i} is the", elem_id=f"words_{i}",
                    elem_classes="words", visible=path is not None))
                add_line(f"words_{i}")
    start = gr.Button("Generate", variant="primary", size="lg", elem_id="generate")
    examples = _add_examples()
    with gr.Accordion("Settings", elem_id="more"):
        numbers = _add_numbers(pipeline, first)
        add_line("numbers")
    fields = _Fields(prompt, references, words, numbers, problems, note)
    for button, (text, files) in zip(examples, _EXAMPLES, strict=True):
        button.click(lambda text=text, files=files: _example(pipeline, fields, text, files), None,
                     [*fields.inputs[:5], note, *problems.values()], **_QUICK)
    return fields, start


def _add_examples() -> list[gr.Button]:
    gr.HTML("Or begin with one of these:", elem_classes="caption")
    buttons = []
    for i in range(0, len(_EXAMPLES), 2):
        with gr.Row(elem_classes="examples"):
            buttons += [gr.Button(text, size="sm", min_width=160, icon=str(EXAMPLES / next(iter(files.values()))))
                        for text, files in _EXAMPLES[i : i + 2]]
    return buttons


def _add_numbers(pipeline: Pipeline, first: Settings) -> list[gr.components.Component]:
    """In the order of the fields of `Settings`."""
    sizes, most_steps = pipeline.sizes, max(MOST_STEPS, 2 * pipeline.preset.steps)
    with gr.Row():
        count = gr.Slider(1, MOST_PICTURES, first.count, step=1, label="Pictures", elem_id="count", min_width=160)
        seed = gr.Number(first.seed, label="Seed", precision=0, elem_id="seed", min_width=160)
    with gr.Row():
        strength = gr.Slider(0, 1.5, first.strength, step=0.05, label="Strength", min_width=160, elem_id="strength",
                             info="Of the references; 0: the text alone.")
        scope = gr.Slider(0.05, 1, first.scope, step=0.01, label="Scope", min_width=160, elem_id="scope",
                          info="Share of the picture for a subject.")
    with gr.Row():
        guidance = gr.Slider(1, max(15, first.guidance), first.guidance, step=0.1, label="Guidance", min_width=160,
                             elem_id="guidance", info="How closely the prompt is followed.")
        steps = gr.Slider(1, most_steps, first.steps, step=1, label="Steps", min_width=160, elem_id="steps",
                          info="More take longer.")
    with gr.Row(visible=sizes.low < sizes.high):
        width, height = (gr.Slider(sizes.low, sizes.high, value, step=sizes.step, label=name, info="In pixels.",
                                   elem_id=name.lower(), min_width=160)
                         for name, value in (("Width", first.width), ("Height", first.height)))
    return [_unread(field) for field in (width, height, steps, guidance, scope, strength, seed, count)]


def _add_outcome(first: Settings, pictures: str) -> _Outcome:
    """`pictures` is the class of what shows pictures, for the style sheet."""
    status = gr.HTML(_said("Press Generate. The first picture takes longer, because the model is compiled."),
                     elem_id="status")
    gallery = gr.Gallery(label="Pictures", format="png", columns=2, height=400, object_fit="contain", preview=True,
                         buttons=["download", "fullscreen"], interactive=False, elem_id="gallery",
                         elem_classes=pictures)
    with gr.Column(visible=False) as more:
        with gr.Row():
            use = [gr.Button(f"Use as reference {i}", size="sm", elem_id=f"use_{i}") for i in (1, 2)]
        with gr.Accordion("Where the subject went: the mask of each step", elem_id="masks"):
            step = gr.Slider(1, first.steps, first.steps, step=1, label="Step", elem_id="step")
            mask = gr.Image(show_label=False, format="png", height=260, interactive=False, buttons=["download"],
                            elem_id="mask", elem_classes=pictures)
            colours = gr.HTML(elem_id="legend")
        command = gr.Textbox(label="The same as a command line", lines=3, max_lines=8, interactive=False,
                             buttons=["copy"], elem_id="command")
    order, result = (gr.State(None, time_to_live=_FORGOTTEN_AFTER) for _ in range(2))
    return _Outcome(status, gallery, more, use, mask, colours, step, command, order, result, gr.State(0))


def _connect_fields(pipeline: Pipeline, fields: _Fields) -> None:
    def typed(prompt, *keys):
        words = (gr.update(choices=_choices(prompt), value=kept_words(one, prompt)) for one in keys)
        return dict(zip(fields.words, words, strict=True)) | {fields.note: _line(*_notes(pipeline, prompt))}

    def uploaded(path):
        said = _wrong_with(path)
        return (None if said else gr.skip()), _line(said, "problem")

    fields.prompt.change(typed, [fields.prompt, *fields.words], [*fields.words, fields.note],
                         trigger_mode="always_last", preprocess=False, **_QUICK)
    for i, (reference, words) in enumerate(zip(fields.references, fields.words, strict=True), 1):
        words.input(lambda prompt, keys: (side_by_side(keys, words_to_click(prompt)), _line("")),
                    [fields.prompt, words], [words, fields.problems[f"words_{i}"]], preprocess=False, **_QUICK)
        reference.change(lambda path: gr.update(visible=path is not None), reference, words, **_QUICK)
        reference.upload(uploaded, reference, [reference, fields.problems[f"reference_{i}"]], **_QUICK)


def _connect_outcome(studio: Studio, fields: _Fields, outcome: _Outcome, start: gr.Button) -> None:
    def check(*values):
        settings = _settings(*values)
        found = problems(studio.pipeline, settings)
        if found:
            status = _said("Not started: red lines beside the fields say why.", "problem")
            return fields.lines(found) | {outcome.status: status}
        # Only settings that can be used wait in the queue. Each click is an order of its own, also for the same ones.
        return fields.lines({}) | {outcome.order: (time.monotonic_ns(), settings),
                                   outcome.status: _said("Waiting for the model …")}

    def generate(order) -> Iterator[dict]:
        yield from _generate(studio, order[1], outcome)

    # It waits for nobody. (A state's change is only told by events that pass through Gradio's queue.)
    start.click(check, fields.inputs, [*fields.problems.values(), outcome.order, outcome.status],
                concurrency_limit=None, show_progress="hidden", api_visibility="private")
    # This is the queue: one call at a time, each in its turn.
    outcome.order.change(generate, outcome.order, outcome.shown, concurrency_limit=1, api_visibility="private",
                         show_progress="minimal", show_progress_on=outcome.status)
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
        outcome.more: gr.update(visible=True),
    }


def _settings(prompt, reference_1, reference_2, words_1, words_2, *numbers) -> Settings:
    # A browser knows no difference between 25 and 25.0.
    whole = [int(x) if isinstance(x, float) and x.is_integer() else x for x in numbers]
    return Settings(prompt or "", (reference_1, reference_2), (tuple(words_1 or ()), tuple(words_2 or ())), *whole)


def _wrong_with(path: str | None) -> str:
    try:
        check_upload(path)
    except ValueError as error:
        return sentence(error)
    return ""


def _example(pipeline: Pipeline, fields: _Fields, prompt: str, files: dict[str, str]) -> dict:
    made = {fields.prompt: prompt, fields.note: _line(*_notes(pipeline, prompt))} | fields.lines({})
    for reference, words, noun in zip(fields.references, fields.words, [*files, None][:2], strict=True):
        made[reference] = noun and str(EXAMPLES / files[noun])
        made[words] = gr.update(choices=_choices(prompt), value=words_of_target(prompt, noun) if noun else [],
                                visible=noun is not None)
    return made


def _selected(event: gr.SelectData) -> int:
    return event.index


def _mask(result: Result | None, picture: int, step: int):
    return (mask_of_step(result, picture, step), legend(result, step)) if result else (gr.skip(), gr.skip())


def _choices(prompt: str) -> list[tuple[str, str]]:
    return [(word.label, word.key) for word in words_to_click(prompt)]


def _notes(pipeline: Pipeline, prompt: str) -> tuple[str, str]:
    return " ".join(notes(pipeline, prompt)), "note"


def _line(text: str, kind: str = "") -> dict:
    """The update of a line that is only there when it says something."""
    return gr.update(value=_said(text, kind), visible=bool(text))


def _said(text: str, kind: str = "") -> str:
    return f'<p class="said {kind}">{escape(text)}</p>'


def _progress(step: int, steps: int) -> str:
    what = f"Step {step} of {steps} …" if step else (
        "Reading the references … (A new size or number is compiled first, for about half a minute.)")
    return f'{_said(what)}<div class="bar"><div style="width: {100 * step / steps:.0f}%"></div></div>'
