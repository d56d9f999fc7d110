"""Real worker processes are scraped, and say nothing while all goes well."""

import re
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import Site
from tests.unit.test_metrics import free_port
from tests.waiting import wait_until

SERVED = re.compile(r"Metrics are served at 127\.0\.0\.1 port (\d+)")


def total(ports: list[int], name: str, **labels: str) -> float:
    """The sum over all processes."""
    found = 0.0
    for port in ports:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        assert "example.com" not in text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found += sample.value
    return found


def test_two_worker_processes_are_scraped_each_at_a_port_of_its_own(site: Site) -> None:
    with site.workers(processes=2, DUEPOST_METRICS_PORT=str(free_port())), site.watch():
        wait_until(lambda: len(SERVED.findall(site.logs())) == 2, what="two ports", state=site.logs)
        ports = [int(port) for port in SERVED.findall(site.logs())]
        assert len(set(ports)) == 2
        site.schedule(40)
        site.wait_until_finished(40)

        def sent() -> float:
            return total(ports, "duepost_outcomes_total", channel="email", kind="welcome", outcome="sent")

        wait_until(lambda: sent() == 40, what="40 to be counted", state=sent)
        assert total(ports, "duepost_attempts_total", route="default", verdict="sent") == 40
        assert total(ports, "duepost_lateness_seconds_count") == 40
        assert 0 < total(ports, "duepost_lateness_seconds_sum") < 40 * 60
        assert total(ports, "duepost_attempt_seconds_count") == 40
