"""Answers of an endpoint by row, for tests that follow one prediction."""

from __future__ import annotations

from typing import Any


def by_row(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What `POST /predict` has answered, one dict a row: `id`, `version` as a key, `score`, and `label` or `scores`."""
    rows: list[dict[str, Any]] = []
    for place, prediction in enumerate(body["predictions"]):
        number = body["versions"][place] if "versions" in body else body["version"]
        row: dict[str, Any] = {"id": body["ids"][place], "version": f"{body['model']}@{number}"}
        if "probabilities" not in body:
            row["score"] = prediction
        else:
            probability = body["probabilities"][place]
            many = isinstance(probability, list)
            row |= {"score": max(probability) if many else probability, "label": prediction}
            row |= {"scores": probability} if many else {}
        rows.append(row)
    return rows


__all__ = ["by_row"]
