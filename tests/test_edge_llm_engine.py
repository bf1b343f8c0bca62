"""The engine on an executor without a model: what it promises to everyone who submits a request."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pytest

from edge_llm import buffers
from edge_llm.batch import Batch
from edge_llm.engine import Engine
from edge_llm.errors import RequestError
from edge_llm.events import Accepted, Event, Failed, Finished, Text
from edge_llm.request import Request, Sampling
from edge_llm.text_stream import TextStream
from tests.fake_executor import TOKENIZER, VOCAB, FakeExecutor, spelling

E = TypeVar("E", bound=Event)


class Client:
    """Takes the events of one request and checks that their order is the one promised."""

    def __init__(self, hook: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self._hook = hook
        self._over = threading.Event()

    def __call__(self, event: Event) -> None:
        assert not self._over.is_set(), "an event after the last"
        assert isinstance(event, Accepted) == (not self.events), "Accepted comes first, once"
        self.events.append(event)
        self._hook(event)
        if isinstance(event, (Finished, Failed)):
            self._over.set()

    def last(self) -> Event:
        assert self._over.wait(timeout=60)
        return self.events[-1]

    def finished(self) -> Finished:
        last = self.last()
        assert isinstance(last, Finished), last
        assert last.text == "".join(text.text for text in self.of(Text))
        return last

    def failed(self) -> RequestError:
        last = self.last()
        assert isinstance(last, Failed), last
        return last.error

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def _no_listener_fails(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A client's assertion that fails on the engine's thread is a failure of its test."""
    yield
    assert "a listener failed" not in caplog.text


@contextlib.contextmanager
def engine_of(executor: FakeExecutor, queue: int = 64) -> Iterator[Engine]:
    engine = Engine(executor, TOKENIZER, queue)
    try:
        yield engine
    finally:
        executor.gate.set()
        engine.close()
    assert executor.closed


def raw(text: str, max_tokens: int | None = 12, **more: object) -> Request:
    return Request(prompt=text, raw=True, max_tokens=max_tokens, **more)  # type: ignore[arg-type]


def answer(engine: Engine, request: Request) -> Finished:
    client = Client()
    engine.submit(request, client)
    return client.finished()


def all_free(engine: Engine) -> bool:
    metrics = engine.metrics()
    return metrics.pages_free == metrics.pages_total and metrics.active == metrics.queued == 0


# One answer


def test_an_answer_is_accepted_streamed_and_finished() -> None:
    with engine_of(FakeExecutor()) as engine:
        client = Client()
        engine.submit(raw("The capital", max_tokens=20), client)
        finished = client.finished()
        assert client.events[0] == Accepted(0)
        assert (finished.reason, finished.completion_tokens) == ("length", 20)
        assert finished.prompt_tokens == len(TOKENIZER.encode("The capital"))
        tokens = [text.tokens for text in client.of(Text)]
        assert tokens == sorted(tokens)
        assert all(text.text for text in client.of(Text))
        assert min(finished.queue_seconds, finished.prefill_seconds, finished.decode_seconds) >= 0


def test_the_end_token_ends_an_answer_and_is_not_text() -> None:
    executor = FakeExecutor(spelling("Paris, é😀."))
    with engine_of(executor) as engine:
        finished = answer(engine, raw("France?<|endoftext|>", max_tokens=None))
        assert (finished.text, finished.reason) == ("Paris, é😀.", "stop")
        assert finished.completion_tokens == len(TOKENIZER.encode("Paris, é😀.")) + 1


def test_a_chat_goes_through_the_template() -> None:
    newline = TOKENIZER.encode("\n")[0]
    with engine_of(FakeExecutor(spelling("Rome.", newline))) as engine:
        messages = ({"role": "user", "content": "Italy?"},)
        assert answer(engine, Request(messages=messages)).text == "Rome."
        assert answer(engine, Request(prompt="Italy?")).text == "Rome."


def test_a_stop_string_ends_an_answer_and_no_part_of_it_is_told() -> None:
    with engine_of(FakeExecutor(spelling("One. Two. Three."))) as engine:
        client = Client()
        engine.submit(raw("Count:<|endoftext|>", None, stop=(". Thr", "Z")), client)
        assert client.finished().text == "One. Two"
        assert client.finished().reason == "stop"
        told = ""
        for text in client.of(Text):
            told += text.text
            assert "One. Two".startswith(told)


