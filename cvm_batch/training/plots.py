"""The report's figures as Plotly describes them: data and layout, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvm_batch.training.evaluation import Evaluation
from cvm_batch.training.loop import Epoch

_LAYOUT: dict[str, Any] = {
    "margin": {"l": 70, "r": 20, "t": 30, "b": 60},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "legend": {"orientation": "h", "y": -0.2},
}
Figure = dict[str, Any]


def plotly_script() -> str:
    """Plotly's own JavaScript, to stand in the page."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def curves(epochs: Sequence[Epoch]) -> Figure:
    """Loss on both sides, and validation's figures, by epoch."""
    numbers = [epoch.number for epoch in epochs]

    def line(name: str, values: list[float], axis: str) -> Figure:
        return {"x": numbers, "y": values, "name": name, "mode": "lines", "yaxis": axis}

    return {
        "data": [
            line("loss in training", [epoch.loss for epoch in epochs], "y"),
            line("loss in validation", [epoch.validation_loss for epoch in epochs], "y"),
            line("validation accuracy", [e.validation_accuracy for e in epochs], "y2"),
            line("validation macro F1", [e.validation_macro_f1 for e in epochs], "y2"),
        ],
        "layout": _LAYOUT
        | {
            "xaxis": {"title": {"text": "epoch"}},
            "yaxis": {"title": {"text": "loss"}, "rangemode": "tozero"},
            "yaxis2": {
                "title": {"text": "share"},
                "overlaying": "y",
                "side": "right",
                "range": [0, 1],
                "dtick": 0.2,
                "showgrid": False,
            },
            "margin": _LAYOUT["margin"] | {"r": 70},
        },
    }


def confusion(evaluation: Evaluation) -> Figure:
    """True classes in rows, predicted ones in columns; shares of a row by colour."""
    counts = evaluation.metrics.confusion
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = list(evaluation.class_names)
    return {
        "data": [
            {
                "type": "heatmap",
                "z": shares.round(4).tolist(),
                "x": names,
                "y": names,
                "text": counts.tolist(),
                "texttemplate": "%{text}",
                "colorscale": [[0, "#f7fbff"], [1, "#2171b5"]],
                "zmin": 0,
                "zmax": 1,
                "hovertemplate": "%{y} taken for %{x}: %{text} cells, %{z:.1%}<extra></extra>",
            }
        ],
        "layout": _LAYOUT
        | {
            "xaxis": {"title": {"text": "taken for"}, "type": "category"},
            "yaxis": {
                "title": {"text": "true class"},
                "autorange": "reversed",
                "type": "category",
                "automargin": True,
            },
        },
    }


def calibration(evaluation: Evaluation) -> Figure:
    """Share of right answers by confidence, beside the diagonal."""
    rows = evaluation.calibration()
    return {
        "data": [
            {
                "x": [0, 1],
                "y": [0, 1],
                "mode": "lines",
                "name": "as sure as right",
                "line": {"dash": "dot"},
            },
            {
                "x": [row["confidence"] for row in rows],
                "y": [row["right"] for row in rows],
                "text": [f"{row['cells']} cells" for row in rows],
                "mode": "lines+markers",
                "name": "this network",
            },
        ],
        "layout": _LAYOUT
        | {
            "xaxis": {"title": {"text": "confidence"}, "range": [0, 1]},
            "yaxis": {"title": {"text": "share right"}, "range": [0, 1]},
        },
    }


def feature_cloud(
    places: NDArray[np.float32],
    evaluation: Evaluation,
    chosen: NDArray[np.int64],
    thumbnails: Sequence[str],
) -> Figure:
    """A point for each of the ``chosen`` cells at ``places`` [n, 3], by true class; those
    taken for another class are crosses. Each carries its picture, to be shown beside it."""
    traces = []
    labels, predicted = evaluation.labels[chosen], evaluation.predicted[chosen]
    for label, name in enumerate(evaluation.class_names):
        of_class = np.flatnonzero(labels == label).tolist()
        x, y, z = places[of_class].T.round(3).tolist() if len(of_class) else ([], [], [])
        traces.append(
            {
                "type": "scatter3d",
                "mode": "markers",
                "name": name,
                "x": x,
                "y": y,
                "z": z,
                "text": [
                    f"{name}, taken for {evaluation.class_names[predicted[at]]}" for at in of_class
                ],
                "customdata": [thumbnails[at] for at in of_class],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "size": 4,
                    "symbol": ["circle" if predicted[at] == label else "x" for at in of_class],
                },
            }
        )
    return {"data": traces, "layout": _LAYOUT | {"height": 600}}


def cost_plot(points: Sequence[tuple[str, float, float]], title: str) -> Figure:
    """Accuracy over a cost on a logarithmic axis, a labelled point for each model."""
    return {
        "data": [
            {
                "x": [cost for _, cost, _ in points],
                "y": [accuracy for _, _, accuracy in points],
                "text": [name for name, _, _ in points],
                "mode": "markers+text",
                "textposition": "top center",
                "marker": {"size": 9},
            }
        ],
        "layout": _LAYOUT
        | {
            "xaxis": {"title": {"text": title}, "type": "log"},
            "yaxis": {"title": {"text": "accuracy"}, "tickformat": ".0%"},
        },
    }
