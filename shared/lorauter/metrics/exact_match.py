"""Exact match: is the answer the target, letter by letter?"""


def exact_match(prediction: str, target: str) -> float:
    """Returns 1.0 if both are equal once white space around them is removed, else 0.0.

    Case, punctuation and inner white space count: only so does it agree with the check that a model's
    every greedy token is the target's, for targets without white space around them.
    """
    return float(prediction.strip() == target.strip())
