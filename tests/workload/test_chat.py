"""What is learnt of a conversation, beside masks that were made by hand."""

import threading
from typing import Any

import pytest

from lemix_hpc.workload.byte_level import byte_level_tokenizer
from lemix_hpc.workload.chat import assistant_tokens, is_marked
from tests.workload.chat_templates import CHATML, EOS, LLAMA_3, MARKED, MISTRAL, by_hand, tokenizer

TALK = [
    {"role": "user", "content": "Who ran?"},
    {"role": "assistant", "content": "Ann and the ass. Ça va 🙂"},
    {"role": "user", "content": "user: assistant?\n"},
    {"role": "assistant", "content": "\tNo é"},
]
SYSTEM = {"role": "system", "content": "Be the assistant."}


def said(role: str, text: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}"


BY_HAND: dict[str, list[tuple[str, bool]]] = {
    CHATML: [
        ("<|im_start|>system\nBe the assistant.<|im_end|>\n<|im_start|>user\nWho ran?<|im_end|>\n", False),
        ("<|im_start|>assistant\n", False),
        ("Ann and the ass. Ça va 🙂<|im_end|>", True),
        ("\n<|im_start|>user\nuser: assistant?\n<|im_end|>\n<|im_start|>assistant\n", False),
        ("\tNo é<|im_end|>", True),
        ("\n", False),
    ],
    LLAMA_3: [
        ("<s>" + said("system", "Be the assistant.<|eot_id|>") + said("user", "Who ran?<|eot_id|>"), False),
        (said("assistant", ""), False),
        ("Ann and the ass. Ça va 🙂<|eot_id|>", True),
        (said("user", "user: assistant?<|eot_id|>") + said("assistant", ""), False),
        ("No é<|eot_id|>", True),
    ],
    MISTRAL: [
        ("<s>[INST] Who ran? [/INST]", False),
        (" Ann and the ass. Ça va 🙂</s>", True),
        ("[INST] user: assistant?\n [/INST]", False),
        (" \tNo é</s>", True),
    ],
}


def of(template: str) -> list[dict[str, str]]:
    return TALK if template == MISTRAL else [SYSTEM, *TALK]


@pytest.mark.parametrize("template", [CHATML, LLAMA_3, MISTRAL], ids=["chatml", "llama-3", "mistral"])
@pytest.mark.parametrize("marked", [True, False])
def test_masks_are_those_made_by_hand(template: str, marked: bool) -> None:
    fast = tokenizer(MARKED[template] if marked else template, EOS[template])
    assert is_marked(fast.chat_template) == marked
    expected = BY_HAND[template]
    if template == CHATML and not marked:  # the line end behind an answer is what the template puts there, too
        expected = [
            (text.removeprefix("\n"), learnt) if not learnt and text.startswith("\n") else (text, learnt)
            for text, learnt in expected
        ]
        expected = [(text + "\n", learnt) if learnt else (text, learnt) for text, learnt in expected]
    ids, learnt = assistant_tokens(fast, of(template))
    assert (ids, learnt) == by_hand(fast, *expected)
    assert fast.decode(ids) == "".join(text for text, _ in expected)
    assert ids == fast.apply_chat_template(of(template))["input_ids"]
    if marked:
        theirs = fast.apply_chat_template(of(template), return_assistant_tokens_mask=True)
        assert [bool(mask) for mask in theirs["assistant_masks"]] == learnt


def test_all_bytes_of_the_last_character_are_learnt() -> None:
    """Transformers' own mask leaves out all but the first, where the markers end behind a letter of several tokens."""
    words = "<|im_start|>assistant\n{% generation %}{{ messages[0].content }}{% endgeneration %}<|im_end|>"
    fast = tokenizer(words)
    asked = [{"role": "assistant", "content": "No é🙂"}]
    expected = by_hand(fast, ("<|im_start|>assistant\n", False), ("No é🙂", True), ("<|im_end|>", False))
    assert assistant_tokens(fast, asked) == expected
    theirs = fast.apply_chat_template(asked, return_assistant_tokens_mask=True)["assistant_masks"]
    assert sum(theirs) < sum(expected[1])


def test_the_byte_level_template() -> None:
    ids, learnt = assistant_tokens(byte_level_tokenizer(), [SYSTEM, *TALK[:2]])
    prompt = "system: Be the assistant.\nuser: Who ran?\nassistant: "
    answer = "Ann and the ass. Ça va 🙂\n"
    assert bytes(ids).decode() == prompt + answer
    assert learnt == [False] * len(prompt) + [True] * len(answer.encode())


def test_tools_and_what_they_say_are_context() -> None:
    template = (
        "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{{ message.content }}{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast = tokenizer(template)
    messages: list[dict[str, Any]] = [
        TALK[0],
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "who", "arguments": {"did": "run"}}}],
        },
        {"role": "tool", "content": "Ann"},
        {"role": "assistant", "content": "Ann"},
    ]
    expected = (
        ('Tools: [{"name": "who"}]\n<|im_start|>user\nWho ran?<|im_end|><|im_start|>assistant\n', False),
        ('{"name": "who", "arguments": {"did": "run"}}<|im_end|>', True),
        ("<|im_start|>tool\nAnn<|im_end|><|im_start|>assistant\n", False),
        ("Ann<|im_end|>", True),
    )
    assert assistant_tokens(fast, messages, [{"name": "who"}]) == by_hand(fast, *expected)


FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SECRETIVE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}bot: {% endif %}"
)


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (FORGETFUL, TALK, r"message 2: .* writes this answer .* in another way when more messages follow"),
        (SECRETIVE, TALK, r"message 2: .* an answer does not begin as the prompt for it ends"),
        (MISTRAL, TALK[1:], "the chat template refuses the messages: roles must alternate"),
        ("{{ messages[0].content + 1 }}", TALK, "the chat template refuses the messages: can only concatenate str"),
        (
            "{% for x in messages %}{{ messages[7].content.upper() }}{% endfor %}",
            TALK,
            "refuses the messages: .*no element 7",
        ),
    ],
)
def test_what_cannot_be_told_is_refused_with_the_reason(template: str, messages: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        assistant_tokens(tokenizer(template), messages)


def test_a_forgetful_template_does_for_one_turn_and_with_markers() -> None:
    fast = tokenizer(FORGETFUL)
    asked = "<|im_start|>user\nWho ran?<|im_end|><|im_start|>assistant\n"
    expected = by_hand(fast, (asked, False), ("<think></think>Ann and the ass. Ça va 🙂<|im_end|>", True))
    assert assistant_tokens(fast, TALK[:2]) == expected
    silent = "{% generation %}{% endgeneration %}"
    assert not any(assistant_tokens(tokenizer(FORGETFUL + silent), TALK)[1]), "markers rule, whatever they say"


def test_threads_do_not_mix_their_marks() -> None:
    fast = tokenizer(MARKED[CHATML])
    alone = assistant_tokens(fast, TALK)
    found: list[Any] = []

    def work() -> None:
        for _ in range(20):
            found.append(assistant_tokens(fast, TALK))
            fast.apply_chat_template(TALK, tokenize=False)  # as a server in this process does

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [alone] * 80


def test_a_tokenizer_without_characters_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match=r"tokenizer \(Slow\) does not tell which characters a token stands for"):
        assistant_tokens(Slow(), TALK)
