"""Train the demo model: a small LLaMA that solves `problems.py` in six continuous thoughts, trained as CODI trains.

    python demo/train_demo_model.py [--steps 3200] [--output demo/model]

One model learns two tasks at once (arXiv 2502.21074, section 3): as teacher it writes the worked steps and the answer;
as student it feeds its last hidden state back six times, through a projection, and answers at once. The loss is the
cross-entropy of both, and the smooth-L1 distance between the hidden states of student and teacher at the token before
the answer, at every layer, the teacher's detached and the distance divided by its standard deviation.

To these comes supervision of every step, as in SIM-CoT (arXiv 2509.20317), whose auxiliary decoder is here the model's
own head: from the last hidden state of thought p it has to name the value after step p. Without it the student learned
to use its thoughts too, but more slowly: in a run with a curriculum that waited for nine of ten, it solved
two thirds of the problems of four steps after 2,200 optimizer steps, where this one was at six.

A curriculum adds a step to the problems as soon as the student solves four of five of the longest. The same command
goes on from the last saved state of a killed run; until the learning rate begins to fall, also with another --steps.
"""

import io
import random
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.losses import BOS, BOT, EOS, EOT, PAD, SPECIAL, Encoder, Losses, codi_losses
from demo.problems import Problem, check_steps, make_problem, words
from thought_saes.common.command_line import package_versions, run
from thought_saes.common.errors import InputError
from thought_saes.common.files import only_writer, write_bytes, write_json
from thought_saes.common.flags import check_at_least, check_positive, option, parse_config
from thought_saes.models.projection import thought_projection
from thought_saes.models.reasoner import LatentReasoner

ENOUGH = 0.8  # of the longest problems solved: the curriculum goes on
JUDGED_ON = 1000  # of the longest problems, the last ones seen
HEAD_DIM = 32
DECAY_SHARE = 0.25  # of the steps, at the end, over which the learning rate falls to zero
WARMUP_STEPS = 200
WEIGHT_DECAY = 0.01
GRADIENT_NORM = 1.0  # larger gradients are scaled down to it
SAVE_EVERY = 250


@dataclass(frozen=True)
class DemoConfig:
    steps: int = option(3200, help="optimizer steps")
    batch_size: int = option(128, help="problems per step")
    lr: float = option(1e-3, help="learning rate of AdamW; falls to zero over the last quarter of the steps")
    layers: int = option(2, help="layers of the model: too few to answer without thoughts")
    width: int = option(128, help="width of the residual stream, a multiple of 32")
    max_steps: int = option(6, help="steps of the longest problems")
    seed: int = option(0, help="seed of the weights and of the problems")
    stop_at: float | None = option(None, help="stop once this share of the longest problems is solved: an early state")
    output: Path = option(Path("demo/model"), help="folder for the model")
    training: Path = option(Path("demo/training"), help="folder for the state of an unfinished run")

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", "batch_size", "layers")
        check_at_least(self, 32, "width")
        check_steps(self.max_steps)
        if self.width % HEAD_DIM:
            raise InputError(f"--width must be a multiple of {HEAD_DIM}, not {self.width}")
        check_positive(self, "lr")
        if self.stop_at is not None and not 0 < self.stop_at <= 1:
            raise InputError(f"--stop-at must be above 0 and at most 1, not {self.stop_at}")

    def settings(self) -> dict[str, Any]:
        """What decides how the model comes out; a flag that is left out is not part of it."""
        paths = ("output", "training")
        return {name: value for name, value in asdict(self).items() if name not in paths and value is not None}


def new_reasoner(config: DemoConfig) -> LatentReasoner:
    """A model with random weights."""
    vocabulary = [*SPECIAL, *words()]
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordLevel(ids))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=config.width,
            intermediate_size=3 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // HEAD_DIM,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            pad_token_id=ids[PAD],
            bos_token_id=ids[BOS],
            eos_token_id=ids[EOS],
        )
    )
    return LatentReasoner(
        model,
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS),
        thought_projection(config.width, 4 * config.width),
        ids[BOT],
        ids[EOT],
    )


