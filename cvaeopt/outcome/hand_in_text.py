"""A document of headings, sentences, tables and figures, as Markdown and as LaTeX.

A sentence takes every number from the facts of the document. The text of its template has no digit of its own. Each
sentence carries a comment with the path and the value of each fact in it, so its numbers can be traced.
"""

from __future__ import annotations

import json
import re
import string
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvaeopt.text import short


@dataclass(frozen=True)
class Said:
    """A sentence, and where its values come from: 'path = value' for each value."""

    text: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heading:
    """A heading. Level 1 is a section."""

    text: str
    level: int = 1


@dataclass(frozen=True)
class Todo:
    """A place where the author must write."""

    text: str


@dataclass(frozen=True)
class Figure:
    """The figure in figures/NAME.pdf and figures/NAME.png."""

    name: str
    caption: Said


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: Said


Block = Said | Heading | Todo | Figure | Table


@dataclass(frozen=True)
class Facts:
    """The facts of a document: nested dictionaries and lists of JSON values."""

    values: dict[str, Any]

    def at(self, path: str) -> Any:
        """The value at `path`, such as 'score/val_psnr' or 'study/leaders/0/mean'. KeyError if there is none."""
        value: Any = self.values
        for part in path.split("/"):
            value = value[int(part)] if isinstance(value, list) else value[part]
        return value

    def say(self, template: str) -> Said:
        """A sentence: `{PATH:FORMAT}` in `template` is the value at PATH. Without a format, a setting's short text.

        ValueError if the text of the template itself has a digit.
        """
        text, sources = "", []
        for literal, path, form, _ in string.Formatter().parse(template):
            if re.search(r"\d", literal):
                raise ValueError(f"{literal!r} has a number without a source")
            text += literal
            if path is not None:
                value = self.at(path)
                shown = format(value, form) if form else short(value)
                text += shown.removeprefix("-") if re.fullmatch(r"-0\.0+", shown) else shown
                sources.append(f"{path} = {json.dumps(value)}")
        return Said(text, tuple(sources))


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """The document as Markdown. Comments are HTML comments."""
    return "\n".join([f"# {_md(title)}\n", *(_as_markdown(block) for block in blocks)])


def latex(title: str, blocks: Sequence[Block]) -> str:
    """The document as LaTeX, in ASCII, for pdfLaTeX, XeLaTeX and LuaLaTeX. It needs base packages only.

    A letter that is not in ASCII is written without its accent, or as '?' if it has no such form.
    """
    head = "\n".join(
        [
            r"\documentclass[11pt,a4paper]{article}",
            r"\usepackage[margin=25mm]{geometry}",
            r"\usepackage{graphicx}",
            r"\usepackage{longtable}",
            r"\newcommand{\byauthor}[1]{\par\medskip\noindent\fbox{\parbox{0.96\linewidth}"
            r"{\textbf{AUTHOR:} #1}}\par\medskip}",
            r"\sloppy",
            rf"\title{{{_tex(title)}}}",
            r"\author{AUTHOR: name and student number}",
            r"\begin{document}",
            r"\maketitle",
            "",
        ]
    )
    return head + "\n".join(_as_latex(block) for block in blocks) + "\n\\end{document}\n"


def _as_markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"\n{'#' * (level + 1)} {_md(text)}\n"
        case Todo(text):
            return f"\n> **AUTHOR:** {_md(text)}\n"
        case Figure(name, caption):
            return f"\n![{_md(caption.text)}](figures/{name}.png){_md_comment(caption)}\n\n*{_md(caption.text)}*\n"
        case Table(columns, rows, caption):
            lines = [[*map(_md, columns)], ["---"] * len(columns), *([*map(_md, row)] for row in rows)]
            body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return f"\n{_md(caption.text)}{_md_comment(caption)}\n\n{body}\n"
        case Said(text):
            return f"{_md(text)}{_md_comment(block)}"


def _md_comment(said: Said) -> str:
    text = "; ".join(said.sources).replace("--", "- -")  # "--" must not occur in an HTML comment
    return f" <!-- facts.json: {text} -->" if said.sources else ""


def _md(text: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]#])", r"\\\1", text)


def _as_latex(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"\n\\{'sub' * (level - 1)}section{{{_tex(text)}}}\n"
        case Todo(text):
            return f"\\byauthor{{{_tex(text)}}}"
        case Figure(name, caption):
            return "\n".join(
                [
                    r"\begin{figure}[htbp]",
                    r"\centering",
                    rf"\includegraphics[width=0.8\linewidth,height=0.55\textheight,keepaspectratio]{{figures/{name}.pdf}}",
                    *_tex_comments(caption),
                    rf"\caption{{{_tex(caption.text)}}}",
                    r"\end{figure}",
                ]
            )
        case Table(columns, rows, caption):
            # The first column is wide enough for names of settings; a cell with long text is broken into lines.
            first, other = 0.24, 0.56 / max(1, len(columns) - 1)
            widths = "".join(rf"p{{{width:.3f}\linewidth}}" for width in (first, *[other] * (len(columns) - 1)))
            lines = [" & ".join(map(_tex, row)) + r" \\" for row in rows]
            header = " & ".join(rf"\textbf{{{_tex(name)}}}" for name in columns) + r" \\"
            return "\n".join(
                [
                    *_tex_comments(caption),
                    rf"\begin{{longtable}}{{{widths}}}",
                    rf"\caption{{{_tex(caption.text)}}}\\",
                    r"\hline",
                    header,
                    r"\hline",
                    r"\endfirsthead",
                    r"\hline",
                    header,
                    r"\hline",
                    r"\endhead",
                    *lines,
                    r"\hline",
                    r"\end{longtable}",
                ]
            )
        case Said(text):
            return "\n".join([_tex(text), *_tex_comments(block)])


def _tex_comments(said: Said) -> list[str]:
    """The sources as comment lines. A comment line does not end a paragraph."""
    if not said.sources:
        return []
    lines = textwrap.wrap(_ascii("facts.json: " + "; ".join(said.sources)), 110, break_on_hyphens=False)
    return [f"% {line}" for line in lines]


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # After the end of a row, a bracket or a star would belong to the command that ends the row.
    "*": "{*}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
}


def _tex(text: str) -> str:
    plain = text.replace('"', "''")
    # An underscore may end a line, so that a long name of a setting does not leave its column.
    return "".join(_TEX.get(letter, letter) for letter in _ascii(plain)).replace(r"\_", r"\_\allowbreak{}")


def _ascii(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    kept = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return "".join(letter if " " <= letter <= "~" else "?" for letter in kept)
