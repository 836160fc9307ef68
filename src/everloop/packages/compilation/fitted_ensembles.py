"""Read the trees or the weights of fitted estimators."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from everloop.packages.compilation.pipelines import (
    InputContext,
    Lookup,
    NotCompilableError,
    Number,
    Output,
    append_op,
    tabulate,
)
from everloop.packages.compilation.preprocessing import DOUBLE_MAX
from everloop.packages.compilation.tree_ensembles import Tree, TreeNode, build_tree, model_text
from everloop.training.class_decisions import PLAIN, Rule

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from everloop.training.trained_model import Task

    Array = NDArray[np.float64]

STRICT = Rule(strict=True)
"""Two classes: the second if its score is above one half, like `argmax` and `decision > 0`."""
Link = Literal["none", "logit", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Trees:
    """LightGBM text whose predictions, divided by `divisor`, are the scores."""

    text: str
    outputs: list[Output]
    divisor: int = 1
    rule: Rule = STRICT


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A linear model: weights of shape (floats, outputs), bias of shape (outputs,)."""

    weights: Array
    bias: Array
    link: Link
    outputs: list[Output]
    rule: Rule = STRICT


def read_estimator(estimator: Any, outputs: list[Output], task: Task, context: InputContext) -> Trees | Weights:
    """Read the estimator that takes `outputs`.

    Raises:
        NotCompilableError: its kind or one of its settings is not supported.
    """
    name, library = type(estimator).__name__, type(estimator).__module__.partition(".")[0]
    if library == "lightgbm" and name in ("LGBMClassifier", "LGBMRegressor"):
        return _lightgbm(estimator, outputs, context)
    if library == "xgboost" and name in ("XGBClassifier", "XGBRegressor"):
        return _xgboost(estimator, outputs, task)
    if library == "catboost" and name in ("CatBoostClassifier", "CatBoostRegressor"):
        return _catboost(estimator, outputs, task)
    if library == "sklearn":
        if name.startswith("HistGradientBoosting"):
            return _hist_boosting(estimator, outputs, task, context)
        if name in _FORESTS:
            return _forest(estimator, outputs, task)
        if name in ("GradientBoostingClassifier", "GradientBoostingRegressor"):
            return _gradient_boosting(estimator, outputs, task)
        if name in _LINEAR:
            return _linear(estimator, outputs, task)
    raise NotCompilableError(f"the estimator is a {name}")


_FORESTS = {
    "RandomForestClassifier",
    "RandomForestRegressor",
    "ExtraTreesClassifier",
    "ExtraTreesRegressor",
    "DecisionTreeClassifier",
    "DecisionTreeRegressor",
}
_LINEAR = {
    "LogisticRegression",
    "LogisticRegressionCV",
    "SGDClassifier",
    "LinearRegression",
    "Ridge",
    "RidgeCV",
    "Lasso",
    "LassoCV",
    "ElasticNet",
    "ElasticNetCV",
    "SGDRegressor",
    "HuberRegressor",
    "BayesianRidge",
}


def _linear(estimator: Any, outputs: list[Output], task: Task) -> Weights:
    if type(estimator).__name__ == "SGDClassifier" and (estimator.loss != "log_loss" or task != "binary"):
        raise NotCompilableError("the SGDClassifier has another loss than log_loss, or several classes")
    weights = np.atleast_2d(np.asarray(estimator.coef_, dtype=np.float64)).T
    bias = np.broadcast_to(np.atleast_1d(np.asarray(estimator.intercept_, dtype=np.float64)), weights.shape[1:])
    link: Link = {"regression": "none", "binary": "logit", "multiclass": "softmax"}[task]  # type: ignore[assignment]
    return Weights(
        weights=np.ascontiguousarray(weights),
        bias=bias.copy(),
        link=link,
        outputs=append_op(outputs, ("known",), ("finite",)),
    )


