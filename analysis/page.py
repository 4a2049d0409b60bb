"""The page of app.py: predictions of images, and the most confident mistakes."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from analysis.drawings import examples
from analysis.evaluation import confident_mistakes
from analysis.explanation import layer_cam
from analysis.figures import explanation
from analysis.html import percent
from analysis.inference import (
    predict_proba,
    predict_views,
    read_images,
    top_predictions,
)
from common.errors import InputError
from common.text import one_line
from images.files import FORMATS
from images.image_folder import read_photo, to_views
from lightning_module import LitCustomResNet

TOP = 5  # classes that are named of an image
NAMED = 50  # classes that are listed
SHOWN = 24  # mistakes in the gallery
EVERY_CLASS = -1  # in the place of a label
KEPT = (60, 600)  # seconds: how often to look for uploads, and how old they may become
UNKNOWN = (
    "Probably none of the classes: the network is not sure of this image, or it is "
    "unlike those that the network was trained with."
)
NO_IMAGES = (
    "Start with `python app.py --run runs/NAME`, or with `--data_dir FOLDER`, to "
    "browse the test images that the network puts into a wrong class."
)
PHOTO = 512  # pixels of the longer side, where an image file is shown
# A click while the one before is being answered counts, too.
CLICKS: dict[str, Any] = {"concurrency_id": "network", "trigger_mode": "multiple"}
# Whoever has scrolled down the gallery shall see the answer.
SCROLL = "() => document.getElementById('{}').scrollIntoView({{block: 'nearest'}})"
# Pixels stay sharp, labels beside what they name, and captions whole on a phone too,
# where the answer is above the gallery.
CSS = """
:is(.picture, .photo) .image-container {padding-top: 2em}
:is(#look, #answer) .text, .caption-label {overflow-wrap: anywhere; min-width: 0}
.photo .image-container, .photo .image-frame img {max-height: 16em}
:is(.mistakes, .examples) .grid-wrap {max-height: none; padding-top: 2.5em}
.examples .grid-wrap {min-height: 0}
.mistakes .grid-container {grid-template-columns: repeat(auto-fill, minmax(8em, 1fr))}
.examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(6em, 1fr))}
.mistakes img {image-rendering: pixelated}
:is(.mistakes, .examples) .thumbnail-item {aspect-ratio: auto; height: 100%}
:is(.mistakes, .examples) img {aspect-ratio: 1; height: auto}
:is(.mistakes, .examples) .caption-label {
  position: static; max-width: none; white-space: normal; border: 0; text-align: center;
  opacity: 1 !important
}
@media (max-width: 48em) {#answer {order: -1}}
"""


class Look(NamedTuple):
    """What a network says of an image.

    Attributes:
        probabilities: Those of the most probable classes.
        known: Whether the image is probably of any of the classes.
        picture: The image as the network sees it, beside where it looks.
        photo: The image as people see it, where that is another.
        true: The true class, where it is known.
    """

    probabilities: dict[str, float]
    known: bool
    picture: Image.Image
    photo: Image.Image | None = None
    true: str | None = None

    def verdict(self) -> str:
        """The true class and the most probable one, in Markdown; empty if unknown."""
        if self.true is None:
            return ""
        predicted = next(iter(self.probabilities))
        return f"It is **{escape(self.true)}**, taken for **{escape(predicted)}**."


def look(
    model: LitCustomResNet, image: Tensor, probabilities: Tensor, known: Tensor
) -> Look:
    """What a network says of an image.

    Args:
        model: As `load_model` gives it, on any device.
        image: uint8 (1, 3, 32, 32).
        probabilities: What it gives the classes, float32 (1, C).
        known: Whether the image is probably of any of the classes, bool (1,).
    """
    [guesses] = top_predictions(probabilities, model.hparams["classes"], TOP)
    [heat] = layer_cam(model, image, probabilities.argmax(dim=1))
    return Look(
        {guess["label"]: guess["probability"] for guess in guesses},
        bool(known),
        explanation(image[0], heat),
    )


def look_at_photo(model: LitCustomResNet, views: Tensor) -> Look:
    """What a network says of an image that is looked at in several ways.

    Args:
        model: As `load_model` gives it, on any device.
        views: uint8 (1, V, 3, 32, 32), of which the first is shown.
    """
    return look(model, views[:, 0], *predict_views(model, views))


def look_at_file(model: LitCustomResNet, path: str) -> Look:
    """What a network says of an image file.

    Raises:
        InputError: It cannot be read.
    """
    views, errors = read_images([path])
    if errors:
        name = one_line(Path(path).name)  # nobody knows the folder of uploads
        raise InputError(errors[path].replace(one_line(path), name))
    return look_at_photo(model, views)._replace(photo=read_photo(path, PHOTO))


class Mistakes:
    """The images that a network puts into a wrong class.

    Args:
        model: As `load_model` gives it, on any device.
        images: uint8 (N, 32, 32, 3).
        labels: int64 (N,), the true classes.
    """

    def __init__(self, model: LitCustomResNet, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.classes: list[str] = list(model.hparams["classes"])
        self.probabilities = predict_proba(model, images.permute(0, 3, 1, 2))

    def choices(self) -> list[tuple[str, int]]:
        """Every class and each class, with its number of mistakes and its label."""
        wrong = self.labels[self.probabilities.argmax(dim=1) != self.labels]
        counts = wrong.bincount(minlength=len(self.classes)).tolist()
        each = zip(self.classes, counts, range(len(counts)), strict=True)
        named = [("every class", len(wrong), EVERY_CLASS), *each]
        return [(f"{name} ({count} wrong)", label) for name, count, label in named]

    def most_confident(self, true: int) -> list[int]:
        """Positions of the most confident mistakes, the most confident first.

        Args:
            true: The true class, or `EVERY_CLASS`.
        """
        of_class = (self.labels == true) | (true == EVERY_CLASS)
        [places] = of_class.nonzero(as_tuple=True)
        chosen = confident_mistakes(
            self.probabilities[places], self.labels[places], SHOWN
        )
        found: list[int] = places[chosen].tolist()
        return found

    def gallery(self, true: int) -> list[tuple[Image.Image, str]]:
        """The images of these positions with their captions."""
        return [
            (Image.fromarray(self.images[place].numpy()), self._caption(place))
            for place in self.most_confident(true)
        ]

    def look(self, model: LitCustomResNet, place: int) -> Look:
        """What the network says of the image at a position, and what is true."""
        image = self.images[place].permute(2, 0, 1)[None]
        _, known = predict_views(model, image[None])
        found = look(model, image, self.probabilities[place][None], known)
        return found._replace(true=self.classes[int(self.labels[place])])

    def _caption(self, place: int) -> str:
        confidence, predicted = self.probabilities[place].max(dim=0)
        true = self.classes[int(self.labels[place])]
        return (
            f"{true} → {self.classes[int(predicted)]} ({percent(confidence.item(), 1)})"
        )


def build_page(model: LitCustomResNet, mistakes: Mistakes | None) -> gr.Blocks:
    """The page, with a tab to classify images and one to browse mistakes."""
    page = gr.Blocks(analytics_enabled=False, delete_cache=KEPT, title="Custom ResNet")
    with page:
        gr.Markdown("# What does the network see?")
        with gr.Tab("Classify"):
            _add_upload(model)
        with gr.Tab("Mistakes"):
            if mistakes is None:
                gr.Markdown(NO_IMAGES)
            else:
                _add_mistakes(model, mistakes)
    return page


def _add_upload(model: LitCustomResNet) -> None:
    drawn = examples(list(model.hparams["classes"]))

    def answer(path: str | None) -> list[Any]:
        try:
            return _as_shown(None if path is None else look_at_file(model, path))
        except InputError as error:
            return _as_shown(None, note=str(error))

    def answer_drawn(event: gr.SelectData) -> list[Any]:
        drawing, _ = drawn[event.index]
        views = torch.from_numpy(to_views(drawing)).permute(0, 3, 1, 2)[None]
        return _as_shown(look_at_photo(model, views)._replace(photo=drawing))

    gr.Markdown(f"It knows these classes: {known_classes(model)}.")
    with gr.Row():
        with gr.Column():
            # gr.Image would open the file itself, and fail with another message.
            upload = gr.File(label=f"Image ({', '.join(FORMATS)})", height=180)
            label = "Or one of these, which are drawn"
            gallery = _gallery(drawn, label, "examples")
        with gr.Column(elem_id="look"):
            outputs = _add_outputs()
    for answered in (
        upload.change(answer, upload, outputs, concurrency_id="network"),
        gallery.select(answer_drawn, None, outputs, **CLICKS),
    ):
        answered.then(js=SCROLL.format("look"))


def known_classes(model: LitCustomResNet) -> str:
    """The names of the classes, in Markdown; of many, the first."""
    names = list(model.hparams["classes"])
    shown = [escape(name) for name in names[:NAMED]]
    rest = len(names) - len(shown)
    return ", ".join([*shown, *([f"and {rest} more"] if rest else [])])


def escape(name: str) -> str:
    """A class name as it is, where Markdown would see more in it."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", name)


