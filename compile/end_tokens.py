"""Which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Chat formats name their end of turn in the vocabulary; metadata often lists only one of them.
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
)


def end_token_ids(declared: Iterable[int], special: Mapping[str, int]) -> tuple[int, ...]:
    """The declared ids in their order, then those of well-known names among special tokens.

    Args:
        declared: ids that the checkpoint itself calls an end; the first is the main one.
        special: id of every special token by its text.
    """
    known = (special[text] for text in END_OF_TURN if text in special)
    return tuple(dict.fromkeys((*declared, *known)))
