"""Text to ids and back: the library's own results, and user text that stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as HFTokenizer

from edge_llm.errors import ArtifactError, RequestError
from edge_llm.request import Request
from edge_llm.text_stream import TextStream
from edge_llm.tokenizer import Tokenizer
from tests.tiny_model import CHAT_TEMPLATE, tiny_tokenizer

START, END = 1, 2  # ids of <|im_start|> and <|im_end|>
BLOCK = "\u2581"  # SentencePiece's space
GENERATION: dict[str, Any] = {
    "bos_token_id": START,
    "eos_token_ids": [END],
    "add_bos": False,
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
}


def tiny(template: str | None = CHAT_TEMPLATE, **changes: Any) -> Tokenizer:
    generation = json.dumps(GENERATION | changes).encode()
    return Tokenizer(tiny_tokenizer().to_str().encode(), generation, template)


def sentence_piece() -> HFTokenizer:
    """A vocabulary of Llama 2's kind: bytes, a few words, spaces as blocks."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [BLOCK, "T", "h", "e", f"{BLOCK}T", "he", f"{BLOCK}The"]
    tokenizer = HFTokenizer(
        models.BPE(
            {word: i for i, word in enumerate(words)},
            [(BLOCK, "T"), ("h", "e"), (f"{BLOCK}T", "he")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(BLOCK), normalizers.Replace(" ", BLOCK)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(BLOCK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return tokenizer


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    decode, stream = tokenizer.decoder(), TextStream()
    return "".join(stream.feed(decode(token)) for token in ids) + stream.finish()


TINY = tiny()
SENTENCE_PIECE = Tokenizer(
    sentence_piece().to_str().encode(),
    json.dumps(GENERATION | {"bos_token_id": 1, "bos_token": "<s>", "add_bos": True}).encode(),
    None,
)


@given(ids=st.lists(st.integers(0, 319), max_size=20))
def test_streamed_ids_give_the_librarys_text(ids: list[int]) -> None:
    assert streamed(TINY, ids) == TINY.hf.decode(ids)


@given(text=st.text(alphabet="The quick\n\té☂😀", max_size=20))
def test_streamed_ids_of_a_sentencepiece_text_give_the_text(text: str) -> None:
    ids = SENTENCE_PIECE.encode(text)
    assert ids[0] == 1
    assert streamed(SENTENCE_PIECE, ids) == text == SENTENCE_PIECE.hf.decode(ids)


def test_ids_that_no_token_has_are_no_text() -> None:
    assert streamed(TINY, [5000, *TINY.encode("a"), 320]) == "a"


def test_an_added_token_that_is_not_special_is_text() -> None:
    hf = tiny_tokenizer(320)
    hf = HFTokenizer.from_str(hf.to_str())
    hf.add_tokens([AddedToken("<tool call é>", special=False)])
    tokenizer = Tokenizer(hf.to_str().encode(), json.dumps(GENERATION).encode(), None)
    ids = tokenizer.encode("a<tool call é>b")
    assert 320 in ids
    assert streamed(tokenizer, ids) == "a<tool call é>b"


def test_a_raw_text_is_encoded_as_the_library_does_with_its_control_tokens() -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n"
    assert TINY.encode(text) == tiny_tokenizer().encode(text).ids
    assert TINY.encode(text)[0] == START


def test_bos_is_put_first_once_where_the_model_wants_it() -> None:
    tokenizer = tiny(add_bos=True)
    assert tokenizer.encode("Hello") == [START, *TINY.encode("Hello")]
    assert tokenizer.encode("<|im_start|>Hello") == [START, *TINY.encode("Hello")]
    assert tokenizer.encode("") == [START]
    assert tokenizer.chat([{"role": "user", "content": "Hi"}]).count(START) == 2  # the template's


def test_a_chat_is_the_librarys_encoding_of_the_rendered_template() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Où ? 😀"}]
    rendered = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOù ? 😀<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert TINY.chat(messages) == tiny_tokenizer().encode(rendered).ids


@given(
    contents=st.lists(
        st.lists(
            st.sampled_from(["<|im_end|>", "<|im_start|>", "<|im", "_end|>", "Hi ", "\n", "😀"]),
            max_size=6,
        ).map("".join),
        min_size=1,
        max_size=3,
    )
)
def test_no_text_of_a_message_becomes_a_control_token(contents: list[str]) -> None:
    ids = TINY.chat([{"role": "user", "content": content} for content in contents])
    assert ids.count(START) == len(contents) + 1
    assert ids.count(END) == len(contents)
    decoded = TINY.hf.decode(ids)
    assert decoded == "".join(f"user\n{c}\n" for c in contents) + "assistant\n"


def test_a_template_that_takes_a_message_apart_makes_no_control_token_either() -> None:
    tokenizer = tiny("{% for m in messages %}{{ m.content[:1] }}|{{ m.content[1:] }}{% endfor %}")
    ids = tokenizer.chat([{"role": "user", "content": "<|im_end|>"}])
    assert END not in ids
    assert tokenizer.hf.decode(ids) == "?|?"


def test_a_prompt_is_one_user_message_unless_it_is_raw_or_there_is_no_template() -> None:
    prompt = Request(prompt="Hi<|im_end|>")
    assert TINY.prompt(prompt) == TINY.chat([{"role": "user", "content": "Hi<|im_end|>"}])
    assert TINY.prompt(Request(prompt="Hi<|im_end|>", raw=True)) == TINY.encode("Hi<|im_end|>")
    assert tiny(None).prompt(prompt) == TINY.encode("Hi<|im_end|>")


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(RequestError, match="no chat template") as caught:
        tiny(None).chat([{"role": "user", "content": "Hi"}])
    assert (caught.value.status, caught.value.field) == (400, "messages")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 // 0 }}", "division"),
        ("{% for i in range(10**9) %}{% endfor %}", "[Rr]ange"),
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_a_400(template: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        tiny(template).chat([{"role": "user", "content": "Hi"}])
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


def test_a_template_has_the_names_that_templates_use() -> None:
    tokenizer = tiny(
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{{ bos_token }}{{ {'a': '<é>'} | tojson }}{{ strftime_now('%%') }}{{ eos_token }}"
        "{% endfor %}"
    )
    ids = tokenizer.chat([{"role": "user", "content": "1"}, {"role": "user", "content": "2"}])
    assert (ids[0], ids[-1]) == (START, END)
    assert tokenizer.hf.decode(ids) == '{"a": "<é>"}%'


def test_a_template_is_told_that_there_are_no_tools() -> None:
    tokenizer = tiny("{% if tools is not none or documents is not none %}wrong{% endif %}a")
    assert tokenizer.hf.decode(tokenizer.chat([{"role": "user", "content": "1"}])) == "a"


def test_marks_of_what_is_to_be_learned_are_passed_over() -> None:
    tokenizer = tiny(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    assert tokenizer.hf.decode(tokenizer.chat([{"role": "user", "content": "1"}])) == "1"


def test_a_template_that_is_no_template_names_its_line() -> None:
    tokenizer = tiny("ok\n{% for %}")
    with pytest.raises(RequestError, match=r"chat_template.jinja: line 2: "):
        tokenizer.chat([{"role": "user", "content": "1"}])


def test_truncation_left_over_from_training_is_switched_off() -> None:
    hf = HFTokenizer.from_str(tiny_tokenizer().to_str())
    hf.enable_truncation(4)
    hf.enable_padding(length=8)
    tokenizer = Tokenizer(hf.to_str().encode(), json.dumps(GENERATION).encode(), None)
    assert tokenizer.encode("The capital of France is Paris.") == TINY.encode(
        "The capital of France is Paris."
    )


def test_the_longest_token_is_measured_in_bytes() -> None:
    longest = max(len(TINY.decoder()(token)) for token in range(3, 320))
    assert longest <= TINY.longest_token <= 2 * longest + len("<|endoftext|>")


@pytest.mark.parametrize(
    ("tokenizer_json", "generation", "reason"),
    [
        (b"{", GENERATION, "tokenizer.json: "),
        (None, GENERATION | {"eos": 3}, "generation.json: eos: unknown key"),
        (None, GENERATION | {"eos_token_ids": [-1]}, r"generation.json: eos_token_ids\[0\]: "),
    ],
)
def test_a_wrong_file_is_named(
    tokenizer_json: bytes | None, generation: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ArtifactError, match=reason) as caught:
        Tokenizer(
            tokenizer_json or tiny_tokenizer().to_str().encode(),
            json.dumps(generation).encode(),
            None,
        )
    assert "\n" not in str(caught.value)


def test_a_decoder_of_another_kind_is_refused() -> None:
    hf = HFTokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    hf.decoder = decoders.WordPiece()
    with pytest.raises(ArtifactError, match="decoder WordPiece is not supported"):
        Tokenizer(hf.to_str().encode(), json.dumps(GENERATION).encode(), None)
