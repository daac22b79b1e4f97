"""Which of many examples stand for all."""


def spaced(count: int, limit: int) -> list[int]:
    """Returns at most ``limit`` of the positions 0..count-1, evenly spaced, the first among them."""
    if count <= limit:
        return list(range(count))
    return [position * count // limit for position in range(limit)]
