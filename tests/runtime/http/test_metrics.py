from prometheus_client.parser import text_string_to_metric_families

from lemix_hpc.runtime.http.metrics import Figures, exposition

NODE = """\
# HELP python_info Python.
# TYPE python_info gauge
python_info{version="3.11"} 1.0
# A remark.
# HELP plain_total Without labels.
# TYPE plain_total counter
plain_total 3.0
# HELP empty Empty labels.
# TYPE empty gauge
empty{} 1
# HELP ttft Times.
# TYPE ttft histogram
ttft_bucket{le="0.1",model="a b{c}"} 2.0
ttft_bucket{le="+Inf",model="a b{c}"} 2.0
ttft_count{model="a b{c}"} 2.0
ttft_sum{model="a b{c}"} 0.11
"""


def test_nodes_are_told_apart_and_each_family_stands_together() -> None:
    text = exposition([NODE, None, NODE.replace("3.0", "4.0")], Figures())
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {(s.labels["node"], s.value) for s in families["plain"].samples} == {("0", 3.0), ("2", 4.0)}
    assert {s.labels["node"] for s in families["empty"].samples} == {"0", "2"}
    assert families["ttft"].type == "histogram" and len(families["ttft"].samples) == 8
    assert families["ttft"].samples[0].labels == {"node": "0", "le": "0.1", "model": "a b{c}"}
    assert [s.value for s in families["lemix_node_up"].samples] == [1.0, 0.0, 1.0]
    headers = [line for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(headers) == len(set(headers)), "a family twice is no valid text"


def test_figures_of_the_run() -> None:
    figures = Figures({"finished": 5, "aborted": 1}, 2, 300, (7, 9), 16, 64, 3, 1.25)
    families = {family.name: family for family in text_string_to_metric_families(exposition([], figures))}
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values == {
        ("lemix_requests_total", "finished"): 5,
        ("lemix_requests_total", "aborted"): 1,
        ("lemix_requests_in_flight",): 2,
        ("lemix_tokens_in_flight",): 300,
        ("lemix_weight_version", "0"): 7,
        ("lemix_weight_version", "1"): 9,
        ("lemix_training_steps_total",): 16,
        ("lemix_training_micro_batches_total",): 64,
        ("lemix_training_samples_waiting",): 3,
        ("lemix_training_loss",): 1.25,
    }
