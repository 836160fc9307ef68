"""Splitting an endpoint's response into rows, for tests that follow a single prediction."""

from __future__ import annotations

from typing import Any


def by_row(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Split a response of `POST /predict` into one dict per row: `id`, `version`, `score`, and `label` or `scores`."""
    rows: list[dict[str, Any]] = []
    for index, prediction in enumerate(body["predictions"]):
        number = body["versions"][index] if "versions" in body else body["version"]
        row: dict[str, Any] = {"id": body["ids"][index], "version": f"{body['model']}@{number}"}
        if "probabilities" not in body:
            row["score"] = prediction
        else:
            probability = body["probabilities"][index]
            multiclass = isinstance(probability, list)
            row |= {"score": max(probability) if multiclass else probability, "label": prediction}
            row |= {"scores": probability} if multiclass else {}
        rows.append(row)
    return rows


__all__ = ["by_row"]