def _hist_boosting(estimator: Any, outputs: list[Output], task: Task, context: InputContext) -> Trees:
    objectives = {"HalfBinomialLoss": "binary sigmoid:1", "HalfSquaredError": "", "AbsoluteError": ""}
    loss = type(estimator._loss).__name__
    width = estimator.n_trees_per_iteration_
    objectives |= {"HalfMultinomialLoss": f"multiclass num_class:{width}", "PinballLoss": ""}
    objectives |= {"HalfPoissonLoss": "poisson", "HalfGammaLoss": "poisson"}
    if loss not in objectives:
        raise NotCompilableError(f"the loss {loss} is not supported")
    if estimator._preprocessor is not None:
        outputs = _hist_categories(estimator, outputs, context)
    known = {}
    # In the column order after the booster's own encoding, which the trees use.
    coded = estimator._is_categorical_remapped
    if coded is not None and coded.any():
        bitsets, positions = estimator._bin_mapper.make_known_categories_bitsets()
        known = {int(feature): _codes_of(bitsets[positions[feature]]) for feature in np.flatnonzero(coded)}
        outputs = [
            _coded(output, max(known[index], default=0) + 1) if index in known else output
            for index, output in enumerate(outputs)
        ]
    base = np.asarray(estimator._baseline_prediction, dtype=np.float64).reshape(-1)
    trees: list[Tree] = []
    for iteration, predictors in enumerate(estimator._predictors):
        for index, predictor in enumerate(predictors):
            tree = build_tree(_hist_node(predictor, known))
            if iteration == 0:
                # Added to the first leaves, because the original starts its sum with it too.
                tree.leaves = [float(base[index]) + value for value in tree.leaves]
            trees.append(tree)
    text = model_text(trees, width=len(outputs), outputs=width, objective=objectives[loss])
    if any(threshold > DOUBLE_MAX for tree in trees for threshold in tree.threshold):
        # A split between missing and other values has the threshold infinity, which the text format cannot hold.
        outputs = append_op(outputs, ("bounded",))
    return Trees(text=text, outputs=outputs)


def _hist_node(predictor: Any, known: dict[int, frozenset[int]]) -> Any:
    nodes = predictor.nodes

    def node(at: int) -> TreeNode:
        data = nodes[at]
        if data["is_leaf"]:
            return TreeNode(leaf=float(data["value"]), count=float(data["count"]))
        feature, missing_left = int(data["feature_idx"]), bool(data["missing_go_to_left"])
        chosen = None
        if data["is_categorical"]:
            chosen = _codes_of(predictor.raw_left_cat_bitsets[data["bitset_idx"]])
            if missing_left:
                # Missing and unknown values share the first code after the known ones.
                chosen |= {max(known[feature], default=0) + 1}
        return TreeNode(
            feature=feature,
            threshold=float(data["num_threshold"]),
            missing_left=missing_left,
            categories=chosen,
            left=int(data["left"]),
            right=int(data["right"]),
            count=float(data["count"]),
        )

    return node


def _hist_categories(estimator: Any, outputs: list[Output], context: InputContext) -> list[Output]:
    """Apply the booster's own encoding, which puts categories first, as codes."""
    preprocessor = estimator._preprocessor
    indices = preprocessor._transformer_to_input_indices
    found: list[Output] = []
    for name, transformer, _ in preprocessor.transformers_:
        chosen = [outputs[index] for index in indices.get(name, ())]
        if chosen:
            found.extend(tabulate([transformer], chosen, context) if name == "encoder" else chosen)
    return found


def _coded(output: Output, spare: int) -> Output:
    """Map categories to codes; nulls and unknown categories get the spare code."""
    if not isinstance(output, Lookup):
        raise NotCompilableError("a categorical column of the booster is a number")

    def code(value: float | None) -> float | None:
        return None if value is None else float(spare) if value != value or value < 0 else value

    values = {key: float(code(value) or 0.0) for key, value in output.values.items()}
    return Lookup(source=output.source, values=values, null=code(output.null), unseen=code(output.unseen))


