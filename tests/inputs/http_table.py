"""The rows of docs/inputs.md about clients, and the test of each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.inputs.table import DOCUMENT

SECTION = "Over HTTP"
_HTTP = "tests/runtime/http"
_VLLM = "tests/engines/vllm"
_CONFIG = "tests/config/test_api_keys.py"


@dataclass(frozen=True)
class HttpRow:
    """`said`: what it has in quotation marks, with `...` for anything; `statuses`: none where nothing comes, or no run."""

    name: str
    said: tuple[str, ...]
    statuses: tuple[int, ...]

    def is_in(self, message: str) -> bool:
        """Whether the first of what it says is there."""
        pattern = ".*".join(map(re.escape, self.said[0].split("...")))
        return re.search(pattern, message) is not None


def http_rows() -> dict[str, HttpRow]:
    """By their names, in order."""
    _, _, section = DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {SECTION}\n")
    section = section.partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    found = [HttpRow(row[0], _said(row[1]), _statuses(row[2:])) for row in cells if row[0] not in ("input", "---")]
    return {row.name: row for row in found}


def _said(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r'"([^"]+)"', cell))


def _statuses(cells: list[str]) -> tuple[int, ...]:
    return tuple(int(text) for cell in cells for text in re.findall(r"\d+", cell))


TESTS = {
    "the same in a line of a batch": f"{_HTTP}/test_vllm.py::test_the_batch_has_its_results",
    '`"max_tokens": 1000000000`, as a number or text': f"{_HTTP}/test_hostile_calls.py::test_a_call_counts_as_what_it_is",
    "a prompt of 16 MB": f"{_HTTP}/test_hostile_calls.py"
    "::test_of_a_prompt_that_is_far_too_long_no_more_is_read_than_shows_it",
    "a chat for which the model's template needs more than 300,000 steps": f"{_HTTP}/test_hostile_calls.py"
    "::test_a_chat_that_the_template_does_not_come_to_an_end_with_is_refused",
    "nested quantifiers `(((a{1,1000}){1,1000}){1,1000})`, `minItems` of 10^9, `maxLength` of 10^8, `prefixItems` of "
    "definitions that multiply to 9^9, rules that double 40 times": f"{_VLLM}/test_grammar_check.py"
    "::test_grammars_are_refused_as_vllm_cannot_compile_them",
    "a grammar, regular expression, JSON schema, list of choices or structural tag that vLLM cannot compile, in any part "
    "of a call, streamed or not": f"{_HTTP}/test_vllm.py"
    "::test_grammars_that_cannot_be_compiled_are_refused_and_others_are_kept_to",
    "one that takes more than 5 s of processor time, 1 s to read, 1 GiB of memory, or that crashes the compiler": f"{_VLLM}"
    "/test_grammar_check.py::test_what_takes_too_long_too_much_or_crashes_ends_alone",
    'a JSON schema that is `{"$ref": "#"}`, or two that are each other': f"{_VLLM}/test_grammar_check.py"
    "::test_grammars_are_refused_as_vllm_cannot_compile_them",
    "one that lets nothing follow in the middle of an answer": f"{_HTTP}/test_vllm.py"
    "::test_grammars_that_cannot_be_compiled_are_refused_and_others_are_kept_to",
    "`X-Vllm-Priority: 99999999999999999999` or `-2147483648`, and all other headers but four": f"{_HTTP}/test_server.py"
    "::test_calls_reach_the_nodes_of_the_policys_choice_as_they_are",
    "`/v1/%63ompletions`, a query": f"{_HTTP}/test_vllm.py::test_a_call_that_breaks_vllms_server_ends_alone",
    "an exception in vLLM's server": f"{_VLLM}/test_server.py::test_what_vllm_fails_in_is_told_as_its_fault",
    "an `X-Request-Id` under way; of another body; of a line of the batch": f"{_HTTP}/test_answers.py"
    "::test_a_call_that_is_under_way_is_not_begun_twice",
    "the `X-Request-Id` of another client's key": f"{_HTTP}/test_keys.py::test_clients_with_the_same_id_are_told_apart",
    "no key, a wrong one, one that is longer, `Basic` instead of `Bearer`": f"{_HTTP}/test_server.py"
    "::test_a_wrong_key_stays_out",
    "blanks around a key": f"{_HTTP}/test_keys.py::test_blanks_around_a_key_do_not_matter",
    "a MUNGE credential that has expired, is not one, was changed, or is of a user who is not named": f"{_HTTP}/test_munge.py"
    "::test_what_is_no_credential_lets_nobody_in",
    "a key without the right, over its rate, over its tokens": f"{_HTTP}/test_keys.py::test_rights_and_uses",
    "samples as `text/plain`, a form, or `multipart/form-data` (what a page in a browser can send unasked)": f"{_HTTP}"
    "/test_hostile_calls.py::test_samples_are_json_and_say_so",
    "1.2 million samples in one body": f"{_HTTP}/test_hostile_calls.py::test_samples_are_bounded",
    "samples while 100,000 wait; more than 16 calls with samples or `/tokenize` at once": f"{_HTTP}/test_hostile_calls.py"
    "::test_samples_are_bounded",
    "`/tokenize` of 15 MB": f"{_HTTP}/test_hostile_calls.py::test_other_calls_are_bounded",
    "bytes that are no HTTP, a TLS handshake, a header of 100 KB": f"{_HTTP}/test_connections.py"
    "::test_what_is_no_http_is_told_so_in_the_form_of_all_errors",
    "an upgrade to a web socket": f"{_HTTP}/test_connections.py"
    "::test_what_is_no_http_is_told_so_in_the_form_of_all_errors",
    "a head that does not end, a byte a second": f"{_HTTP}/test_connections.py::test_real_sockets_that_take_for_ever",
    "a body that does not end": f"{_HTTP}/test_connections.py::test_a_body_that_takes_for_ever",
    "an answer that is not read": f"{_HTTP}/test_connections.py::test_who_does_not_read_is_hung_up_on",
    "300 idle connections with `ulimit -n 256`": f"{_HTTP}/test_server.py"
    "::test_a_crowd_with_few_descriptors_ends_nothing_and_term_serves_who_is_inside",
    "`VLLM_API_KEY`, `VLLM_SERVER_DEV_MODE` and the like in the environment": f"{_VLLM}/test_environment.py"
    "::test_what_decides_over_the_endpoint_is_not_vllms",
    "`serving.http.api_key: ''`, or blanks": f"{_CONFIG}::test_keys_that_a_recipe_may_not_have",
    "a key with a line break, in the recipe, its file or `LEMIX_API_KEY`": f"{_HTTP}/test_keys.py"
    "::test_the_key_of_a_run_is_for_its_owner_alone_and_stays",
    "a key that is a number, a list, or has a zero byte": "tests/cli/test_keys_stay_secret.py"
    "::test_a_key_that_is_wrong_is_not_shown",
    "`api_key` and `api_key_file`": f"{_CONFIG}::test_keys_that_a_recipe_may_not_have",
    "`--set serving.http.api_key=...`": f"{_CONFIG}::test_no_key_on_a_command_line",
    "a file of keys that others can read": f"{_CONFIG}::test_a_file_that_others_can_read_is_refused",
    "a file of keys that is missing, a directory, a FIFO, empty, of more than 1 MB, not UTF-8, not YAML, without names, "
    "with two keys alike, or unknown rights": f"{_CONFIG}::test_what_is_wrong_with_a_file_is_told_without_a_key",
    "`engine.vllm.args: {api_key: x}`, `port`, `ssl_keyfile`, `middleware` and others of vLLM's web server": f"{_CONFIG}"
    "::test_vllm_does_not_decide_over_the_endpoint",
}
"""The rows that have a test of their own. The others are inputs of `test_a_call_that_is_refused`, which takes messages from the
table, and of `test_odd_values_are_answered_or_refused`, which takes statuses."""
