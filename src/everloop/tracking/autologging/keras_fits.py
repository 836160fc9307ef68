"""Autologging of Keras: `Model.fit`, with a callback for each epoch."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import FitSession, guarded, logged

if TYPE_CHECKING:
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches


def patch(module: ModuleType, patches: Patches) -> None:
    model_class = module.Model
    original = model_class.fit
    signature = inspect.signature(original)

    class EpochLogger(module.callbacks.Callback):  # type: ignore[name-defined,misc]
        def __init__(self, session: FitSession) -> None:
            super().__init__()
            self.session = session

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            with guarded():
                self.session.metrics(logs or {}, step=epoch)

    def before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = signature.bind_partial(*args, **kwargs)
        call.apply_defaults()
        options = {name: call.arguments.get(name) for name in ("batch_size", "epochs", "validation_split")}
        optimizer = getattr(args[0], "optimizer", None)
        session.params({**options, "optimizer": type(optimizer).__name__, "loss": getattr(args[0], "loss", None)})
        session.tags(estimator=type(args[0]).__name__, estimator_module="keras")
        if len(args) <= list(signature.parameters).index("callbacks"):
            callbacks = kwargs.get("callbacks") or ()
            several = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
            kwargs["callbacks"] = [*several, EpochLogger(session)]

    def after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        session.metrics({"parameters": args[0].count_params()})

    patches.replace(model_class, "fit", logged(original, lambda model: getattr(model, "name", "keras"), before, after))
