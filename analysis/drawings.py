"""Pictures that are drawn by code, to try a network on without a photo."""

from collections.abc import Callable

from PIL import Image, ImageDraw, ImageFilter

from images.synthetic import SHAPES, draw_shapes

SIDE = 256  # pixels
Canvas = ImageDraw.ImageDraw


def examples(classes: list[str]) -> list[tuple[Image.Image, str]]:
    """Pictures to try a network on, with what they are of.

    Args:
        classes: Those that the network knows; one that knows the drawn shapes gets
            some of these.
    """
    if classes == list(SHAPES):
        images, labels = draw_shapes(2 * len(SHAPES), seed=7)
        pairs = zip(images, labels.tolist(), strict=True)
        return [(Image.fromarray(one.numpy()), SHAPES[label]) for one, label in pairs]
    return [(_scene(*colours, draw), name) for name, (colours, draw) in SCENES.items()]


def _scene(above: str, below: str, draw: Callable[[Canvas], None]) -> Image.Image:
    """What is drawn, before a ground of two colours that run into each other."""
    ground = Image.new("RGB", (1, 2), above)
    ImageDraw.Draw(ground).point((0, 1), below)
    scene = ground.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    draw(ImageDraw.Draw(scene))
    return scene.filter(ImageFilter.GaussianBlur(1.5))


def _airplane(canvas: Canvas) -> None:
    canvas.polygon([(20, 128), (50, 104), (210, 112), (240, 128), (50, 152)], "#e8ecf0")
    canvas.polygon([(110, 128), (150, 128), (90, 214), (70, 214)], "#b8c0c8")
    canvas.polygon([(110, 112), (140, 112), (96, 60), (80, 60)], "#c8d0d8")
    canvas.polygon([(22, 126), (54, 116), (34, 64), (16, 64)], "#a03030")


def _wheels(canvas: Canvas, *places: int) -> None:
    for x in places:
        canvas.ellipse((x - 24, 164, x + 24, 212), "#181818")
        canvas.ellipse((x - 11, 177, x + 11, 199), "#b0b0b0")


def _automobile(canvas: Canvas) -> None:
    canvas.polygon([(74, 128), (104, 84), (176, 84), (208, 128)], "#a81818")
    canvas.polygon([(88, 126), (110, 94), (136, 94), (136, 126)], "#a8c8d8")
    canvas.polygon([(144, 126), (144, 94), (172, 94), (192, 126)], "#a8c8d8")
    canvas.rounded_rectangle((18, 124, 240, 188), 22, "#c82020")
    canvas.rectangle((222, 140, 238, 152), "#f8f0a0")
    _wheels(canvas, 72, 188)


def _truck(canvas: Canvas) -> None:
    canvas.rectangle((10, 56, 168, 180), "#e8e4d8")
    canvas.rectangle((10, 168, 240, 188), "#303030")
    canvas.rounded_rectangle((174, 84, 244, 184), 10, "#2050a8")
    canvas.rectangle((202, 96, 236, 128), "#b8d8e8")
    _wheels(canvas, 46, 106, 208)


def _ship(canvas: Canvas) -> None:
    canvas.rectangle((0, 176, SIDE, SIDE), "#1c4868")
    canvas.polygon([(16, 144), (240, 144), (208, 196), (48, 196)], "#702018")
    canvas.rectangle((70, 104, 186, 144), "#f0f0ec")
    canvas.rectangle((92, 74, 160, 104), "#e0e0dc")
    canvas.rectangle((112, 36, 136, 76), "#c88020")


def _frog(canvas: Canvas) -> None:
    canvas.ellipse((48, 92, 208, 212), "#588820")
    canvas.ellipse((30, 150, 90, 220), "#486c18")
    canvas.ellipse((166, 150, 226, 220), "#486c18")
    for x in (88, 168):
        canvas.ellipse((x - 26, 62, x + 26, 114), "#68a028")
        canvas.ellipse((x - 13, 74, x + 13, 100), "#101010")
    canvas.arc((84, 110, 172, 170), 10, 170, "#283c08", 5)


def _bird(canvas: Canvas) -> None:
    canvas.line((0, 216, SIDE, 200), "#4c3820", 14)
    canvas.polygon([(30, 196), (90, 132), (112, 164)], "#604020")
    canvas.ellipse((70, 92, 186, 190), "#a86830")
    canvas.ellipse((146, 56, 212, 122), "#b87838")
    canvas.polygon([(208, 82), (244, 92), (208, 102)], "#e0b030")
    canvas.ellipse((180, 76, 194, 90), "#101010")
    canvas.polygon([(84, 120), (150, 128), (90, 176)], "#70441c")
    for x in (118, 140):
        canvas.line((x, 186, x, 208), "#403010", 5)


SCENES: dict[str, tuple[tuple[str, str], Callable[[Canvas], None]]] = {
    "airplane": (("#4888d0", "#b8d8f0"), _airplane),
    "automobile": (("#a8b0b8", "#707478"), _automobile),
    "bird": (("#c0d8a0", "#608848"), _bird),
    "frog": (("#806848", "#503c24"), _frog),
    "ship": (("#a0c8e8", "#6898b8"), _ship),
    "truck": (("#b0c4d8", "#787c80"), _truck),
}
