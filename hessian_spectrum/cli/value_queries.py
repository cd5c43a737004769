"""NumPy only: a query by name of stored curves and surfaces."""

from __future__ import annotations

from typing import Any

from hessian_spectrum._core.errors import InputError
from hessian_spectrum.landscape.results import Curve, Surface
from hessian_spectrum.spectral.functionals import checked

# What each query takes, as the user types it.
OF_CURVE = {"minimum": (), "at": ("T",), "barrier": (), "basin": ("LEVEL", "NEAR")}
OF_SURFACE = {"minimum": (), "at": ("A", "B"), "share_below": ("LEVEL",)}
NAMES = {*OF_CURVE, *OF_SURFACE}


def ask(
    result: Curve | Surface, query: str, numbers: tuple[float, ...], name: str = "loss"
) -> dict[str, Any]:
    """``{"query", "arguments", "of", "value", ...}``: what the result's member of that name gives.

    Args:
        query: minimum (with its "place"); at T, or at A B of a surface; of a curve barrier (with
            its "ends") and basin LEVEL [NEAR], a distance (with "left", "right", "bounded"); of a
            surface share_below LEVEL.
        name: of which values.

    Raises:
        InputError: a query that does not exist, numbers that it does not take, no such values.
    """
    is_curve = isinstance(result, Curve)
    known, kind = (OF_CURVE, "a curve") if is_curve else (OF_SURFACE, "a surface")
    numbers = checked(known, query, numbers, kind)
    result.values[name]  # refused by name
    found = getattr(result, query)(*numbers, name=name)
    answer = {"query": query, "arguments": [x for x in numbers if x is not None], "of": name}
    if query == "minimum":
        return answer | {"value": found.value, "place": list(found.place)}
    if query == "basin":
        return answer | {
            "value": found.width,
            **{"left": found.left, "right": found.right, "bounded": found.bounded},
        }
    if query == "barrier":
        return answer | {"value": found, "ends": list(result.ends)}
    if found != found and query == "at":
        raise InputError(f"at {numbers}: beyond the points, or beside one that is not finite")
    return answer | {"value": float(found)}


def sentence(answer: dict[str, Any]) -> str:
    """``barrier of the loss = 0.366, between t = 0 and 1``."""
    arguments = " ".join(f"{number:g}" for number in answer["arguments"])
    words = " ".join(filter(None, (answer["query"], arguments)))
    text = f"{words} of the {answer['of'].replace('_', ' ')} = {answer['value']:.8g}"
    if "place" in answer:
        return f"{text} at {', '.join(f'{x:.6g}' for x in answer['place'])}"
    if "ends" in answer:
        return f"{text}, between t = {answer['ends'][0]:g} and {answer['ends'][1]:g}"
    if "left" in answer:
        beyond = "" if answer["bounded"] else "; it goes on beyond the points"
        within = f"from {answer['left']:.6g} to {answer['right']:.6g} along the path"
        return f"{text}, {within}{beyond}"
    return text