def learning_rate_factor(step: int, steps: int) -> float:
    """Up, level, and down to zero. Until it falls it does not depend on `steps`."""
    return min(1, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


@dataclass
class Curriculum:
    """How many steps the problems have: half of them as many as the student is up to, the others any fewer."""

    max_steps: int
    longest: int = 1
    solved: deque[bool] = field(default_factory=lambda: deque(maxlen=JUDGED_ON))  # of the longest, the last ones seen
    raised_at: list[int] = field(default_factory=list)  # optimizer steps

    def draw(self, rng: random.Random, n_problems: int) -> list[Problem]:
        """Training problems for the next optimizer step."""
        choices = [*range(1, self.longest), *[self.longest] * max(1, self.longest - 1)]
        return [make_problem(rng, "train", rng.choice(choices)) for _ in range(n_problems)]

    def judge(self, step: int, n_steps: Tensor, solved: Tensor) -> None:
        self.solved.extend(solved[n_steps == self.longest].tolist())
        if self.longest < self.max_steps and len(self.solved) == JUDGED_ON and self.share() >= ENOUGH:
            self.longest += 1
            self.raised_at.append(step)
            self.solved.clear()

    def share(self) -> float:
        return sum(self.solved) / max(1, len(self.solved))


class Training:
    """A training between two steps, and its state on the disk."""

    def __init__(self, config: DemoConfig) -> None:
        self.config, self.path = config, config.training / "state.pt"
        self.reasoner = new_reasoner(config)
        modules = (self.reasoner.model, self.reasoner.projection)
        self.modules = nn.ModuleList([module for module in modules if module is not None]).train().requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
        self.encoder = Encoder(self.reasoner.tokenizer)
        self.curriculum = Curriculum(config.max_steps)
        self.step, self.seconds = 0, 0.0

    def save(self) -> None:
        state = {
            "settings": self.config.settings(),
            "weights": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curriculum": asdict(self.curriculum) | {"solved": list(self.curriculum.solved)},
            "step": self.step,
            "seconds": self.seconds,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self.path, buffer.getvalue())

    def resume(self) -> None:
        """Go on from the state on the disk, if there is one. Raises InputError if it is of another training."""
        if not self.path.exists():
            return
        try:
            state = torch.load(self.path, weights_only=True)
            settings = state["settings"]
        except (UnpicklingError, RuntimeError, EOFError, LookupError, TypeError) as problem:
            raise InputError(f"{self.path} is damaged: remove it to begin anew") from problem
        ours = self.config.settings()
        if state["step"] <= (1 - DECAY_SHARE) * min(settings["steps"], ours["steps"]):
            settings = settings | {"steps": ours["steps"]}
        if settings != ours:
            raise InputError(f"{self.path} is the state of another training ({settings}): finish or remove it")
        self.modules.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        solved = deque(state["curriculum"]["solved"], maxlen=JUDGED_ON)
        self.curriculum = Curriculum(**state["curriculum"] | {"solved": solved})
        self.step, self.seconds = state["step"], state["seconds"]

    def train_step(self) -> Losses:
        """One step on fresh problems, which depend on the seed and the step alone."""
        started = time.perf_counter()
        rng = random.Random(f"{self.config.seed} {self.step}")
        batch = self.encoder.batch(self.curriculum.draw(rng, self.config.batch_size))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * learning_rate_factor(self.step, self.config.steps)
        losses = codi_losses(self.reasoner, batch)
        self.optimizer.zero_grad()
        (losses.teacher + losses.student + losses.steps + losses.distillation).backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), GRADIENT_NORM, error_if_nonfinite=True)
        self.optimizer.step()
        self.step += 1
        self.curriculum.judge(self.step, batch.n_steps, losses.solved)
        self.seconds += time.perf_counter() - started
        return losses

    def early_enough(self) -> bool:
        """Whether --stop-at is reached: judged on the last JUDGED_ON problems of the largest number of steps."""
        curriculum, share = self.curriculum, self.config.stop_at
        judged = curriculum.longest == self.config.max_steps and len(curriculum.solved) == JUDGED_ON
        return share is not None and judged and curriculum.share() >= share

    def run(self) -> None:
        """The steps that are left, with a progress bar; the state is saved as it goes."""
        with tqdm(total=self.config.steps, initial=self.step, unit="step", smoothing=0.05) as bar:
            while self.step < self.config.steps and not self.early_enough():
                losses = self.train_step()
                bar.update()
                if self.step % 10 == 0:
                    bar.set_postfix_str(
                        f"up to {self.curriculum.longest} steps, {self.curriculum.share():.0%} of the longest solved, "
                        f"losses {losses.teacher:.3f} {losses.student:.3f} {losses.steps:.3f} {losses.distillation:.3f}"
                    )
                if self.step % SAVE_EVERY == 0 or self.step == self.config.steps:
                    self.save()


def main() -> int:
    config = parse_config(DemoConfig, __doc__ or "")
    transformers.logging.disable_progress_bar()
    with only_writer(config.training), only_writer(config.output):
        training = Training(config)
        training.resume()
        training.run()
        training.modules.eval().requires_grad_(False)
        training.reasoner.save_pretrained(config.output)
        record = {
            "settings": config.settings(),
            "parameters": sum(weight.numel() for weight in training.modules.parameters()),
            "seconds": training.seconds,
            "curriculum_raised_at": training.curriculum.raised_at,
            "threads": torch.get_num_threads(),
            "versions": package_versions("torch", "transformers"),
        }
        write_json(config.output / "training.json", record)
        training.path.unlink()
    print(f"the model is in {config.output}")
    return 0


if __name__ == "__main__":
    run(main)
