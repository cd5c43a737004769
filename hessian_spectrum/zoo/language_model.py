"""A causal language model of Hugging Face's transformers in a local folder, and a text.

Nothing is downloaded, no code of the folder is run, and weights are read from safetensors alone.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from hessian_spectrum._core.errors import InputError, in_one_line
from hessian_spectrum.config import ProblemConfig
from hessian_spectrum.config.problem import HUGGINGFACE
from hessian_spectrum.loss import huggingface
from hessian_spectrum.loss.problem import Problem
from hessian_spectrum.sharded.parameters import parameters_on_meta
from hessian_spectrum.zoo.torchvision_compat import import_torchvision

LOCAL = {"local_files_only": True, "trust_remote_code": False}
ATTENTION = "sdpa"  # whose math kernel has second derivatives


def problem(config: ProblemConfig) -> Problem:
    """The model's own loss on the lines of ``--text``.

    With ``--sharded`` the model has no values here: each rank reads its part from the folder.

    Raises:
        InputError: there is no such folder or text, or no transformers; the folder holds no causal
            model, no tokenizer, or no weights in safetensors.
    """
    assert config.problem is not None and config.text is not None  # by ProblemConfig.check
    folder = Path(config.problem.removeprefix(HUGGINGFACE))
    if not folder.is_dir():
        raise InputError(f"--problem {config.problem}: there is no folder {folder}")
    lines = _lines(config.text)
    auto = _transformers()
    is_sharded = bool(getattr(config, "sharded", False))
    try:
        settings = auto.AutoConfig.from_pretrained(folder, **LOCAL)
        tokenizer = auto.AutoTokenizer.from_pretrained(folder, **LOCAL)
        with parameters_on_meta() if is_sharded else nullcontext():
            if is_sharded:
                model = auto.AutoModelForCausalLM.from_config(
                    settings, trust_remote_code=False, attn_implementation=ATTENTION
                )
            else:
                model = auto.AutoModelForCausalLM.from_pretrained(
                    folder, use_safetensors=True, attn_implementation=ATTENTION, **LOCAL
                )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise InputError(
            f"--problem {config.problem}: cannot be loaded as a causal model with its tokenizer: "
            f"{in_one_line(error)}"
        ) from error
    made = huggingface.arguments(
        model,
        lines,
        tokenizer,
        batch_size=config.batch_size or 8,
        max_length=config.max_length,
    )
    return Problem(**made)


def folder_of(config: ProblemConfig) -> Path | None:
    """Where the weights of a language model are; None of another problem."""
    if config.problem is None or not config.problem.startswith(HUGGINGFACE):
        return None
    return Path(config.problem.removeprefix(HUGGINGFACE))


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--text {path}: cannot be read: {in_one_line(error)}") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"--text {path}: holds no line of text")
    return found


def _transformers() -> Any:
    with suppress(InputError):  # which it imports where it is there
        import_torchvision()
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "language models need transformers; pip install 'hessian-spectrum[hf]'"
        ) from error
    return transformers
