"""The checks, in the order of their worth: whether results are right first, then how long things take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """`module` has `check(device, report)`. `limit_s`: what takes longer is killed. `beside`: runs at once, on the host alone,
    while others use the device. `after` is what must have passed before."""

    name: str
    module: str
    limit_s: float
    about: str
    beside: bool = False
    after: str | None = None


CHECKS = (
    Check("cpu-run", "cpu_run", 240, "two stages serve and train on the CPU, for comparison", beside=True),
    Check("environment", "environment", 60, "versions, driver, MPI, DeepSpeed's probe of its operators"),
    Check("steps-exact", "exact_steps", 90, "steps equal torch's AdamW and leave the weights in place"),
    Check("graphs", "captured_graphs", 60, "a captured graph serves the weights that were published"),
    Check("receives", "receives", 60, "queued kernels do not write into what was received"),
    Check(
        "two-stages", "two_stages", 150, "two stages on one device: losses and scores as on the CPU", after="cpu-run"
    ),
    Check("vllm", "vllm_stages", 420, "the same with vLLM: losses, scores and tokens as on the CPU", after="cpu-run"),
    Check("short-memory", "short_memory", 150, "stages short of memory move training to the host, and learn the same"),
    Check("pieces", "pieces", 60, "half layers of an 8B model: forward, backward, gaps between pieces"),
    Check("steps", "step_times", 60, "optimizer steps of an 8B model's stage: chunks, publication, memory"),
    Check("serving", "serving_beside", 60, "latency of serving beside training, by how training is paced"),
    Check("kernels", "attention_kernels", 60, "which attention kernels grouped heads get"),
    Check("profile", "coefficients", 150, "lemix profile of a stage of an 8B model"),
    Check("tests", "device_tests", 150, "pytest -m cuda"),
    Check("copies", "copies", 60, "copies between host and device, messages between two ranks"),
)
