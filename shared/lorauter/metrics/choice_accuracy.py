"""Choice accuracy: does the answer name the right option of a multiple-choice question?"""

from __future__ import annotations

import re

from lorauter.metrics.metric import Metric
from lorauter.metrics.words import MAX_CHARACTERS, squad_words

_LABEL = r"[A-Za-z]|[0-9]{1,2}"
_LEADING = re.compile(
    rf"[\s*\"'`]*(?:[(\[](?P<inner>{_LABEL})[)\]]|(?P<bare>{_LABEL})(?:\)|[.:](?=\s|$)|[\s*\"'`]*$))[\s.:*]*"
)
_LETTER = re.compile(
    r"(?<![\w.'\u2019-])(?:[(\[]([A-Za-z])[)\]]|(?![AI]\s+(?!is\b)[a-z])([A-Z])(?![\w'\u2019-]))"
)
_NUMBER = re.compile(r"(?<![\w.,-])(?:[(\[]([0-9]{1,2})[)\]]|([0-9]{1,2}))(?!\w|[.,]\d)")
_PREAMBLE = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*:)", re.IGNORECASE)


def choice_accuracy(prediction: str, target: str) -> float:
    """Returns 1.0 if the answer names the target's option, else 0.0.

    A target is a label (``B``, ``(b)``, ``2.``), a label with the option's text (``B) Paris``), or the text
    alone (``entailment``). Labels are one letter, in either case, or a number of at most two digits. What
    the answer names is read in what follows its first "answer is" or "answer:", or in all of it:

    1. a label at the start, alone or marked as one, decides;
    2. else it is right if it begins with the option's text, in SQuAD's normalisation, as whole words;
    3. else the first label anywhere decides: one in brackets, or a capital (or a number, if the target's
       label is one) that stands by itself, but not the words "A" and "I".

    Of either text the first 65,536 characters are read. Source: Hendrycks et al. 2021 (MMLU) score the
    option that is named; reading it out of text follows MMLU-Pro (Wang et al. 2024, "answer is (X)"), the
    option's text HELM's quasi prefix exact match (Liang et al. 2022, appendix C).
    """
    if prediction.strip() == target.strip():
        return 1.0
    label, text = _option(target)
    answer = prediction[:MAX_CHARACTERS]
    preamble = _PREAMBLE.search(answer)
    if preamble:
        answer = answer[preamble.end() :]
    if label:
        leading = _LEADING.match(answer)
        if leading:
            return float(_label_of(leading) == label)
    if text and _begins_with(answer, text):
        return 1.0
    found = (_NUMBER if label.isdigit() else _LETTER).search(answer) if label else None
    return float(found is not None and (found[1] or found[2]).upper() == label)


def _option(target: str) -> tuple[str, str]:
    text = target[:MAX_CHARACTERS]
    leading = _LEADING.match(text)
    return (_label_of(leading), text[leading.end() :].strip()) if leading else ("", text.strip())


def _label_of(leading: re.Match[str]) -> str:
    return (leading["inner"] or leading["bare"]).upper()


def _begins_with(answer: str, text: str) -> bool:
    wanted = squad_words(text)
    if wanted:
        return squad_words(answer)[: len(wanted)] == wanted
    return answer.strip().lower().startswith(text.lower())


def _fault_in(target: str) -> str | None:
    if any(character.isalnum() for character in target):
        return None
    return "it names no option; write its label, its text or both, such as B, Paris or B) Paris"


CHOICE_ACCURACY = Metric("choice_accuracy", 1, of_text=choice_accuracy, fault_in=_fault_in)
