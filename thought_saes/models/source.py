"""Which model runs, where and how, in a form that goes to any process."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from thought_saes.common.machine import choose_device

if TYPE_CHECKING:
    from thought_saes.models.reasoner import LatentReasoner


class ModelSource(NamedTuple):
    """Everything that decides which model runs, where and how: a process on any machine can load it."""

    name: str
    base_model: str | None
    lora_alpha: float
    dtype: str  # of the weights
    device_map: str | None
    device: str  # 'auto' or a torch device; not asked with a device map
    threads: int | None  # on the CPU; None leaves torch's own number
    layout: str | None = None  # None: found by the checkpoint's keys
    n_thoughts: int | None = None  # None: the model's own number
    question_template: str | None = None  # None: the layout's
    trust_remote_code: bool = False

    def absolute(self) -> "ModelSource":
        """The same for a process that was started elsewhere."""

        def resolved(name: str) -> str:
            return str(Path(name).resolve()) if Path(name).exists() else name

        return self._replace(name=resolved(self.name), base_model=self.base_model and resolved(self.base_model))

    def load(self) -> "LatentReasoner":
        """Raises InputError as `choose_device` and `LatentReasoner.load` do."""
        # Not at the top: the reasoner takes transformers, which a script that may do without a model does not wait for.
        from thought_saes.models.hub import quiet_libraries
        from thought_saes.models.reasoner import LatentReasoner

        if self.threads:
            torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        quiet_libraries()
        reasoner = LatentReasoner.load(
            self.name,
            self.base_model,
            self.lora_alpha,
            dtype=getattr(torch, self.dtype),
            device_map=self.device_map,
            layout=self.layout,
            n_thoughts=self.n_thoughts,
            question_template=self.question_template,
            trust_remote_code=self.trust_remote_code,
        )
        return reasoner.to(device if self.device_map is None else reasoner.model.device)