def _codes_of(bitset: Any) -> frozenset[int]:
    words = [int(word) for word in np.asarray(bitset).reshape(-1)]
    return frozenset(32 * index + bit for index, word in enumerate(words) for bit in range(32) if word >> bit & 1)


def _forest(estimator: Any, outputs: list[Output], task: Task) -> Trees:
    members = list(getattr(estimator, "estimators_", [estimator]))
    takes_nulls = members[0].__sklearn_tags__().input_tags.allow_nan
    leaf_values = [member.tree_.value for member in members]
    if any(values.shape[1] != 1 for values in leaf_values):
        raise NotCompilableError("it predicts several targets")
    if task != "regression" and not all(np.allclose(values.sum(axis=2), 1.0) for values in leaf_values):
        # Leaves hold the shares of the classes; in older versions they hold counts.
        leaf_values = [values / values.sum(axis=2, keepdims=True) for values in leaf_values]
    classes = 1 if task != "multiclass" else len(estimator.classes_)
    if task == "binary" and not all(((values == 0.0) | (values == 1.0)).all() for values in leaf_values):
        # With mixed leaves, both sums are rounded separately, and the larger one decides a tie.
        classes = 2
    trees = []
    for member, values in zip(members, leaf_values, strict=True):
        for index in range(classes):
            column = index if classes > 1 else values.shape[2] - 1
            trees.append(build_tree(_sklearn_node(member.tree_, values[:, 0, column])))
    return Trees(
        text=model_text(trees, width=len(outputs), outputs=classes),
        outputs=append_op(outputs, *([] if takes_nulls else [("known",)]), ("narrow",), ("single",)),
        divisor=len(members),
    )


def _gradient_boosting(estimator: Any, outputs: list[Output], task: Task) -> Trees:
    base = np.asarray(estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_), dtype=np.float32)))
    if estimator.init is not None and estimator.init != "zero":
        raise NotCompilableError("it starts from another estimator")
    if task != "regression" and estimator.loss != "log_loss":
        raise NotCompilableError(f"the loss {estimator.loss} is not supported")
    members = estimator.estimators_
    width = members.shape[1]
    trees = []
    for iteration in range(len(members)):
        for index in range(width):
            fitted = members[iteration, index].tree_
            tree = build_tree(_sklearn_node(fitted, fitted.value[:, 0, 0] * estimator.learning_rate))
            if iteration == 0:
                tree.leaves = [float(base[0, index]) + value for value in tree.leaves]
            trees.append(tree)
    objective = {"binary": "binary sigmoid:1", "multiclass": f"multiclass num_class:{width}", "regression": ""}[task]
    return Trees(
        text=model_text(trees, width=len(outputs), outputs=width, objective=objective),
        outputs=append_op(outputs, ("known",), ("narrow",), ("single",)),
        # Its `predict` compares `decision >= 0`, unlike all others.
        rule=PLAIN,
    )


def _sklearn_node(tree: Any, values: Any) -> Any:
    missing = getattr(tree, "missing_go_to_left", None)
    left, right, feature, threshold = tree.children_left, tree.children_right, tree.feature, tree.threshold
    rows = tree.weighted_n_node_samples

    def node(at: int) -> TreeNode:
        if left[at] < 0:
            return TreeNode(leaf=float(values[at]), count=float(rows[at]))
        return TreeNode(
            feature=int(feature[at]),
            threshold=float(threshold[at]),
            missing_left=bool(missing[at]) if missing is not None else False,
            left=int(left[at]),
            right=int(right[at]),
            count=float(rows[at]),
        )

    return node


