"""Quantiles of prompt and output lengths in tokens, at 0, 5, ..., 100 %, computed from published traces.

azure-conv, azure-code: conversation and code trace of the Azure LLM inference dataset 2023, 16 November 2023, the first
  9,682 and 4,409 requests. Azure/AzurePublicDataset, CC-BY-4.0; cite Patel et al., "Splitwise: Efficient Generative LLM
  Inference Using Phase Splitting", ISCA 2024.
mooncake-conversation: all 12,031 requests of the conversation trace of kvcache-ai/Mooncake, FAST'25 release, Apache-2.0;
  cite Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025.
lmsys-chat: prompt lengths of a sample of LMSYS-Chat-1M turns with their history, characters / 4; cite Zheng et al.,
  "LMSYS-Chat-1M", ICLR 2024. Its output lengths were not measured: they are those of azure-conv.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple


class Quantiles(NamedTuple):
    """Lengths in tokens at 21 evenly spaced levels from 0 to 100 %; neither falls from one level to the next."""

    prompt: tuple[float, ...]
    output: tuple[float, ...]


# fmt: off
_AZURE_CONV = Quantiles(
    prompt=(
        2, 181, 247, 379, 390, 398, 407, 432, 972, 1012, 1035, 1056, 1081, 1105.65, 1140, 1200, 1317, 2169,
        4075, 4086, 14050,
    ),
    output=(
        7, 38, 50, 60, 71.2, 81, 88.3, 95, 102, 115, 141, 167, 213, 378, 393, 397, 405, 414, 428, 463, 1000,
    ),
)

TABLES = MappingProxyType({
    "azure-conv": _AZURE_CONV,
    "azure-code": Quantiles(
        prompt=(
            6, 74.4, 148, 238, 375.2, 573, 768, 911.8, 1058.2, 1207.6, 1454, 1682.4, 1886.6, 2149.2, 2417,
            2748, 3242.8, 3979.4, 5152.2, 7325.2, 7437,
        ),
        output=(
            6, 6, 7, 7, 8, 9, 9, 10, 11, 12, 13, 14, 15, 17, 19, 22, 28, 37, 54, 85, 1899,
        ),
    ),
    "mooncake-conversation": Quantiles(
        prompt=(
            891, 901, 964, 1261, 1662, 2306.5, 3263, 4251, 4993, 5870.5, 6909, 8186.5, 9570, 11237.5, 13196,
            15367, 17869, 21464, 27367, 39550.5, 126195,
        ),
        output=(
            1, 10, 24, 46, 100, 156.5, 213, 256, 291, 322.5, 350, 375, 399, 423, 447, 472, 504, 543, 597, 698,
            2000,
        ),
    ),
    "lmsys-chat": Quantiles(
        prompt=(
            4, 7, 14, 26, 54, 93, 142, 187, 253, 311, 376, 458, 579, 686, 801, 968, 1154, 1407, 1721, 2150,
            4096,
        ),
        output=_AZURE_CONV.output,
    ),
})
# fmt: on