def test_what_only_began_like_a_stop_string_is_told_at_the_end() -> None:
    with engine_of(FakeExecutor(spelling("One. Tw"))) as engine:
        assert answer(engine, raw("Count:<|endoftext|>", None, stop=(". Two",))).text == "One. Tw"


def test_the_prompt_may_fill_all_but_one_place_of_the_context() -> None:
    with engine_of(FakeExecutor(context=64)) as engine:
        text = "a" * 63
        assert len(TOKENIZER.encode(text)) == 63
        finished = answer(engine, raw(text, max_tokens=None))
        assert (finished.reason, finished.completion_tokens) == ("length", 1)


def test_an_answer_ends_where_the_context_does() -> None:
    with engine_of(FakeExecutor(context=64)) as engine:
        for max_tokens in (None, 1000):
            finished = answer(engine, raw("Hello", max_tokens))
            assert finished.reason == "length"
            assert finished.prompt_tokens + finished.completion_tokens == 64


def test_fewer_pages_than_the_context_limit_a_sequence_too() -> None:
    with engine_of(FakeExecutor(context=64, pages=5, page_positions=4)) as engine:
        assert engine.limit == 20
        finished = answer(engine, raw("Hello", None))
        assert finished.prompt_tokens + finished.completion_tokens == 20


def test_chunked_prefill_changes_nothing() -> None:
    request = raw("The capital of France is Paris. What is it?", 10)
    texts = set()
    for max_rows in (1, 3, 8, 64):
        with engine_of(FakeExecutor(max_rows=max_rows)) as engine:
            texts.add(answer(engine, request).text)
    assert len(texts) == 1


# Many


def requests() -> list[Request]:
    """Prompts and answers of many lengths, greedy and sampled."""
    prompts = ["a", "Hello", "The capital of France is Paris.", "What time is it?", "x" * 30]
    return [
        raw(
            prompt + str(number),
            1 + (7 * number) % 23,
            sampling=Sampling(
                temperature=0.9 * (number % 2), seed=number, repetition_penalty=1.0 + number % 3
            ),
            priority=number % 2,
        )
        for number, prompt in enumerate(prompts * 6)
    ]


def test_many_at_once_are_answered_as_one_at_a_time() -> None:
    alone, together = FakeExecutor(pages=40), FakeExecutor(pages=40)
    with engine_of(alone) as engine:
        wanted = [answer(engine, request).text for request in requests()]
    with engine_of(together) as engine:
        together.gate.clear()
        clients = [Client() for _ in wanted]
        for request, client in zip(requests(), clients, strict=True):
            engine.submit(request, client)
        together.gate.set()
        assert [client.finished().text for client in clients] == wanted
        assert all_free(engine)
    assert sum(together.rows) == sum(alone.rows)
    assert len(together.rows) < 0.5 * len(alone.rows)  # they did share steps


def test_sequences_that_run_together_advance_together() -> None:
    """Nobody waits for another's answer: token counts differ by no more than the head start."""
    executor = FakeExecutor()
    counts = [0, 0, 0]
    gaps: list[int] = []

    def counter(number: int) -> Client:
        def hook(event: Event) -> None:
            if isinstance(event, Text):
                counts[number] = event.tokens
                if min(counts):
                    gaps.append(max(counts) - min(counts))

        return Client(hook)

    with engine_of(executor) as engine:
        executor.gate.clear()
        clients = [counter(number) for number in range(3)]
        for client in clients:
            engine.submit(raw("a", 15), client)
        executor.gate.set()
        for client in clients:
            client.finished()
    assert max(gaps) <= 4  # one for the head start, up to three bytes of a character held back


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    order: list[str] = []

    def noting(name: str) -> Client:
        return Client(lambda event: order.append(name) if isinstance(event, Finished) else None)

    executor = FakeExecutor()
    with engine_of(executor) as engine:
        long, short = noting("long"), noting("short")
        executor.gate.clear()
        engine.submit(raw("a", 30), long)
        assert executor.steps_begun.acquire(timeout=60)  # its first token is being computed
        engine.submit(raw("b", 2), short)
        executor.gate.set()
        short.finished()
        long.finished()
    assert order == ["short", "long"]