def _catboost(estimator: Any, outputs: list[Output], task: Task) -> Trees:
    from everloop.packages.compilation.symmetric_trees import catboost_trees

    trees, width = catboost_trees(estimator, task)
    objective = {"binary": "binary sigmoid:1", "multiclass": f"multiclass num_class:{width}", "regression": ""}[task]
    text = model_text(trees, width=len(outputs), outputs=width, objective=objective)
    border = estimator.get_probability_threshold() if task == "binary" else None
    rule = STRICT if border is None else Rule(threshold=float(border), strict=True)
    return Trees(text=text, outputs=append_op(outputs, ("single",)), rule=rule)


def _xgboost(estimator: Any, outputs: list[Output], task: Task) -> Trees:
    booster = estimator.get_booster()
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective, boosting = learner["objective"]["name"], learner["gradient_booster"]
    if boosting["name"] != "gbtree":
        raise NotCompilableError(f"its booster is {boosting['name']}")
    known = {"binary:logistic": "binary sigmoid:1", "reg:squarederror": "", "multi:softprob": "multiclass num_class:{}"}
    if objective not in known or estimator.missing == estimator.missing:
        raise NotCompilableError(f"the objective {objective} or its marker for nulls is not supported")
    width = max(1, int(learner["learner_model_param"]["num_class"]))
    text = str(learner["learner_model_param"]["base_score"]).strip("[]")
    base = [float(part) for part in text.split(",")]
    base = base if len(base) == width else base * width
    if objective == "binary:logistic":
        base = [float(np.log(value / (1 - value))) for value in base]
    best = getattr(estimator, "best_iteration", None) if booster.attributes().get("best_iteration") else None
    by_class: list[list[Tree]] = [[] for _ in range(width)]
    rounds = boosting["model"].get("iteration_indptr")
    end = len(boosting["model"]["trees"]) if best is None or not rounds else int(rounds[int(best) + 1])
    for data, group in list(zip(boosting["model"]["trees"], boosting["model"]["tree_info"], strict=True))[:end]:
        if any(data["split_type"]):
            raise NotCompilableError("it has its own categorical splits")
        tree = build_tree(_xgboost_node(data))
        if not by_class[group]:
            tree.leaves = [base[group] + value for value in tree.leaves]
        by_class[group].append(tree)
    return Trees(
        text=model_text(
            [tree for iteration in zip(*by_class, strict=True) for tree in iteration],
            width=len(outputs),
            outputs=width,
            objective=known[objective].format(width),
        ),
        # XGBoost also turns numbers that do not fit into single precision into infinity, above every threshold.
        outputs=append_op(outputs, ("single",)),
    )


def _xgboost_node(data: dict[str, Any]) -> Any:
    def node(at: int) -> TreeNode:
        value = np.float32(data["split_conditions"][at])
        if data["left_children"][at] < 0:
            return TreeNode(leaf=float(value), count=1000.0 * data["sum_hessian"][at])
        return TreeNode(
            feature=int(data["split_indices"][at]),
            threshold=float(np.nextafter(value, np.float32(-np.inf))),
            missing_left=bool(data["default_left"][at]),
            left=int(data["left_children"][at]),
            right=int(data["right_children"][at]),
            count=1000.0 * data["sum_hessian"][at],
        )

    return node


def _lightgbm(estimator: Any, outputs: list[Output], context: InputContext) -> Trees:
    booster = estimator.booster_
    objective = str(estimator.objective_)
    if callable(estimator.objective) or objective.startswith("none"):
        raise NotCompilableError("its objective is a function")
    codes = booster.pandas_categorical or []
    waiting = iter(codes)
    coded: list[Output] = []
    for output in outputs:
        column = context.table.columns[output.source]
        if isinstance(output, Number) and not output.ops and column.pandas == "category":
            values = {value: float(code) for code, value in enumerate(next(waiting))}
            coded.append(Lookup(source=output.source, values=values, null=float("nan"), unseen=float("nan")))
        else:
            coded.append(output)
    return Trees(text=booster.model_to_string(), outputs=coded)


__all__ = ["Link", "Trees", "Weights", "read_estimator"]
