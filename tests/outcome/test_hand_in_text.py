from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.outcome.hand_in_text import Block, Facts, Figure, Heading, Said, Table, Todo, latex, markdown
from tests.support.tex import faults

FACTS = Facts({"score": {"mean": 28.1803, "worst": [3, 7]}, "name": "tfr_sde -- x"})


def test_a_sentence_takes_its_numbers_from_the_facts_and_names_them():
    said = FACTS.say("It reaches {score/mean:.2f} dB, least in frame {score/worst/1}.")
    assert said.text == "It reaches 28.18 dB, least in frame 7."
    assert said.sources == ("score/mean = 28.1803", "score/worst/1 = 7")


def test_a_number_that_rounds_to_zero_has_no_sign():
    said = Facts({"x": -0.001, "y": -0.006}).say("{x:.2f} and {y:.2f} and {x}")
    assert said.text == "0.00 and -0.01 and -0.001"


def test_a_number_without_a_source_is_refused():
    with pytest.raises(ValueError, match="without a source"):
        FACTS.say("It reaches 28 dB.")
    with pytest.raises(KeyError):
        FACTS.say("It reaches {score/median:.2f} dB.")


def test_comments_stay_comments_in_both_forms():
    blocks = [FACTS.say("The setting is {name}.")]
    text = markdown("T", blocks)
    (comment,) = re.findall(r"<!--(.*?)-->", text)
    assert "--" not in comment
    lines = latex("T", blocks).splitlines()
    at = lines.index("The setting is tfr\\_\\allowbreak{}sde -- x.")
    assert lines[at + 1] == '% facts.json: name = "tfr_sde -- x"'


def test_a_row_that_begins_with_a_bracket_or_a_star_is_text():
    text = latex("T", [Table(("a", "b"), (("[1em] x", "*"), ("*", "[")), Said("c"))])
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]
    assert rows[-2:] == [r"{[}1em] x & {*} \\", r"{*} & {[} \\"]


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)


@given(st.lists(WORDS, min_size=6, max_size=6))
def test_any_text_gives_sound_latex(words: list[str]):
    one, two, three, four, five, six = words
    blocks: list[Block] = [
        Heading(one, 2),
        Said(two, (f"a = {three}",)),
        Todo(three),
        Figure("curves", Said(four, (f"b = {one}\n{two}",))),
        Table((one, two), ((three, four), (five, six)), Said(five, (six,))),
    ]
    assert faults(latex(six, blocks)) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (r"\begin{document}50% \begin{a}x\end{b}\end{document}", "environment"),
        (r"\begin{document}a_b\end{document}", "unescaped _"),
        (r"\begin{document}\emph{a\end{document}", "brace"),
        (r"\begin{document}a & b\end{document}", "unescaped &"),
        ("\\begin{document}\u00e9\\end{document}", "ASCII"),
    ],
)
def test_the_check_of_latex_finds_what_is_wrong(text: str, fault: str):
    assert any(fault in found for found in faults(text))