def _add_mistakes(model: LitCustomResNet, mistakes: Mistakes) -> None:
    def show(true: int) -> list[Any]:
        pictures = gr.Gallery(mistakes.gallery(true), selected_index=None)
        hidden = gr.Column(visible=False)
        return [pictures, mistakes.most_confident(true), hidden, *_as_shown(None)]

    def answer(shown: list[int], event: gr.SelectData) -> list[Any]:
        found = mistakes.look(model, shown[event.index])
        return [gr.Column(visible=True), *_as_shown(found)]

    choice = gr.Dropdown(
        mistakes.choices(), value=EVERY_CLASS, label="True class", filterable=False
    )
    with gr.Row():
        with gr.Column(scale=2):
            label = "Most confident mistakes: true class → predicted (probability)"
            gallery = _gallery(mistakes.gallery(EVERY_CLASS), label, "mistakes")
            # Of what is in the gallery, which may not be what was chosen last. A
            # gr.State would be that of the server, which is ahead of the page.
            shown = gr.JSON(mistakes.most_confident(EVERY_CLASS), visible=False)
        with gr.Column(elem_id="answer", visible=False) as column:
            outputs = [column, *_add_outputs()]
    choice.change(show, choice, [gallery, shown, *outputs], concurrency_id="network")
    answered = gallery.select(answer, shown, outputs, **CLICKS)
    answered.then(js=SCROLL.format("answer"))


