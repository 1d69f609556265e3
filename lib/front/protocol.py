"""What may be asked of a served model: OpenAI's protocol, as far as it is kept, and how it refuses."""

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

RETRY_SECONDS = 5  # after which a client may ask again


class Form(BaseModel):
    """What knows no other fields than its own."""

    model_config = ConfigDict(extra="forbid")


class Text(Form):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Form):
    """A turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Text]

    def plain(self) -> dict[str, str]:
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": self.role, "content": text}


class TextFormat(Form):
    """The one form of an answer."""

    type: Literal["text"]


class StreamOptions(Form):
    """What a stream tells at its end."""

    include_usage: bool = False


class Asked(Form):
    """What both ways of asking share, by OpenAI's names; last what Sharpen adds to them.

    What would change nothing is accepted; all else that is not named here is refused."""

    model: str
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = []
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    user: str | None = None
    calculator: bool | None = None
    marks: Literal["show", "hide"] = "show"
    ignore_eos: bool = False

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, asked: Any) -> Any:
        """Null is as good as nothing, and one stop as a list of one."""
        if not isinstance(asked, dict):
            return asked
        if isinstance(asked.get("stop"), str):
            asked = asked | {"stop": [asked["stop"]]}
        return {name: value for name, value in asked.items() if value is not None}


class Chat(Asked):
    """/v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None


class Completion(Asked):
    """/v1/completions."""

    prompt: str | list[int]
    echo: Literal[False] | None = None
    logprobs: None = None
    best_of: Literal[1] | None = None


class Refused(Exception):
    """A request is not answered: an HTTP status, and an error by OpenAI's form."""

    noted = False  # counted and logged with what it came of

    def __init__(self, status: int, message: str, code: str, param: str | None = None):
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {}
        if self.status in (429, 503):
            headers["Retry-After"] = str(RETRY_SECONDS)
        return JSONResponse(self.body(), self.status, headers)


def invalid(error: RequestValidationError) -> Refused:
    """The first thing that is wrong with a request, as a refusal."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:]) or None
    problem = first["msg"]
    if first["type"] == "extra_forbidden":
        problem = "is not supported"
    if first["type"] == "json_invalid":
        place, problem = None, f"the request is no JSON: {first['ctx']['error']}"
    return Refused(400, f"{place}: {problem}" if place else problem, "invalid_value", place)
