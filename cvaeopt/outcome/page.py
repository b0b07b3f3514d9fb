"""HTML pages that need no network: how they are made from their templates, and written with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from cvaeopt.files import write_bytes, write_text
from cvaeopt.outcome.report_pictures import Picture
from cvaeopt.pictures import curves
from cvaeopt.text import short

PAGE: Final = "report.html"


@dataclass(frozen=True)
class Report:
    """The paths of the files of a page."""

    page: Path
    pictures: tuple[Path, ...]


def write_page(template: str, out: Path, pictures: Sequence[Picture], **facts: Any) -> Report:
    """Write `pictures` and then `out`/report.html, which is made from `template` and `facts`.

    Inside a block of `curves.copies_as`, the files of the other kinds are written beside the charts.

    Names and reasons come from a database that other programs may write to, so everything is escaped.
    """
    environment = Environment(
        loader=PackageLoader("cvaeopt.outcome"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(text=short, **facts)
    written: list[Path] = []
    for picture in pictures:
        path = out / picture.name
        files = {path: picture.data}
        files |= {path.with_suffix(f".{kind}"): data for kind, data in curves.copies_of(picture.data).items()}
        for target, data in files.items():
            write_bytes(target, data)
        written += files
    write_text(out / PAGE, page)
    return Report(out / PAGE, tuple(written))
