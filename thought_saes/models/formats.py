"""What `thoughts.json` in a saved model's folder holds."""

from typing import Annotated, ClassVar

from msgspec import Meta, field

from thought_saes.common.errors import InputError
from thought_saes.common.schema import Count, Record
from thought_saes.models.layouts import CODI_THOUGHTS


class Thoughts(Record):
    """How the model is made to think. A file without the later keys is of a CODI model."""

    file: ClassVar[str] = "thoughts.json"
    bot_token_id: Annotated[Count | None, Meta(description="token of position 0; null: the question's last token")]
    eot_token_id: Annotated[Count | None, Meta(description="token after the thoughts; null if there is none")]
    before_bot: Annotated[list[Count], Meta(description="tokens between the question and the bot token")] = field(
        default_factory=list
    )
    after_eot: Annotated[list[Count], Meta(description="tokens between the eot token and the answer")] = field(
        default_factory=list
    )
    projection: Annotated[bool | None, Meta(description="whether a projection stands between two thoughts")] = None
    n_thoughts: Annotated[int, Meta(ge=1, le=10_000, description="thoughts that the model is trained to feed back")] = (
        CODI_THOUGHTS
    )
    question_template: Annotated[str, Meta(description="what the model reads, {question} for the question")] = (
        "{question}"
    )
    answer_template: Annotated[str, Meta(description="how the model says its answer, {answer} for the answer")] = (
        "The answer is: {answer}"
    )
    layout: Annotated[str | None, Meta(description="layout of the checkpoint that it was loaded from")] = None


def check_ids(thoughts: Thoughts, n_tokens: int, where: str) -> None:
    """Raises InputError if a token is beyond the model's `n_tokens`, or a template has no place for its text."""
    ids = {"bot_token_id": [thoughts.bot_token_id], "eot_token_id": [thoughts.eot_token_id]}
    ids |= {"before_bot": list(thoughts.before_bot), "after_eot": list(thoughts.after_eot)}
    for key, tokens in ids.items():
        if beyond := [token for token in tokens if token is not None and token >= n_tokens]:
            raise InputError(f"{where}: {key} is {beyond[0]}, and the model has tokens 0 to {n_tokens - 1}")
    check_template(thoughts.question_template, where)


def check_template(template: str, where: str) -> None:
    """Raises InputError if `template` has no place for the question."""
    if "{question}" not in template:
        raise InputError(f"{where}: the question template has no {{question}}: '{template[:80]}'")
