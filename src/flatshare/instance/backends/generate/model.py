"""A generating model that is loaded: calls in, jobs for the stepper out."""

import threading
from contextlib import nullcontext
from functools import lru_cache

from flatshare.core.call import InferCall, InferResult
from flatshare.core.errors import Abandoned, BadInput
from flatshare.core.generation import Decoding, Generated, Piece
from flatshare.core.signature import Signature, Task, TensorInfo
from flatshare.core.spec import GenerationSpec
from flatshare.instance.backends.base import StopSign
from flatshare.instance.backends.generate import prompts, writing
from flatshare.instance.backends.generate.job import Job, Listener
from flatshare.instance.backends.generate.network import Network
from flatshare.instance.backends.generate.stepper import Mark, Stepper
from flatshare.instance.backends.generate.vocabulary import Vocabulary
from flatshare.wire import generation

_LOOK_S = 0.05  # how soon a plain `run` notices that its caller has left


class GeneratingModel:
    """See the module. `kept` lives as long as the model does."""

    def __init__(self, number: int, spec: GenerationSpec, network: Network, vocabulary: Vocabulary, stepper: Stepper, kept: object) -> None:
        self._number = number
        self._spec = spec
        self._network = network
        self._vocabulary = vocabulary
        self._stepper = stepper
        self._kept = kept
        self._mark: Mark = nullcontext

    @property
    def signature(self) -> Signature:
        return _signature()

    def mark_turns(self, mark: Mark) -> None:
        """From now on, each of its turns on the stepper's thread happens within `mark()`. Before the first call only."""
        self._mark = mark

    def prepare(self, call: InferCall) -> tuple[writing.Task, ...]:
        """Check and tokenise: work for a worker thread. Raises BadInput."""
        decoding = generation.parse(call.parameters)
        texts = self._texts(call)
        if not 0 < len(texts) <= generation.MAX_PROMPTS:
            raise BadInput(f"{len(texts)} prompts in one call: 1 to {generation.MAX_PROMPTS} are accepted, split the call")
        is_chat = "messages" in call.inputs
        tasks = tuple(self._task(index, text, decoding, is_chat=is_chat) for index, text in enumerate(texts))
        for task in tasks:
            self._require_fit(task)
        return tasks

    def start(self, tasks: tuple[writing.Task, ...], listener: Listener) -> Job:
        """Let it be written; returns at once. Raises Overloaded."""
        job = Job(tasks, tasks[0].decoding.session, listener)
        self._stepper.submit(self._number, self._network, job, self._mark)
        return job

    def cancel(self, job: Job) -> None:
        """Its rows are given up before the next step, and its listener hears so."""
        job.cancel()
        self._stepper.wake()

    def run(self, call: InferCall, stop: StopSign | None = None) -> InferResult:
        """Write to the end and answer. Raises BadInput, Overloaded, Abandoned."""
        if stop is not None and stop.is_set():
            raise Abandoned("the caller has left")
        waiter = _Waiter()
        job = self.start(self.prepare(call), waiter)
        while not waiter.is_over.wait(_LOOK_S):
            if stop is not None and stop.is_set():
                self.cancel(job)
                waiter.is_over.wait()
        if waiter.error is not None:
            raise waiter.error
        assert waiter.result is not None, "over without a result or an error. This is a bug."
        return generation.result_of(waiter.result, call, job.tasks[0].decoding)

    def _texts(self, call: InferCall) -> list[str]:
        if "messages" in call.inputs:
            if "text" in call.inputs:
                raise BadInput("send either 'text' or 'messages'")
            from flatshare.instance.backends.generate import chat  # noqa: PLC0415  # its template engine is 2 MB of private memory

            return [chat.render(self._spec, chat.parse_messages(text)) for text in call.inputs["messages"].texts()]
        if "text" not in call.inputs:
            raise BadInput("send 'text', one prompt or several, or 'messages', a conversation")
        return call.inputs["text"].texts()

    def _task(self, index: int, text: str, decoding: Decoding, *, is_chat: bool) -> writing.Task:
        start = prompts.beginning(self._spec, self._vocabulary, text, decoding.typed, is_chat=is_chat)
        return writing.Task(index, start.prompt, start.unfinished, decoding, frozenset(self._spec.ends), self._vocabulary)

    def _require_fit(self, task: writing.Task) -> None:
        """Within the model's positions, and within the memory that there is for all."""
        decoding, prompt = task.decoding, task.prompt
        prompts.require_positions(self._spec, prompt, decoding.max_tokens)
        need = decoding.rows * self._network.bytes_of(prompt, decoding.max_tokens)
        limit = self._stepper.memory.limit_bytes
        if need > limit:
            raise BadInput(
                f"{decoding.rows} texts of up to {prompt.tokens + decoding.max_tokens} tokens take {need >> 20} MiB of cache, the instance "
                f"has {limit >> 20}: ask for fewer beams, texts or tokens, or raise --memory"
            )


class _Waiter:
    """A listener that somebody waits for."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.result: Generated | None = None
        self.error: Exception | None = None

    def piece(self, piece: Piece) -> None:
        """Only the whole is wanted."""

    def generated(self, generated: Generated) -> None:
        self.result = generated
        self.is_over.set()

    def failed(self, error: Exception) -> None:
        self.error = error
        self.is_over.set()


@lru_cache(maxsize=1)
def _signature() -> Signature:
    inputs = (TensorInfo("text", "BYTES", (-1,), is_optional=True), TensorInfo("messages", "BYTES", (-1,), is_optional=True))
    outputs = (
        TensorInfo("text", "BYTES", (-1,)),
        TensorInfo("finish_reason", "BYTES", (-1,)),
        TensorInfo("tokens", "INT32", (-1,)),
        TensorInfo("logprob", "FP32", (-1,)),
    )
    return Signature(Task.GENERATION, "flatshare_generate", inputs, outputs)
