"""The alerts and the dashboard in deploy/ ask for metrics that exist, with labels that they have."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics import Told, WorkerMetrics
from duepost.web.metrics import written
from models.metrics import Gauges
from models.rates import RateState

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def scraped() -> Mapping[str, frozenset[str]]:
    """The name of each sample there is, and its labels."""
    counted = WorkerMetrics()
    counted.concluded("email", "welcome", "default", [Told("dot", "sent", "sent")], seconds=1, late=1)
    at = datetime(2026, 11, 27, tzinfo=UTC)
    rate = RateState("default", "gmail.com", 5.0, 3, at, None, None, 5.0, None, None, None, 0, 0, None)
    gauges = Gauges(
        (("email", "queued", 1),), (("email", 1.0),), (("default", False),), 1, 1.0, 1, False,
        (("ses", "failed", 1),), (rate,),
    )  # fmt: skip
    text = generate_latest(counted.registry).decode() + written(gauges).decode()
    return {
        sample.name: frozenset(sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def queries() -> Iterator[str]:
    """Each query of the dashboard and of the alerts."""
    for panel in json.loads((DEPLOY / "grafana-dashboard.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


@pytest.mark.parametrize("query", list(queries()))
def test_a_query_names_metrics_and_labels_that_exist(query: str) -> None:
    known = scraped()
    names = set(re.findall(r"\bduepost_\w+", query))
    assert names <= known.keys()
    labels = {"job"} if "up{" in query else {"le"}
    for name in names:
        labels |= known[name]
    used = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", query))
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        used |= {each.strip() for each in group.split(",")}
    assert used <= labels


def test_the_dashboard_has_what_grafana_asks_of_one() -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    assert board["schemaVersion"] >= 36
    [source] = board["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        assert panel["type"] in {"stat", "timeseries"}
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${" + source["name"] + "}"}
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells


def test_every_metric_is_explained_on_the_page_with_its_labels() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    rows = dict(re.findall(r"^\| `(duepost_\w+)` \| ([^|]*)\|", page, re.MULTILINE))
    known: dict[str, frozenset[str]] = {}
    for sample, labels in scraped().items():
        if not sample.endswith("_created"):
            name = re.sub(r"_(bucket|count|sum)$", "", sample)
            known[name] = known.get(name, frozenset()) | labels - {"le"}
    assert {name: frozenset(re.findall(r"`(\w+)`", labels)) for name, labels in rows.items()} == known


def test_every_alert_is_explained_on_the_page() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    groups = yaml.safe_load((DEPLOY / "prometheus-alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert set(re.findall(r"^\| `(Duepost\w+)` \|", page, re.MULTILINE)) == alerts
    for group in groups:
        for rule in group["rules"]:
            assert rule["annotations"].keys() == {"summary", "action"}
            assert rule["labels"]["severity"] in {"critical", "warning"}
