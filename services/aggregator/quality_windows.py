"""Quality windows: the figures of a window that a tick closed, as the output that readers get. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from services.aggregator.aggregates import FIGURES, WindowKey
from services.aggregator.fold import Output, cause_id
from shared.contracts.events.quality import QualityWindow
from shared.contracts.topics import QUALITY


def window_output(
    key: WindowKey,
    sums: Sequence[float],
    partition: int,
    offset: int,
    time: datetime,
) -> Output:
    """The output of a window.

    Args:
        key: the window.
        sums: its figures, in the order of FIGURES.
        partition: whose they are.
        offset: of the tick, which with the window is the output's id.
        time: stream time.
    """
    window, start, version = key
    event = QualityWindow.model_validate(
        {
            "version": version,
            "window": window,
            "start": start,
            "partition": partition,
            **dict(zip(FIGURES, sums, strict=True)),
        }
    )
    name = f"{version}+{window}+{start}+{partition}"
    return Output(QUALITY, name, event, cause_id("quality", name, str(offset)), time)
