"""The tokenizer in a GGUF's metadata, rebuilt as a ``tokenizer.json``.

Two kinds: ``gpt2``, a byte-level BPE with its merges and a named way of splitting text into
words, and ``llama``, SentencePiece's BPE, whose merges follow from the scores of its pieces.

The JSON never adds a token to a text by itself; whether a prompt begins with the
beginning-of-text token is ``TokenizerFiles.add_bos``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from compile.checkpoint import TokenizerFiles
from compile.end_tokens import end_token_ids
from compile.errors import CompileError, UnsupportedError
from compile.foreign_errors import translated
from compile.gguf_metadata import Metadata

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

PREFIX = "tokenizer.ggml."
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # token types; the others are ordinary pieces
SPACE = "\u2581"  # SentencePiece's stand-in for a space

# How words are told apart before merging, from the tokenizers of the models of that name.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3_WORDS = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def _gpt2_splitter() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm_splitter() -> PreTokenizer:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), _gpt2_splitter()]
    )


def _regex_splitter(words: str) -> Callable[[], PreTokenizer]:
    def splitter() -> PreTokenizer:
        from tokenizers import Regex, pre_tokenizers

        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return splitter


SPLITTERS: MappingProxyType[str, Callable[[], PreTokenizer]] = MappingProxyType(
    {
        "default": _gpt2_splitter,
        "gpt-2": _gpt2_splitter,
        "smollm": _smollm_splitter,
        "llama-bpe": _regex_splitter(LLAMA3_WORDS),
        "llama3": _regex_splitter(LLAMA3_WORDS),
        "llama-v3": _regex_splitter(LLAMA3_WORDS),
        "qwen2": _regex_splitter(QWEN2_WORDS),
    }
)
# Llama 3's tokenizer takes a word that is a token as it stands, and begins every text with BOS.
LLAMA3_NAMES = frozenset({"llama-bpe", "llama3", "llama-v3"})
LLAMA3_BEGIN = "<|begin_of_text|>"
LONGEST = 1 << 16  # characters of a token: every way to cut one in two is tried


def read_tokenizer(metadata: Metadata) -> TokenizerFiles:
    """Rebuild the tokenizer; UnsupportedError names a kind or a splitting that is not known."""
    if f"{PREFIX}model" not in metadata:
        raise CompileError(
            f"{metadata.path}: it has no tokenizer; metadata {PREFIX}model is missing"
        )
    kind = metadata.text(f"{PREFIX}model")
    tokens = metadata.texts(f"{PREFIX}tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise CompileError(f"{metadata.path}: {len(tokens) - len(ids)} tokens are there twice")
    if max(map(len, tokens), default=0) > LONGEST:
        raise CompileError(f"{metadata.path}: a token of more than {LONGEST} characters")
    types = _types(metadata, len(tokens))
    with translated(f"{metadata.path}: the tokenizer cannot be rebuilt"):
        if kind == "gpt2":
            tokenizer = _byte_level(metadata, ids)
            adds_bos = metadata.text(f"{PREFIX}pre", "default") in LLAMA3_NAMES
        elif kind == "llama":
            tokenizer = _sentencepiece(metadata, ids, types)
            adds_bos = True
        else:
            raise UnsupportedError(
                f"{metadata.path}: tokenizer {kind!r}; supported are 'gpt2' and 'llama'"
            )
        _add_tokens(tokenizer, tokens, types)
        return _files(metadata, tokenizer, tokens, types, adds_bos)


def _types(metadata: Metadata, count: int) -> list[int]:
    """The type of each token; all are ordinary where the file does not say."""
    key = f"{PREFIX}token_type"
    if key not in metadata:
        return [1] * count
    types: list[int] = metadata.integers(key).tolist()
    if len(types) != count:
        raise CompileError(f"{metadata.path}: {len(types)} token types for {count} tokens")
    return types


def _byte_level(metadata: Metadata, ids: dict[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    if f"{PREFIX}pre" not in metadata and LLAMA3_BEGIN in ids:
        raise UnsupportedError(
            f"{metadata.path}: metadata {PREFIX}pre is missing, as early converters left it, and "
            "Llama 3 splits texts otherwise than GPT-2: convert the model anew"
        )
    name = metadata.text(f"{PREFIX}pre", "default")
    if name not in SPLITTERS:
        raise UnsupportedError(
            f"{metadata.path}: pre-tokenizer {name!r}; supported are {', '.join(SPLITTERS)}"
        )
    merges = [
        _merge(metadata, ids, text, index)
        for index, text in enumerate(metadata.texts(f"{PREFIX}merges"))
    ]
    model = models.BPE(vocab=ids, merges=merges, ignore_merges=name in LLAMA3_NAMES)
    tokenizer = Tokenizer(model)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = SPLITTERS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _merge(metadata: Metadata, ids: dict[str, int], text: str, index: int) -> tuple[str, str]:
    """One merge, ``"left right"``; both parts and what they make must be tokens."""
    left, _, right = text.partition(" ")
    if not (left in ids and right in ids and left + right in ids):
        raise CompileError(f"{metadata.path}: merge {index} {text!r} is not one of two tokens")
    return left, right


def _sentencepiece(metadata: Metadata, ids: dict[str, int], types: Sequence[int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.numbers(f"{PREFIX}scores")
    if len(scores) != len(ids):
        raise CompileError(f"{metadata.path}: {len(scores)} token scores for {len(ids)} tokens")
    absent = [byte for byte in range(256) if f"<0x{byte:02X}>" not in ids]
    if absent:
        raise UnsupportedError(
            f"{metadata.path}: a tokenizer without byte tokens, <0x{absent[0]:02X}> is missing"
        )
    unknown = next((token for token, index in ids.items() if types[index] == UNKNOWN), None)
    model = models.BPE(
        vocab=ids,
        merges=_merges_by_score(ids, types, scores.tolist()),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", SPACE)
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.flag(f"{PREFIX}add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def _merges_by_score(
    ids: dict[str, int], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """SentencePiece's order of merging as a list of merges.

    It joins the neighbours whose union scores highest, whatever they are; so every way to cut a
    piece in two is a merge, and merges come in falling order of their piece's score.
    """
    special = (UNKNOWN, CONTROL, USER_DEFINED)
    mergeable = {token: index for token, index in ids.items() if types[index] not in special}
    cuts = [
        (-scores[index], mergeable[piece[:cut]], mergeable[piece[cut:]], piece, cut)
        for piece, index in mergeable.items()
        for cut in range(1, len(piece))
        if piece[:cut] in mergeable and piece[cut:] in mergeable
    ]
    return [(piece[:cut], piece[cut:]) for _, _, _, piece, cut in sorted(cuts)]


def _add_tokens(tokenizer: Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Mark the tokens that are found in a text before it is split into words."""
    from tokenizers import AddedToken

    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token
    ]
    tokenizer.add_tokens(added)


