"""Colours shared by all figures."""

from collections.abc import Sequence

# Blue, red, amber: distinguishable for colour-blind readers, and the same class has the same colour
# in every figure.
CLASS_COLOURS = {
    "normal": "#0072B2",
    "pneumonia": "#D55E00",
    "bacterial": "#D55E00",
    "viral": "#E69F00",
}

CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def class_colour(name: str, index: int) -> str:
    """Return the colour of a class; the index determines the colour of an unknown class."""
    return CLASS_COLOURS.get(name, CYCLE[index % len(CYCLE)])


def drawn(classes: Sequence[str]) -> Sequence[int]:
    """Return the indices of the classes whose curves are drawn: of two, only the positive one."""
    return (1,) if len(classes) == 2 else range(len(classes))