def test_waiting_requests_are_told_their_place_and_served_by_priority() -> None:
    order: list[int] = []
    executor = FakeExecutor(pages=16)
    with engine_of(executor) as engine:
        executor.gate.clear()
        first = Client()
        engine.submit(raw("a", None), first)  # takes every page
        assert executor.steps_begun.acquire(timeout=60)

        def noting(number: int) -> Client:
            return Client(
                lambda event: order.append(number) if isinstance(event, Finished) else None
            )

        clients = [noting(number) for number in range(4)]
        for number, priority in enumerate((0, 5, -1, 5)):
            engine.submit(raw("b", None, priority=priority), clients[number])
        executor.gate.set()
        for client in clients:
            client.finished()
    assert order == [1, 3, 0, 2]
    assert [client.of(Accepted)[0].position for client in clients] == [2, 0, 3, 1]


def test_requests_from_many_threads_all_end_and_leave_no_page_behind() -> None:
    executor = FakeExecutor()

    def one(number: int) -> str:
        client = Client()
        ticket = engine.submit(raw("a" * (1 + number % 9), 1 + number % 13), client)
        if number % 3 == 0:
            engine.cancel(ticket)
        return client.finished().reason

    with engine_of(executor) as engine, ThreadPoolExecutor(8) as threads:
        reasons = list(threads.map(one, range(120)))
        assert set(reasons) <= {"length", "cancelled"}
        assert all(reason == "length" for number, reason in enumerate(reasons) if number % 3)
        assert all_free(engine)


# Cancellation and deadlines


def test_a_cancelled_request_ends_within_one_token() -> None:
    executor = FakeExecutor()
    with engine_of(executor) as engine:
        client = Client()
        executor.gate.clear()
        ticket = engine.submit(raw("a", None), client)
        assert executor.steps_begun.acquire(timeout=60)  # the first token is being computed
        engine.cancel(ticket)
        engine.cancel(ticket)
        executor.gate.set()
        finished = client.finished()
        assert (finished.reason, finished.completion_tokens) == ("cancelled", 1)
        assert len(executor.rows) == 1
        assert all_free(engine)
        engine.cancel(ticket)
        engine.cancel(12345)
        assert answer(engine, raw("a", 3)).reason == "length"


def test_a_request_cancelled_while_it_waits_is_never_computed() -> None:
    executor = FakeExecutor()
    with engine_of(executor) as engine:
        executor.gate.clear()
        running, waiting = Client(), Client()
        engine.submit(raw("a", None), running)
        assert executor.steps_begun.acquire(timeout=60)
        engine.cancel(engine.submit(raw("b", None), waiting))
        executor.gate.set()
        finished = waiting.finished()
        assert (finished.reason, finished.text) == ("cancelled", "")
        assert (finished.completion_tokens, finished.prefill_seconds) == (0, 0)
        assert running.finished().reason == "length"


def test_an_expired_request_never_starts() -> None:
    executor = FakeExecutor()
    with engine_of(executor) as engine:
        finished = answer(engine, raw("a", deadline=time.monotonic()))
        assert (finished.reason, finished.text, finished.completion_tokens) == ("expired", "", 0)
        assert executor.rows == []


def test_a_running_request_stops_at_its_deadline_and_tells_nothing_after_it() -> None:
    executor = FakeExecutor()
    with engine_of(executor) as engine:
        executor.gate.clear()
        deadline = time.monotonic() + 0.05
        late, patient = Client(), Client()
        engine.submit(raw("a", 20, deadline=deadline), late)
        engine.submit(raw("a", 20), patient)
        while time.monotonic() <= deadline:
            threading.Event().wait(deadline - time.monotonic() + 0.001)
        executor.gate.set()
        finished = late.finished()
        assert finished.reason == "expired"
        assert finished.completion_tokens <= 1  # the one computed while the deadline passed
        assert patient.finished().reason == "length"


