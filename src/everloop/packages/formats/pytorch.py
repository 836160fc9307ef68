"""PyTorch models: a module as weights (safetensors) and code, or a program from `torch.export`.

weights.safetensors, module.pkl    the tensors by name; the module without them, which is code
program.pt2                        the exported program, which needs none of the user's classes

Both load only when signed: a module is code, and `torch.export.load` unpickles its files.
Sources: safetensors; PyTorch, "torch.export", "PT2 Archive".
"""

from __future__ import annotations

import io
import json
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from everloop.errors import CorruptionError, MissingExtraError
from everloop.packages.formats.input_tables import TableKind
from everloop.packages.formats.neural_networks import NetworkModel
from everloop.training.user_code import dump_code, load_code

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from everloop.training.trained_model import Files, Task

_STATE, _WEIGHTS, _MODULE, _PROGRAM = "torch.json", "weights.safetensors", "module.pkl", "program.pt2"


class TorchModel(NetworkModel):
    """A module or an exported program, run in inference mode."""

    format = "torch"
    final = "Add a last layer: torch.nn.Sequential(model, torch.nn.Sigmoid()), or Softmax(dim=1) for several classes."

    def __init__(self, module: Any, blobs: Mapping[str, bytes], table: TableKind, task: Task) -> None:
        super().__init__(table, task)
        self.module, self._blobs = module, dict(blobs)

    def forward(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        torch: Any = import_module("torch")
        with torch.inference_mode():
            found: NDArray[Any] = self.module(torch.from_numpy(matrix)).numpy()
        return found

    def to_files(self) -> Files:
        state = {"version": 1, "task": self.task, "table": self.table.to_json()}
        return {**self._blobs, _STATE: json.dumps(state, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Self:
        try:
            state = json.loads(files[_STATE])
            task, table = state["task"], TableKind.from_json(state["table"])
            blobs = {name: files[name] for name in ((_PROGRAM,) if _PROGRAM in files else (_WEIGHTS, _MODULE))}
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(
                f"These files are not a PyTorch model: {error!r}.", help="Package the model again."
            ) from error
        return cls(_load(blobs), blobs, table, task)

    def __reduce__(self) -> tuple[object, ...]:
        return _reread, (self.to_files(),)


def is_torch(model: Any) -> bool:
    """Whether it is a module or an exported program. Does not import PyTorch."""
    import sys

    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, (torch.nn.Module, torch.export.ExportedProgram))


def adopt_torch(model: Any, table: TableKind, task: Task) -> TorchModel:
    """Wrap a module, in evaluation mode, or an exported program.

    Raises:
        MissingExtraError: safetensors is not installed.
    """
    torch: Any = import_module("torch")
    if isinstance(model, torch.export.ExportedProgram):
        out = io.BytesIO()
        torch.export.save(model, out)
        blobs = {_PROGRAM: out.getvalue()}
    else:
        blobs = _dump(model)
    # The stored copy predicts from here on, so that further training of the original does not change it.
    return TorchModel(_load(blobs), blobs, table, task)


def _dump(module: Any) -> dict[str, bytes]:
    import copy

    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    }
    # On the device `meta` a tensor has a shape but no numbers.
    bare = copy.deepcopy(module).eval().to("meta")
    return {_WEIGHTS: _safetensors().save(tensors), _MODULE: dump_code(bare)}


def _load(blobs: Mapping[str, bytes]) -> Any:
    try:
        torch: Any = import_module("torch")
    except ImportError:
        raise MissingExtraError.of("A PyTorch model", "torch", "torch") from None
    if _PROGRAM in blobs:
        return torch.export.load(io.BytesIO(blobs[_PROGRAM])).module()
    module = load_code(blobs[_MODULE])
    for name, tensor in _safetensors().load(blobs[_WEIGHTS]).items():
        owner, _, leaf = name.rpartition(".")
        submodule = module.get_submodule(owner)
        if leaf in submodule._parameters:
            submodule._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            submodule._buffers[leaf] = tensor
    return module.eval()


def _safetensors() -> Any:
    try:
        return import_module("safetensors.torch")
    except ImportError:
        raise MissingExtraError.of("A PyTorch model", "safetensors", "torch") from None


def _reread(files: Files) -> TorchModel:
    return TorchModel.from_files(files)
