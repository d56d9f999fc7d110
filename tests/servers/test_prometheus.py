"""The real Prometheus takes what deploy/ has for it, scrapes console and worker, and fires alerts when it should."""

import itertools
import json
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from actors.metrics import MetricsServer, Told, WorkerMetrics
from tests.integration.web.conftest import start
from tests.integration.web.site import Start
from tests.processes import Process
from tests.servers.conftest import need
from tests.servers.install import installed
from tests.unit.test_dashboard import DEPLOY, queries
from tests.unit.test_metrics import free_port
from tests.waiting import wait_until

__all__ = ["start"]

TOKEN = "0123456789abcdef0123"
RULES = "prometheus-alerts.yml"

REFUSED, SENT = (f'duepost_outcomes_total{{outcome="{outcome}"}}' for outcome in ("undeliverable", "sent"))

#: For each alert what makes it fire, a value a minute for half an hour, and what does not.
FIRING: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] = {
    "DuepostConsoleDown": ({'up{job="duepost"}': "0x40"}, {'up{job="duepost"}': "1x40", 'up{job="other"}': "0x40"}),
    "DuepostNoWorkers": ({"duepost_workers": "0x40"}, {"duepost_workers": "1x40"}),
    "DuepostTickStopped": ({"duepost_last_tick_seconds": "0+60x40"}, {"duepost_last_tick_seconds": "40x40"}),
    "DuepostLate": (
        {'duepost_oldest_due_seconds{channel="email"}': "0+60x40", "duepost_paused": "0x40"},
        {'duepost_oldest_due_seconds{channel="email"}': "0+60x40", "duepost_paused": "1x40"},
    ),
    "DuepostPaused": ({"duepost_paused": "1x100"}, {"duepost_paused": "0x100"}),
    "DuepostCircuitOpen": (
        {'duepost_route_circuit_open{route="default"}': "1x40"},
        {'duepost_route_circuit_open{route="default"}': "0x40"},
    ),
    "DuepostWaitsForAPerson": (
        {'duepost_items_pending{channel="email",state="unknown"}': "1x40"},
        {'duepost_items_pending{channel="email",state="scheduled"}': "1x40"},
    ),
    "DuepostDeadLetters": ({"duepost_dead_letters": "1x40"}, {"duepost_dead_letters": "0x40"}),
    "DuepostUndeliverable": ({REFUSED: "0+2x40", SENT: "0+5x40"}, {REFUSED: "0+2x40", SENT: "0+50x40"}),
}


@pytest.fixture(scope="module")
def programs() -> Path:
    """Where `prometheus` and `promtool` are."""
    need("prometheus")
    return installed("prometheus") / "usr" / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What deploy/ has, with a token."""
    for name in ("prometheus.yml", RULES):
        shutil.copy(DEPLOY / name, tmp_path)
    (tmp_path / "duepost.token").write_text(TOKEN + "\n")
    return tmp_path


def promtool(programs: Path, *arguments: str, cwd: Path) -> None:
    done = subprocess.run([programs / "promtool", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_configuration_and_the_alerts_are_taken(programs: Path, folder: Path) -> None:
    promtool(programs, "check", "config", "--lint-fatal", "prometheus.yml", cwd=folder)
    promtool(programs, "check", "rules", "--lint-fatal", RULES, cwd=folder)


def test_each_query_of_the_dashboard_parses(programs: Path, folder: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries())
    ]
    (folder / "queries.yml").write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))
    promtool(programs, "check", "rules", "queries.yml", cwd=folder)


@pytest.mark.parametrize(("alert", "fires"), list(itertools.product(FIRING, [True, False])))
def test_an_alert_fires_when_it_should_and_not_otherwise(programs: Path, folder: Path, alert: str, fires: bool) -> None:
    series = FIRING[alert][0 if fires else 1]
    at = "90m" if alert == "DuepostPaused" else "35m"
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }
    (folder / "test.yml").write_text(json.dumps({"rule_files": [RULES], "evaluation_interval": "1m", "tests": [test]}))
    promtool(programs, "test", "rules", "test.yml", cwd=folder)


@pytest.fixture
def worker() -> Iterator[MetricsServer]:
    """A worker process's counters, served."""
    metrics = WorkerMetrics()
    for kind in ("welcome", 'a"b\\c', "ann@example.com"):
        metrics.concluded("email", kind, "default", [Told("dot", "sent", "sent")], seconds=0.2, late=1.0)
    server = MetricsServer(metrics, "127.0.0.1", free_port())
    server.start()
    yield server
    server.stop()


def test_it_scrapes_console_and_worker_and_answers_each_query(
    programs: Path, folder: Path, start: Start, worker: MetricsServer
) -> None:
    (users := folder / "users").write_text("vera:viewer:-\n")
    console = start(
        DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_USER_HEADER="X-User", DUEPOST_WEB_PROXIES="192.0.2.1",
        DUEPOST_WEB_METRICS_TOKEN=TOKEN,
    )  # fmt: skip
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    for job, port in zip(config["scrape_configs"], (console.port, worker.port), strict=True):
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.path=data"]

    def ask(query: str) -> list[Mapping[str, object]]:
        url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found = json.load(answer)
        except OSError:
            return []
        assert found["status"] == "success"
        return list(found["data"]["result"])

    with Process([str(programs / "prometheus"), *arguments], {}, folder / "log", cwd=folder) as prometheus:
        wait_until(lambda: len(ask("up == 1")) == 2, what="both to be up", state=lambda: prometheus.output[-3000:])
        assert len(ask('duepost_outcomes_total{kind="other"}')) == 1
        assert len(ask('duepost_outcomes_total{kind=~"a\\"b.*"}')) == 1
        assert len(ask('duepost_items_pending{channel="email"}')) == 4
        for query in queries():
            ask(query.replace("$__rate_interval", "1m"))
