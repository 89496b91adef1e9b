"""The dashboard in `docs/` shows what the server exports, and all of it."""

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quire.server.engine.metrics import EngineMetrics, render

DASHBOARD = json.loads((Path(__file__).parents[3] / "docs/grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def exported() -> tuple[set[str], set[str]]:
    """Names of families, and of their series."""
    metrics = EngineMetrics("tiny")
    metrics.note_abort()  # a counter with a label of its own shows nothing before
    families = list(text_string_to_metric_families(render([metrics]).decode()))
    return {family.name for family in families}, {sample.name for family in families for sample in family.samples}


def asked() -> set[str]:
    """Names of series in the dashboard."""
    return set(re.findall(r"quire:\w+", json.dumps(DASHBOARD)))


def test_every_metric_of_the_dashboard_exists():
    assert asked() <= exported()[1]


def test_every_metric_is_on_the_dashboard():
    families, _ = exported()
    missing = {family for family in families if not any(name.startswith(family) for name in asked())}
    assert not missing


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panels_ask_for_the_chosen_model_and_have_room(panel):
    for target in panel["targets"]:
        names, filters = re.findall(r"quire:\w+", target["expr"]), target["expr"].count('{model_name=~"$model"}')
        assert names and len(names) == filters
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    place = panel["gridPos"]
    assert place["x"] + place["w"] <= 24
    for other in PANELS:
        at = other["gridPos"]
        apart = (
            place["x"] + place["w"] <= at["x"] or at["x"] + at["w"] <= place["x"]
            or place["y"] + place["h"] <= at["y"] or at["y"] + at["h"] <= place["y"]
        )  # fmt: skip
        assert other is panel or apart, other["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
