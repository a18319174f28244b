"""Write word problems about sums, one JSON object per line, for trials without a data set: make_sums.py OUT [COUNT]."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatma", "Goran", "Hana")
THINGS = ("apples", "books", "coins", "eggs", "lamps", "pens", "stamps", "tickets")
QUESTIONS = (
    ("{a} has {x} {thing} and buys {y} more. How many {thing} does {a} have now?", lambda x, y: (x + y, f"{x} + {y}")),
    ("{a} had {x} {thing} and gave {y} to {b}. How many are left?", lambda x, y: (x - y, f"{x} - {y}")),
    ("{a} fills {x} boxes with {y} {thing} each. How many {thing} is that?", lambda x, y: (x * y, f"{x} * {y}")),
)


def problem(rng: random.Random) -> dict[str, str]:
    """One question and its worked answer."""
    question, solve = rng.choice(QUESTIONS)
    a, b = rng.sample(NAMES, 2)
    y = rng.randint(2, 12)
    x = rng.randint(y, 40)
    thing = rng.choice(THINGS)
    result, terms = solve(x, y)
    return {"text": f"{question.format(a=a, b=b, x=x, y=y, thing=thing)} {terms} = {result}. The answer is {result}.\n"}


def main(out: Path, count: int = 400) -> None:
    rng = random.Random(0)
    out.write_text("".join(json.dumps(problem(rng)) + "\n" for _ in range(count)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
