"""A served model with its calculator, by OpenAI's protocol: one engine behind it, whoever may ask before it."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lib import SharpenError
from lib.engine.streaming import EngineDown
from lib.front import protocol
from lib.front.protocol import Asked, Chat, Completion, Refused
from lib.front.writing import Answer, Model, Queue, event

LARGEST_REQUEST = 1 << 20  # bytes
BODY_SECONDS = 30  # in which a request must have arrived
GONE = 499  # a client that left: a status of nginx's, which nobody is sent
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/health")
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)  # of the histograms
LOG = logging.getLogger("sharpen.serve")


class Counts:
    """What Prometheus reads on /metrics."""

    def __init__(self, queue: Queue):
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("sharpen_requests", "answered or refused", ["route", "status"], registry=registry)
        self.tokens = Counter("sharpen_tokens", "read and written", ["kind"], registry=registry)
        self.marks = Counter("sharpen_calculator_marks", "completed marks", ["outcome"], registry=registry)
        self.restarts = Counter("sharpen_engine_restarts", "of an engine that ended by itself", registry=registry)
        self.first = Histogram("sharpen_first_token_seconds", "waiting included", buckets=SECONDS, registry=registry)
        self.whole = Histogram("sharpen_request_seconds", "waiting included", buckets=SECONDS, registry=registry)
        waiting = Gauge("sharpen_requests_waiting", "for a slot", registry=registry)
        waiting.set_function(queue.waiting)
        running = Gauge("sharpen_requests_running", "in a slot", registry=registry)
        running.set_function(queue.running)


@dataclass
class Work:
    """A request that is being answered, by a task of its own: whoever asked may leave."""

    route: str
    answer: Answer
    texts: asyncio.Queue = field(default_factory=asyncio.Queue)  # what settled; None at the end
    began: float = field(default_factory=time.monotonic)
    first_seconds: float | None = None
    task: asyncio.Task | None = None

    async def write(self, model: Model, queue: Queue) -> None:
        """Refused where the engine does not answer, or not in time."""
        try:
            async with asyncio.timeout(model.seconds):
                while not await self._written(queue):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise Refused(504, f"no whole answer in {model.seconds:g} s", "timeout") from None
        except EngineDown as error:
            raise Refused(503, f"{error}; ask again later", "engine_down") from None
        except SharpenError as error:
            raise Refused(500, str(error), "engine_failed") from None
        except Exception as error:  # whoever asked gets an answer, also to a mistake of ours
            LOG.exception("a request failed")
            raise Refused(500, "the server failed", "internal_error") from error
        finally:
            self.texts.put_nowait(None)

    async def _written(self, queue: Queue) -> bool:
        """Is it? Not where the engine ended before it wrote anything: the next one can begin."""
        try:
            async with queue.slot(self.answer) as slot, aclosing(self.answer.pieces(slot)) as texts:
                async for text in texts:
                    self.first_seconds = self.first_seconds or time.monotonic() - self.began
                    self.texts.put_nowait(text)
        except EngineDown:
            if self.answer.tokens or queue.closed:
                raise
            return False
        return True


def app(model: Model, key: str | None = None, hosts: Sequence[str] = ("*",), log_prompts: bool = False,
        lifespan: Any = None) -> FastAPI:  # fmt: skip
    """The server: `key` is what a request must bear, `hosts` are the names that it may have been sent to.

    `state.up` says whether the engine answers."""
    queue = Queue(model.slots, model.queue)
    counts = Counts(queue)
    served = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    served.state.counts, served.state.queue, served.state.up = counts, queue, True

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key and not hmac.compare_digest(given.encode("latin-1"), key.encode()):
            raise Refused(401, "no such API key: send the header `Authorization: Bearer KEY`", "invalid_api_key")

    async def respond(request: Request, asked: Asked) -> Response:
        if asked.model != model.name:
            told = f"there is no model {asked.model!r} here, but {model.name!r}"
            raise Refused(404, told, "model_not_found", "model")
        prompt = await asyncio.to_thread(model.prompt, asked)
        work = Work(request.url.path, Answer(model, asked, prompt))
        queue.enter()
        work.task = asyncio.create_task(work.write(model, queue))
        work.task.add_done_callback(lambda task: (queue.leave(), note(work, task)))
        if not asked.stream:
            await _unless_gone(request, work.task, work.task)
            return JSONResponse(work.answer.whole())
        first = await _unless_gone(request, asyncio.create_task(work.texts.get()), work.task)
        if first is None:  # it has ended, or failed before anything was given
            await work.task
        return StreamingResponse(_events(work, first), media_type="text/event-stream")

    def note(work: Work, task: asyncio.Task) -> None:
        """Count and log what came of a request; without prompt and answer, unless that is wanted."""
        answer, status, seconds = work.answer, 200, time.monotonic() - work.began
        if task.cancelled():
            status = GONE
        elif error := task.exception():
            status, error.noted = getattr(error, "status", 500), True
        usage = answer.usage
        calculated = usage["completion_tokens_details"]["calculator_tokens"]
        written = {"prompt": usage["prompt_tokens"], "written": usage["completion_tokens"] - calculated,
                   "calculator": calculated}  # fmt: skip
        counts.requests.labels(work.route, status).inc()
        for kind, count in written.items():
            counts.tokens.labels(kind).inc(count)
        counts.marks.labels("computed").inc(answer.computed)
        counts.marks.labels("failed").inc(answer.failed)
        if status == 200:
            counts.whole.observe(seconds)
            counts.first.observe(work.first_seconds or seconds)
        line = {"id": answer.id, "route": work.route, "status": status, "finish_reason": answer.reason,
                "seconds": round(seconds, 3), "tokens": written}  # fmt: skip
        if log_prompts:
            line |= {"asked": answer.asked.model_dump(exclude_defaults=True, mode="json"), "answer": answer.text}
        LOG.info(json.dumps(line))

    def refused(request: Request, error: Refused) -> JSONResponse:
        if not error.noted:
            route = request.url.path if request.url.path in ROUTES else "other"
            counts.requests.labels(route, error.status).inc()
            LOG.info(json.dumps({"route": route, "status": error.status, "code": error.code}))
        return error.response()

    @served.exception_handler(Refused)
    async def as_it_says(request: Request, error: Refused) -> JSONResponse:
        return refused(request, error)

    @served.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refused(request, protocol.invalid(error))

    @served.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return refused(request, Refused(error.status_code, str(error.detail), "not_answered"))

    @served.post("/v1/chat/completions", dependencies=[Depends(allowed)])
    async def chat_completions(request: Request, asked: Chat) -> Response:
        return await respond(request, asked)

    @served.post("/v1/completions", dependencies=[Depends(allowed)])
    async def completions(request: Request, asked: Completion) -> Response:
        return await respond(request, asked)

    @served.get("/v1/models", dependencies=[Depends(allowed)])
    async def models() -> dict:
        about = {"id": model.name, "object": "model", "created": started, "owned_by": "sharpen",
                 "max_model_len": model.context, "calculator": bool(model.marks)}  # fmt: skip
        return {"object": "list", "data": [about]}

    @served.get("/metrics", dependencies=[Depends(allowed)])
    async def metrics() -> Response:
        return Response(generate_latest(counts.registry), media_type="text/plain; version=0.0.4")

    @served.get("/health")
    async def health() -> dict:
        if not served.state.up:
            raise Refused(503, "the engine has ended and is being started again", "engine_down")
        return {"status": "ok"}

    started = int(time.time())
    served.add_middleware(TrustedHostMiddleware, allowed_hosts=[in_url(host) for host in hosts])
    served.add_middleware(Limited)
    return served


def in_url(host: str) -> str:
    """A host as URLs and requests have it."""
    return f"[{host}]" if ":" in host else host


async def _unless_gone(request: Request, first: asyncio.Task, work: asyncio.Task) -> Any:
    """What `first` brings; where whoever asked leaves before, `work` is given up."""
    gone = asyncio.create_task(request.receive())  # the body has been read: only the end can come
    await asyncio.wait([first, gone], return_when=asyncio.FIRST_COMPLETED)
    if first.done():
        gone.cancel()
        return first.result()
    work.cancel()
    left = Refused(GONE, "the client has gone", "gone")
    left.noted = True  # with its work
    raise left


async def _events(work: Work, text: str | None) -> AsyncIterator[str]:
    """A stream of what settles, from its first `text` on."""
    try:
        if isinstance(work.answer.asked, Chat):
            yield work.answer.chunk("", role="assistant")
        while text is not None:
            yield work.answer.chunk(text)
            text = await work.texts.get()
        await asyncio.wait([work.task])
        if error := work.task.exception():
            yield event(error.body())
        else:
            yield work.answer.last_chunks()
    finally:
        work.task.cancel()


class Limited:
    """Requests of over a megabyte are refused, and those that do not arrive."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        size, whole, until = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

        async def limited() -> dict:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not arrive in {BODY_SECONDS} s") from None
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > LARGEST_REQUEST:
                raise HTTPException(413, f"a request has at most {LARGEST_REQUEST} bytes")
            return message

        await self.app(scope, limited, send)