def _gallery(pictures: list[Any], label: str, name: str) -> gr.Gallery:
    """Pictures to choose from; `name` is their class in the page's style."""
    return gr.Gallery(
        pictures,
        label=label,
        format="png",
        allow_preview=False,
        buttons=[],
        interactive=False,
        height="auto",
        elem_classes=name,
    )


def _add_outputs() -> list[Any]:
    return [
        gr.Textbox(label="Note", lines=2, visible=False, interactive=False),
        gr.Markdown(visible=False),
        gr.Label(label="Most probable classes"),
        gr.Image(
            label="The image",
            alt_text="The image as it is",
            format="png",
            interactive=False,
            buttons=[],
            visible=False,
            elem_classes="photo",
        ),
        gr.Image(
            label="What the network sees, and where it looks",
            alt_text="The image as the network sees it, and beside it with the places "
            "highlighted that speak for the most probable class",
            format="png",
            interactive=False,
            buttons=[],
            elem_classes="picture",
        ),
    ]


def _as_shown(found: Look | None, note: str = "") -> list[Any]:
    """The values of `_add_outputs`."""
    if found is None:
        hidden = gr.Markdown(visible=False), gr.Image(None, visible=False)
        return [gr.Textbox(note, visible=bool(note)), hidden[0], None, hidden[1], None]
    return [
        gr.Textbox(UNKNOWN, visible=not found.known),
        gr.Markdown(found.verdict(), visible=found.true is not None),
        found.probabilities,
        gr.Image(found.photo, visible=found.photo is not None),
        found.picture,
    ]
