"""A check of LaTeX that needs no LaTeX: braces, environments, special characters, columns of tables."""

from __future__ import annotations

import re

# In these arguments and environments, the characters have another meaning.
_RAW_LINES = re.compile(r"\\(documentclass|usepackage|newcommand|includegraphics|begin\{longtable\})")


def faults(text: str) -> list[str]:
    """What LaTeX would stumble over, line by line; empty for sound text."""
    found = [] if text.isascii() else ["not in ASCII"]
    open_environments: list[str] = []
    depth, columns = 0, 0
    for number, whole in enumerate(text.splitlines(), 1):
        line = re.sub(r"(?<!\\)((?:\\\\)*)%.*", r"\1", whole)
        for kind, name in re.findall(r"\\(begin|end)\{([a-z]+)\}", line):
            if kind == "begin":
                open_environments.append(name)
            elif not open_environments or open_environments.pop() != name:
                found.append(f"line {number}: environment {name} ends where it did not begin")
        bare = re.sub(r"\\(?:[A-Za-z]+|.)", " ", line)
        for letter in bare:
            depth += (letter == "{") - (letter == "}")
            if depth < 0:
                found.append(f"line {number}: a brace is closed that was not opened")
                depth = 0
        if "begin{longtable}" in line:
            columns = line.count(r"p{")
        if _RAW_LINES.search(line) or line.startswith(r"{\textbf{AUTHOR:}"):
            continue
        in_table = bool(open_environments) and open_environments[-1] == "longtable"
        for letter in "_^$#~" + ("" if in_table else "&"):
            if letter in bare:
                found.append(f"line {number}: unescaped {letter}")
        if in_table and line.endswith(r"\\") and "caption" not in line and bare.count("&") != columns - 1:
            found.append(f"line {number}: {bare.count('&') + 1} cells in a table of {columns} columns")
    if depth:
        found.append("a brace is not closed")
    return found + [f"environment {name} does not end" for name in open_environments]
