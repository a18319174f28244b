from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from lemix_hpc.engines.protocol import SequenceResult, ServeBatch, ServeSequence
from tests.engines.torch.conftest import MakePipeline, Pipeline, Reference, TinyRecipe

FAMILIES = ["llama", "llama-tied", "mistral", "qwen2", "gpt2", "gpt2-untied"]
CASES = [(family, stages) for family in FAMILIES for stages in (1, 2, 3)]


def token(result: SequenceResult) -> int:
    """The next token of a sequence that asked for one."""
    assert result.next_token is not None
    return result.next_token


def generate(
    node: Pipeline, prompts: list[list[int]], new_tokens: int, temperature: float = 0.0, first_request: int = 0
) -> list[list[int]]:
    """Generate for all prompts at once."""
    requests = range(first_request, first_request + len(prompts))
    results = node.serve(
        [ServeSequence(r, len(p), 0, True, p) for r, p in zip(requests, prompts, strict=True)], temperature
    )
    outputs = [[token(result)] for result in results]
    for count in range(new_tokens - 1):
        results = node.serve(
            [
                ServeSequence(r, 1, len(p) + count, True, [output[-1]])
                for r, p, output in zip(requests, prompts, outputs, strict=True)
            ],
            temperature,
        )
        for output, result in zip(outputs, results, strict=True):
            output.append(token(result))
    return outputs


def hf_greedy(model: Any, prompt: list[int], new_tokens: int) -> list[int]:
    tokens = torch.tensor([prompt])
    output = model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    tokens_after: list[int] = output[0, len(prompt) :].tolist()
    return tokens_after


@pytest.mark.parametrize(("family", "stages"), CASES)
def test_scores_equal_the_whole_model(
    family: str,
    stages: int,
    tiny_recipe: TinyRecipe,
    reference: Reference,
    pipeline: MakePipeline,
    prompts: list[list[int]],
) -> None:
    recipe = tiny_recipe(family, stages)
    model = reference(recipe)
    results = pipeline(recipe).score(*prompts)
    for prompt, result in zip(prompts, results, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0]
        expected = float(cross_entropy(logits[:-1], torch.tensor(prompt[1:]), reduction="sum")) if prompt[1:] else 0.0
        assert result.nll == pytest.approx(expected, abs=1e-5 * len(prompt))
        assert result.scored == len(prompt) - 1
        assert result.next_token is None


@pytest.mark.parametrize(("family", "stages"), CASES)
def test_greedy_tokens_equal_hugging_face(
    family: str,
    stages: int,
    tiny_recipe: TinyRecipe,
    reference: Reference,
    pipeline: MakePipeline,
    prompts: list[list[int]],
) -> None:
    recipe = tiny_recipe(family, stages)
    model = reference(recipe)
    assert generate(pipeline(recipe), prompts, 10) == [hf_greedy(model, prompt, 10) for prompt in prompts]


def test_prefill_decode_and_scoring_share_a_batch(
    tiny_recipe: TinyRecipe, reference: Reference, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    recipe = tiny_recipe("llama", 2)
    node, model = pipeline(recipe), reference(recipe)
    early, late, scored = prompts[0], prompts[3], prompts[2]
    alone = node.score(scored)[0]
    first = token(node.serve([ServeSequence(0, len(early), 0, True, early)])[0])
    decoded, prefilled, score = node.serve(
        [
            ServeSequence(0, 1, len(early), True, [first]),
            ServeSequence(1, len(late), 0, True, late),
            ServeSequence(2, len(scored), 0, False, scored),
        ]
    )
    assert [first, decoded.next_token] == hf_greedy(model, early, 2)
    assert [prefilled.next_token] == hf_greedy(model, late, 1)
    assert score.nll == pytest.approx(alone.nll, abs=1e-4)


def test_a_prompt_may_come_in_parts(
    tiny_recipe: TinyRecipe, reference: Reference, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    for family in ("llama", "mistral"):
        recipe = tiny_recipe(family, 2)
        node, prompt = pipeline(recipe), prompts[3]
        begun = node.serve([ServeSequence(0, 9, 0, True, prompt[:9], partial=True)])[0]
        assert begun == SequenceResult(0, 0.0, 0, None)
        result = node.serve([ServeSequence(0, len(prompt) - 9, 9, True, prompt[9:])])[0]
        assert [result.next_token] == hf_greedy(reference(recipe), prompt, 1)


def test_a_repeated_batch_gives_the_same_token(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    node, prompt = pipeline(tiny_recipe("llama")), prompts[0]
    first = generate(node, [prompt], 4)
    assert generate(node, [prompt], 4) == first


def test_sampled_tokens_do_not_depend_on_the_batch(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    node = pipeline(tiny_recipe("llama", 2))
    together = generate(node, prompts, 6, temperature=1.0)
    node.stages[0].forget(range(5))
    node.stages[1].forget(range(5))
    alone = [generate(node, [prompt], 6, 1.0, first_request=i)[0] for i, prompt in enumerate(prompts)]
    assert together == alone
    assert together != generate(node, prompts, 6)


def test_forgotten_requests_have_no_cache(
    tiny_recipe: TinyRecipe, pipeline: MakePipeline, prompts: list[list[int]]
) -> None:
    node = pipeline(tiny_recipe("llama"))
    generate(node, prompts[:2], 2)
    node.stages[0].forget([0, 99])
    with pytest.raises(ValueError, match="request 0 wants 12 cached tokens, but 0 are kept"):
        node.serve([ServeSequence(0, 1, 12, True, [5])])
    assert node.serve([ServeSequence(1, 1, 1, True, [5])])[0].next_token is not None


def test_long_prompts_are_scored_in_full(tiny_recipe: TinyRecipe, reference: Reference, pipeline: MakePipeline) -> None:
    recipe = tiny_recipe("llama")
    prompt = torch.randint(0, 257, (700,), generator=torch.Generator().manual_seed(1)).tolist()
    result = pipeline(recipe).score(prompt)[0]
    with torch.no_grad():
        logits = reference(recipe)(torch.tensor([prompt])).logits[0]
    expected = float(cross_entropy(logits[:-1].double(), torch.tensor(prompt[1:]), reduction="sum"))
    assert result.scored == 699
    assert result.nll == pytest.approx(expected, rel=1e-5)


def test_learned_positions_end(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    with pytest.raises(ValueError, match="129 tokens is longer than the model's 128 positions"):
        pipeline(tiny_recipe("gpt2")).score([1] * 129)


def test_serving_leaves_the_gradient_mode_alone(tiny_recipe: TinyRecipe, pipeline: MakePipeline) -> None:
    stage = pipeline(tiny_recipe("llama")).stages[0]
    work = stage.serve(ServeBatch(0, [ServeSequence(0, 3, 0, False, [1, 2, 3])]), None)
    next(work)
    assert torch.is_grad_enabled()
    work.close()
