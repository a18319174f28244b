"""Steps in every mode of DeepSpeed: torch's own AdamW to the last bit, weights where they were, untorn."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_check.report import Report
from lemix_hpc.config.training_section import Training
from lemix_hpc.engines.torch.optimizer import StageOptimizer

MODES = [(kind, *mode) for kind in (torch.float32, torch.bfloat16) for mode in ((0, False), (1, False), (1, True))]
STEPS = 3
SIZES = (1300, 700)
"""Of the one layer: no multiple of what a vector or an alignment holds, and several chunks on a CPU."""


def check(device: str, report: Report) -> None:
    for kind, zero, offload in MODES:
        name = f"{str(kind).removeprefix('torch.')}, ZeRO {zero}{', offload' * offload}"
        try:
            found = steps(device, kind, zero, offload)
        except Exception as error:  # noqa: BLE001  the other modes tell more
            report.expect(False, f"{name}: {type(error).__name__}: {error}")
            continue
        report.figure(name, found)
        report.expect(
            found["largest difference"] == 0.0, f"{name}: differs from torch by {found['largest difference']:g}"
        )
        report.expect(found["in place"], f"{name}: weights have moved in memory")
        report.expect(found["old while prepared"], f"{name}: weights changed before publication")


def steps(device: str, kind: torch.dtype, zero: int, offload: bool) -> dict[str, Any]:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(*SIZES), nn.Linear(SIZES[1], 77)).to(device, kind)
    parameters = list(module.parameters())
    home = "cpu" if offload else device  # the same kernel as where the state is
    masters = [parameter.detach().to(home).float().clone() for parameter in parameters]
    reference = torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.1, fused=True)
    plain: dict[str, Any] = {"weight_decay": 0.1, "no_weight_decay": [], "gradient_clipping": None}
    training = Training(learning_rate=1e-2, zero_stage=zero, offload_optimizer=offload, **plain)  # type: ignore[arg-type]
    mine = StageOptimizer(module, training)
    places = [parameter.data_ptr() for parameter in parameters]
    difference, steady, pieces = 0.0, True, 0
    for _ in range(STEPS):
        grads = [0.01 * torch.randn(parameter.shape, device=device) for parameter in parameters]
        for master, grad in zip(masters, grads, strict=True):
            master.grad = grad.to(home).clone()
        reference.step()
        before = [parameter.detach().clone() for parameter in parameters]
        norm = math.sqrt(sum(float(grad.square().sum()) for grad in grads))
        for _ in mine.prepare(grads, norm):
            pieces += 1
            steady &= all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        mine.publish()
        for master, parameter in zip(masters, parameters, strict=True):
            expected = master.to(device, kind).float()
            difference = max(difference, float((expected - parameter.detach().float()).abs().max()))
    found = {
        "largest difference": difference,
        "in place": [parameter.data_ptr() for parameter in parameters] == places,
        "old while prepared": steady,
        "pieces": pieces,
    }
    mine.close()
    return found
