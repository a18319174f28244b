"""Whether vLLM takes the arguments that a recipe gives it, and serves it in this environment, asked before anything starts.
Imports vllm only in a process of its own: that takes long, and changes the process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from lemix_hpc.config.recipe import Recipe
from lemix_hpc.config.text_file import LARGEST_TEXT
from lemix_hpc.engines.vllm.environment import runner_refusal

TIMEOUT_S = 120
_REFUSED = 2


def refusal(recipe: Recipe) -> str | None:
    """Why vLLM's own parser refuses `engine.vllm.args`, or we its model runner; None if all is well. Where vLLM is not
    installed nobody is asked about the arguments."""
    if why := runner_refusal(recipe):
        return why
    if not recipe.engine.vllm.args or find_spec("vllm") is None:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=recipe.engine.model_dump_json(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None  # the ranks will find out
    return done.stdout.strip() if done.returncode == _REFUSED else None


def main() -> None:
    """The process: an engine section on standard input, and what is wrong with it on standard output."""
    from lemix_hpc.config.errors import UserError
    from lemix_hpc.config.recipe import Engine
    from lemix_hpc.engines.vllm.environment import prepare

    engine = Engine.model_validate_json(sys.stdin.read(LARGEST_TEXT))
    try:
        prepare()
        from lemix_hpc.engines.vllm.args import given_args

        given_args(engine, "model")
    except UserError as error:
        print(error)
        sys.exit(_REFUSED)


if __name__ == "__main__":
    main()
