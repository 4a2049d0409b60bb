"""What pages are made of: templates, drawings, pictures, numbers in words."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from analysis.figures import own_style
from common.errors import InputError
from common.files import replacing

TEMPLATES = Path(__file__).parent / "templates"
NOTHING, SPACE = "\N{EN DASH}", "\N{NO-BREAK SPACE}"
INK = "#010101"  # stands for the page's own text colour
# They can be seen on white and on black.
COLOURS = [
    *("#2f81c7", "#e07b22", "#3a9a4b", "#d6404b", "#9467bd"),
    *("#a0705f", "#d565b0", "#8a9a20", "#20a5b5", "#808890"),
]
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "axes.prop_cycle": f"cycler('color', {COLOURS})",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the page's font
}


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Fill in a template and write the page, whole or not at all.

    Args:
        path: The HTML file.
        template: Name of the template.
        values: What it shows.

    Raises:
        InputError: The package that fills in the template is missing, or the file
            cannot be written.
    """
    try:
        import jinja2
    except ImportError:
        raise InputError(
            "it needs jinja2; pip install -r requirements-extras.txt"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "flag": flag}
    script = (TEMPLATES / "copy.js").read_text(encoding="utf-8")
    environment.globals |= {
        "nothing": NOTHING,
        "style": (TEMPLATES / "style.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(
            hashlib.sha256(script.encode()).digest()
        ).decode(),
    }
    page = environment.get_template(template).render(**values)
    with replacing(path) as file:
        file.write(page.encode(errors="backslashreplace"))  # paths may be of any bytes
    return path


def svg(draw: Callable[[], Figure], name: str) -> str:
    """Draw a figure as an SVG element whose axes and text have the page's colour.

    Args:
        draw: Makes the figure.
        name: Tells its parts from those of other figures on the page.
    """
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with own_style(STYLE | {"svg.hashsalt": name}):
        draw().savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # the same in every figure
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)


def png(pixels: NDArray[np.uint8]) -> str:
    """Pixels, uint8 (H, W, 3), as the address of a picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def percent(share: float | None, digits: int = 2) -> str:
    """A share as in "90.35 %"; a dash for none."""
    return NOTHING if share is None else f"{100 * share:.{digits}f}{SPACE}%"


def duration(seconds: float) -> str:
    """Seconds as in "28 s", "27 min 19 s" or "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes} min {rest} s" if minutes else f"{rest} s"
    text = f"{hours} h {minutes} min" if hours else text
    return text.replace(" ", SPACE)


def flag(value: Any) -> str:
    """A flag's value as in config.yaml."""
    return value if isinstance(value, str) else json.dumps(value)
