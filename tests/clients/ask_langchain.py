"""langchain-openai: text, stream, tools bound and answered, structured output, the Responses API."""

import json
import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


def main() -> None:
    class Weather(BaseModel):
        city: str
        celsius: int

    settings = {
        "base_url": os.environ["CLIENT_URL"],
        "model": os.environ["CLIENT_MODEL"],
        "api_key": "none",
        "max_retries": 0,
        "model_kwargs": {"user": "u1"},
    }
    said = {}
    for api in ("chat", "responses"):
        model = ChatOpenAI(**settings, use_responses_api=api == "responses", stream_usage=True)
        whole = model.invoke("How warm is Paris?")
        chunks = list(model.stream("How warm is Paris?"))
        bound = model.bind_tools([get_weather])
        question = HumanMessage("How warm are both, Paris and Rome?")
        asked = bound.invoke([question])
        results = [
            ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
            for call in asked.tool_calls
        ]
        answered = bound.invoke([question, asked, *results])
        streamed = None
        for chunk in bound.stream([question]):
            streamed = chunk if streamed is None else streamed + chunk
        parsed = model.with_structured_output(Weather).invoke("How warm is Paris?")
        said[api] = {
            "texts": [whole.text, "".join(chunk.text for chunk in chunks), answered.text],
            "usage": whole.usage_metadata["total_tokens"],
            "calls": [call["args"] for call in asked.tool_calls],
            "streamed_calls": [call["args"] for call in streamed.tool_calls],
            "parsed": parsed.model_dump(),
            "traces": [message.response_metadata["id"] for message in (whole, asked, answered)],
        }
    print(json.dumps(said))


main()
