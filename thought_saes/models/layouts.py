"""The layouts in which checkpoints of thinking models are published: a table of what differs.

What is said here comes from the checkpoints' own descriptions. Every layout is tested on small synthetic checkpoints.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from thought_saes.common.errors import InputError

CODI_THOUGHTS = 6  # CODI is trained to feed back six thoughts, positions 1-6
CODI_PREFIX = "codi.base_model.model."
CODI_PROJECTION = {"prj.": ""}


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint keeps the model's weights and its projection, and how it is made to think."""

    title: str
    prefix: str  # before the keys of the model's weights
    marks: tuple[str, ...] = ()  # a checkpoint with keys that begin with each of these has the layout
    projection: Mapping[str, str] = field(default_factory=dict)  # beginnings of keys: theirs to ours
    ignored: tuple[str, ...] = ()  # beginnings of keys of modules that only training needs
    on_base: bool = True  # config and tokenizer are those of a base model
    bot: int | None = 1  # rows after the base vocabulary; None: the ids are in the config
    eot: int | None = 2
    eos_before_bot: bool = False
    question_template: str = "{question}"
    answer_template: str = "The answer is: {answer}"
    n_thoughts: int = CODI_THOUGHTS


LAYOUTS = {
    "sim-cot": Layout(
        "SIM-CoT",
        CODI_PREFIX,
        marks=(CODI_PREFIX, "decoder."),
        projection=CODI_PROJECTION,
        ignored=("decoder.", "pj_in.", "pj_out."),
    ),
    "codi": Layout("CODI", CODI_PREFIX, marks=(CODI_PREFIX,), projection=CODI_PROJECTION),
    # Nothing in the file tells it from CODI: it must be asked for.
    "codi-answer-only": Layout(
        "answer-only CODI", CODI_PREFIX, projection=CODI_PROJECTION, eos_before_bot=True, answer_template="{answer}"
    ),
    "coconut": Layout(
        "Coconut",
        "base_causallm.",
        marks=("base_causallm.",),
        ignored=("embedding.",),  # the input embedding a second time
        bot=0,
        eot=1,
        question_template="{question}\n",
        answer_template="### {answer}",
    ),
    "latent-tts": Layout(
        "LatentTTS",
        "",
        marks=("projector.",),
        projection={"projector.1.": "1.", "projector.3.": "3.", "projector.4.": "ln."},
        on_base=False,
        bot=None,
        eot=None,
    ),
}
# How a config that holds the ids may call them.
BOT_KEYS = ("latent_start_id", "start_latent_id", "start_id", "bot_token_id")
EOT_KEYS = ("latent_end_id", "end_latent_id", "end_id", "eot_token_id")


def layout_of(keys: Iterable[str], asked: str | None) -> str | None:
    """The name of the layout `asked` for, or the first whose marks are all among `keys`; None for a whole model."""
    if asked is not None:
        if asked not in LAYOUTS:
            raise InputError(f"there is no layout '{asked}'; there are {', '.join(LAYOUTS)}")
        return asked
    keys = list(keys)
    for name, layout in LAYOUTS.items():
        if layout.marks and all(any(key.startswith(mark) for key in keys) for mark in layout.marks):
            return name
    return None