# Refusals


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (raw(""), 400, "the prompt has no tokens"),
        (raw("a" * 64), 413, "prompt is 64 tokens, the limit is 63"),
        (raw("a" * 100_000), 413, r"prompt is 100000 bytes, the limit is \d+"),
        (
            Request(messages=({"role": "user", "content": "é" * 50_000},)),
            413,
            "prompt is 100000 bytes",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_at_once(
    request_: Request, status: int, message: str
) -> None:
    with engine_of(FakeExecutor(context=64)) as engine:
        with pytest.raises(RequestError, match=message) as caught:
            engine.submit(request_, Client())
        assert caught.value.status == status
        assert engine.metrics().refused_total == 1


def test_tokens_that_the_model_does_not_have_are_refused() -> None:
    with engine_of(FakeExecutor()) as engine:
        for ids in ([1, VOCAB], [-1]):
            with pytest.raises(RequestError, match="the model has 0 to 319") as caught:
                engine.logits(ids)
            assert caught.value.status == 400


def test_a_full_queue_refuses_and_takes_again() -> None:
    executor = FakeExecutor()
    with engine_of(executor, queue=2) as engine:
        executor.gate.clear()
        clients = [Client() for _ in range(3)]
        engine.submit(raw("a", None), clients[0])
        assert executor.steps_begun.acquire(timeout=60)  # it runs and no longer waits
        engine.submit(raw("b"), clients[1])
        engine.submit(raw("c"), clients[2])
        with pytest.raises(RequestError, match="2 requests are waiting") as caught:
            engine.submit(raw("d"), Client())
        assert caught.value.status == 429
        executor.gate.set()
        for client in clients:
            client.finished()
        assert answer(engine, raw("d")).reason == "length"


# Failures


def test_a_failed_step_fails_what_runs_and_the_engine_goes_on() -> None:
    executor = FakeExecutor(pages=16)
    executor.failures = [None, ValueError("boom")]
    with engine_of(executor) as engine:
        executor.gate.clear()
        clients = [Client() for _ in range(3)]
        for client in clients[:2]:
            engine.submit(raw("a", 20), client)
        engine.submit(raw("a", None), clients[2])  # waits: there are no pages for it
        executor.gate.set()
        failures = [client.failed() for client in clients[:2]]
        assert [(error.status, str(error)) for error in failures] == [
            (500, "a step failed: boom")
        ] * 2
        assert clients[2].finished().reason == "length"
        assert answer(engine, raw("a", 3)).reason == "length"
        assert all_free(engine)
        assert engine.metrics().failed_total == 2


@pytest.mark.parametrize("name", ["make_batch", "advance"])
def test_a_batch_that_cannot_be_made_fails_what_runs_and_the_engine_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Batch:
        raise MemoryError

    with engine_of(FakeExecutor(pages=16)) as engine:
        with monkeypatch.context() as patched:
            patched.setattr(f"edge_llm.engine.{name}", full)
            client = Client()
            engine.submit(raw("a", 20), client)
            assert client.failed().status == 500
        assert answer(engine, raw("a", 3)).reason == "length"
        assert all_free(engine)


class Broken(FakeExecutor):
    """Computes nonsense for prompts of one token."""

    def step(self, batch: Batch) -> list[buffers.Floats]:
        logits = super().step(batch)
        for row, wanted in zip(logits, batch.wanted, strict=True):
            if batch.positions[wanted] == 0:
                row[0] = float("nan")
        return logits


def test_nonsense_for_one_sequence_fails_that_one_alone() -> None:
    executor = Broken()
    with engine_of(executor) as engine:
        executor.gate.clear()
        ill, well = Client(), Client()
        engine.submit(raw("a"), ill)
        engine.submit(raw("aa"), well)
        executor.gate.set()
        assert ill.failed().status == 500
        assert "nan" in str(ill.failed())
        assert well.finished().reason == "length"


def test_an_answer_without_memory_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = FakeExecutor()
    with engine_of(executor) as engine:
        executor.gate.clear()
        ill, well = Client(), Client()
        engine.submit(raw("a"), ill)
        engine.submit(raw("aa"), well)
        feed, calls = TextStream.feed, itertools.count()

        def full(stream: TextStream, data: bytes) -> str:
            if next(calls) == 0:
                raise MemoryError
            return feed(stream, data)

        monkeypatch.setattr(TextStream, "feed", full)
        executor.gate.set()
        assert ill.failed().status == 500
        assert well.finished().reason == "length"


def test_a_listener_that_fails_loses_its_own_answer_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[Event] = []

    def failing(event: Event) -> None:
        told.append(event)
        if isinstance(event, Text):
            raise OSError("gone")

    executor = FakeExecutor()
    with engine_of(executor) as engine:
        executor.gate.clear()
        engine.submit(raw("a", 20), failing)
        client = Client()
        engine.submit(raw("b", 20), client)
        executor.gate.set()
        assert client.finished().reason == "length"
    assert sum(isinstance(event, Text) for event in told) == 1
    assert isinstance(told[-1], Finished)
    assert told[-1].reason == "cancelled"
    assert "a listener failed on Text" in caplog.text
    caplog.clear()


# Closing and resting


def test_closing_fails_what_runs_and_what_waits() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, TOKENIZER)
    executor.gate.clear()
    clients = [Client(), Client()]
    for client in clients:
        engine.submit(raw("a", None), client)
    assert executor.steps_begun.acquire(timeout=60)
    closer = threading.Thread(target=engine.close)
    closer.start()
    executor.gate.set()
    closer.join(timeout=60)
    assert [client.failed().status for client in clients] == [503, 503]
    assert executor.closed
    engine.close()
    with pytest.raises(RequestError, match="the engine is closed") as caught:
        engine.submit(raw("a"), Client())
    assert caught.value.status == 503


