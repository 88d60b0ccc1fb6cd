"""CODI's map from the last hidden state to the next input."""

from collections import OrderedDict

from torch import Tensor, nn

from thought_saes.models.weights import check_keys, shapes


def thought_projection(input_dim: int, hidden_dim: int) -> nn.Sequential:
    """CODI's map from the last hidden state to the next input; its keys are those of the checkpoint's `prj`."""
    return nn.Sequential(
        OrderedDict(
            {
                "0": nn.Identity(),  # CODI's dropout, off outside training
                "1": nn.Linear(input_dim, hidden_dim),
                "2": nn.GELU(),
                "3": nn.Linear(hidden_dim, input_dim),
                "ln": nn.LayerNorm(input_dim, eps=1e-5),
            }
        )
    )


def load_projection(state: dict[str, Tensor], input_dim: int, source: str) -> nn.Sequential:
    """The projection with the weights `state`. Raises InputError if they are not those of a projection."""
    first = state.get("1.weight")
    projection = thought_projection(input_dim, len(first) if first is not None else 1)
    check_keys(shapes(state), shapes(projection.state_dict()), f"the projection of {source}", "a CODI projection")
    projection.load_state_dict(state)
    return projection
