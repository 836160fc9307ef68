"""Autologging of PyTorch Lightning, under both of its module names: `Trainer.fit`, with a callback for each epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from everloop.tracking.autologging.sessions import FitSession, guarded, logged

if TYPE_CHECKING:
    from types import ModuleType

    from everloop.tracking.autologging.attribute_patches import Patches


def patch(module: ModuleType, patches: Patches) -> None:
    trainer = module.Trainer

    class EpochLogger(module.Callback):  # type: ignore[name-defined,misc]
        def __init__(self, session: FitSession) -> None:
            super().__init__()
            self.session = session
            self.last: dict[str, Any] = {}
            self.validated = False

        def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
            self.validated = not getattr(trainer, "sanity_checking", False)

        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            # The validation of this epoch has ended before. In distributed training, only the first process logs.
            if getattr(trainer, "is_global_zero", True):
                with guarded():
                    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
                    # In epochs without validation, `callback_metrics` still has the values of the last validation.
                    new = {
                        name: value for name, value in metrics.items() if self.validated or value != self.last.get(name)
                    }
                    self.session.metrics(new, step=int(trainer.current_epoch))
                    self.last, self.validated = metrics, False

    def before(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        model = args[1] if len(args) > 1 else kwargs.get("model")
        session.params({"max_epochs": args[0].max_epochs, **dict(getattr(model, "hparams", None) or {})})
        session.tags(estimator=type(model).__name__, estimator_module="lightning")
        args[0].callbacks.append(EpochLogger(session))

    def after(session: FitSession, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        args[0].callbacks[:] = [one for one in args[0].callbacks if not isinstance(one, EpochLogger)]

    new = logged(trainer.fit, lambda _: "lightning", before, after)
    patches.replace(trainer, "fit", new)