def _files(
    metadata: Metadata,
    tokenizer: Tokenizer,
    tokens: Sequence[str],
    types: Sequence[int],
    adds_bos: bool,
) -> TokenizerFiles:
    bos = _token_id(metadata, "bos", len(tokens))
    ends = [_token_id(metadata, name, len(tokens)) for name in ("eos", "eot", "eom")]
    special = {
        token: index
        for index, token in enumerate(tokens)
        if types[index] in (CONTROL, USER_DEFINED)
    }
    template_key = "tokenizer.chat_template"
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str().encode(),
        chat_template=metadata.text(template_key) if template_key in metadata else None,
        bos_token_id=bos,
        eos_token_ids=end_token_ids([end for end in ends if end is not None], special),
        add_bos=metadata.flag(f"{PREFIX}add_bos_token", adds_bos) and bos is not None,
        bos_token="" if bos is None else tokens[bos],
        eos_token="" if ends[0] is None else tokens[ends[0]],
    )


def _token_id(metadata: Metadata, name: str, count: int) -> int | None:
    """The id of a special token, None where the file names none."""
    key = f"{PREFIX}{name}_token_id"
    if key not in metadata:
        return None
    token = metadata.integer(key)
    if not 0 <= token < count:
        raise CompileError(f"{metadata.path}: metadata {key} is {token}; there are {count} tokens")
    return token