def test_an_engine_that_fails_says_so_and_fails_what_is_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a defect")

    executor = FakeExecutor()
    engine = Engine(executor, TOKENIZER)
    ended = threading.Event()
    engine.on_end(ended.set)
    monkeypatch.setattr("edge_llm.engine.make_plan", broken)
    client = Client()
    engine.submit(raw("a"), client)
    assert client.failed().status == 503
    assert ended.wait(timeout=60)
    assert executor.closed
    with pytest.raises(RequestError, match="the engine is closed"):
        engine.submit(raw("a"), Client())
    engine.close()
    late = threading.Event()
    engine.on_end(late.set)
    assert late.is_set()  # at once
    assert "a defect" in caplog.text
    caplog.clear()


def test_a_listener_may_close_the_engine() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, TOKENIZER)
    client = Client(lambda event: engine.close() if isinstance(event, Text) else None)
    engine.submit(raw("a"), client)
    assert client.failed().status == 503
    engine.close()
    assert executor.closed


def test_an_idle_engine_takes_no_processor_time() -> None:
    executor = FakeExecutor()
    with engine_of(executor) as engine:
        answer(engine, raw("a", 3))
        (thread,) = [t for t in threading.enumerate() if t.name == "edge-llm-engine"]
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        threading.Event().wait(0.05)  # whatever followed the answer is over
        before = time.clock_gettime(clock)
        threading.Event().wait(0.2)
        assert time.clock_gettime(clock) - before < 0.002


def test_metrics_count_what_ended() -> None:
    with engine_of(FakeExecutor()) as engine:
        finished = answer(engine, raw("Hello", 5))
        answer(engine, raw("Hello", deadline=time.monotonic()))
        metrics = engine.metrics()
        assert (metrics.finished_total, metrics.stopped_total) == (1, 1)
        assert metrics.prompt_tokens_total == 2 * finished.prompt_tokens
        assert metrics.completion_tokens_total == 5
        assert metrics.decode_tokens_per_second == pytest.approx(4 / finished.decode_seconds)
        assert metrics.time_to_first_token_seconds > 0
        assert metrics.resident_bytes > 2**20


# Logits


def test_logits_are_those_of_every_position() -> None:
    ids = TOKENIZER.encode("The capital of France is Paris. The capital")
    with engine_of(FakeExecutor(max_rows=5)) as engine:
        logits = engine.logits(ids)
        assert logits.shape == (len(ids), VOCAB)
        for length in (1, 4, 5, 6, len(ids)):
            np.testing.assert_array_equal(engine.logits(ids[:length]), logits[:length])
        assert all_free(engine)
        assert len(engine.logits([3] * 64)) == 64
        with pytest.raises(RequestError, match="prompt is 65 tokens, the limit is 64"):
            engine.logits([3] * 65)


def test_logits_and_answers_do_not_disturb_each_other() -> None:
    executor = FakeExecutor()
    ids = TOKENIZER.encode("Water the plants when")
    with engine_of(executor) as engine:
        wanted, text = engine.logits(ids), answer(engine, raw("a", 20)).text
        executor.gate.clear()
        client = Client()
        engine.submit(raw("a", 20), client)
        with ThreadPoolExecutor(1) as thread:
            scored = thread.submit(engine.logits, ids)
            executor.gate.set()
            np.testing.assert_array_equal(scored.result(timeout=60), wanted)
        assert client.finished().text == text


def test_logits_report_a_failed_step_and_a_closed_engine() -> None:
    executor = FakeExecutor()
    executor.failures = [ValueError("boom")]
    with engine_of(executor) as engine, pytest.raises(RequestError, match="boom"):
        engine.logits([3])
    with pytest.raises(RequestError, match="closed"):
        engine.logits([3])
