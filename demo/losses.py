"""What the demo model is trained on: a batch of problems, and CODI's losses with every step supervised."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache

from demo.problems import Problem
from thought_saes.models.reasoner import CODI_THOUGHTS, LatentReasoner

PAD, BOS, EOS, BOT, EOT = SPECIAL = ("<pad>", "<bos>", "<eos>", "<bot>", "<eot>")
ANSWER = "####"


class Batch(NamedTuple):
    """Token ids of some problems."""

    question: Tensor  # (batch, question_length), padded on the left
    worked: Tensor  # (batch, worked_length): worked steps, answer and end, padded on the right
    answer: Tensor  # (batch, 3): '####', the number, the end
    n_steps: Tensor  # (batch,)
    values: Tensor  # (batch, n_thoughts): the number after step p, of shorter problems the answer


class Losses(NamedTuple):
    teacher: Tensor
    student: Tensor
    steps: Tensor
    distillation: Tensor
    solved: Tensor  # (batch,) bool: the student's number is right


class Encoder:
    """Problems as batches of token ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: dict[str, int] = tokenizer.get_vocab()

    def values(self, problem: Problem) -> list[int]:
        """The number after each step; the last one for thoughts that have no step left."""
        reached = [self.ids[str(step.value)] for step in problem.steps[:CODI_THOUGHTS]]
        return reached + reached[-1:] * (CODI_THOUGHTS - len(reached))

    def batch(self, some: list[Problem]) -> Batch:
        questions = self.tokenizer([problem.question for problem in some])["input_ids"]
        answers = [[self.ids[ANSWER], self.ids[str(problem.answer)], self.ids[EOS]] for problem in some]
        texts = [" ".join(problem.worked_steps()) for problem in some]
        steps = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        worked = [tokens + answer for tokens, answer in zip(steps, answers, strict=True)]
        length = max(map(len, questions))
        return Batch(
            torch.tensor([[self.ids[PAD]] * (length - len(question)) + question for question in questions]),
            nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in worked], True, self.ids[PAD]),
            torch.tensor(answers),
            torch.tensor([len(problem.steps) for problem in some]),
            torch.tensor([self.values(problem) for problem in some]),
        )


def codi_losses(reasoner: LatentReasoner, batch: Batch) -> Losses:
    """Both tasks on one batch; the keys and values of the question, which both begin with, are computed once."""
    config = reasoner.model.config
    pad, n_question = config.pad_token_id, batch.question.shape[1]
    tokens = torch.cat([batch.question, batch.worked], dim=1)
    mask = (tokens != pad).long()
    where = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=config)
    forward = partial(reasoner.forward, cache, output_hidden_states=True)
    taught = forward(mask, where, input_ids=tokens)
    logits = reasoner.model.lm_head(taught.last_hidden_state[:, n_question - 1 : -1])
    teacher = F.cross_entropy(logits.flatten(0, 1), batch.worked.flatten(), ignore_index=pad)

    cache.crop(-batch.worked.shape[1])
    mask, next_place = mask[:, :n_question], where[:, n_question - 1 : n_question] + 1
    ones = mask.new_ones(len(mask), 1)
    inputs, thoughts = {"input_ids": reasoner.bot_token_id * ones}, []
    for _ in range(CODI_THOUGHTS + 1):
        mask = torch.cat([mask, ones], dim=1)
        thought = forward(mask, next_place, **inputs).last_hidden_state
        thoughts.append(thought)
        inputs = {"inputs_embeds": reasoner.feed_back(thought)}
        next_place = next_place + 1
    said = torch.cat([reasoner.eot_token_id * ones, batch.answer[:, :2]], dim=1)
    mask = torch.cat([mask, ones.expand(-1, 3)], dim=1)
    answered = forward(mask, next_place + torch.arange(3), input_ids=said)
    logits = reasoner.model.lm_head(answered.last_hidden_state)
    student = F.cross_entropy(logits.flatten(0, 1), batch.answer.flatten())

    logits_of_steps = reasoner.model.lm_head(torch.cat(thoughts[1:], dim=1))
    steps = F.cross_entropy(logits_of_steps.flatten(0, 1), batch.values.flatten())

    rows = torch.arange(len(tokens))
    before_answer = (batch.worked != pad).sum(1) - 3 + n_question
    distances = []
    for theirs, ours in zip(taught.hidden_states[1:], answered.hidden_states[1:], strict=True):
        target = theirs[rows, before_answer].detach()
        distances.append(F.smooth_l1_loss(ours[:, 1], target) / target.std())
    return Losses(teacher, student, steps, torch.stack(distances).mean(), logits[:, 1].argmax(-1) == batch.answer[:, 1])
