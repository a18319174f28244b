"""The tokens of a document and which of them are learnt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lemix_hpc.workload.texts import Conversation, Document
from lemix_hpc.workload.tokenizer import ConversationTokenizer, Tokenizer

Labelled = NDArray[np.int32]
"""Tokens in row 0 and labels in row 1, int32, shape (2, number of tokens)."""
NO_LABEL = -100


def has_labels(row: Labelled) -> bool:
    """Whether a row of shape (2, length) has a token to learn. Its first token does not count: nothing precedes it."""
    return bool((row[1, 1:] != NO_LABEL).any())


def labelled(document: Document | Conversation, tokenizer: Tokenizer) -> Labelled:
    """Tokens and labels, shape (2, tokens); what is not to be learnt has no labels (-100).

    A document is closed by the end-of-text token, and its prompt has no labels. A conversation is what the chat template makes
    of it, and what the assistant says has labels. Raises ValueError, which says why, if there is no telling what that is.
    """
    if isinstance(document, Conversation):
        if not isinstance(tokenizer, ConversationTokenizer):
            raise ValueError("the model's tokenizer has no chat template, and `messages` need one")
        ids, learnt = tokenizer.encode_conversation(document.messages, document.tools)
        if not any(learnt):
            raise ValueError(
                "by its generation markers the chat template leaves nothing of the conversation to be learnt"
            )
        tokens = np.array(ids, dtype=np.int32)
        return np.stack([tokens, np.where(learnt, tokens, np.int32(NO_LABEL))])
    prompt = tokenizer.encode(document.prompt)
    text = [*tokenizer.encode(document.text), tokenizer.eos]
    return np.array([prompt + text, [NO_LABEL] * len(prompt) + text], dtype=np.int32)
