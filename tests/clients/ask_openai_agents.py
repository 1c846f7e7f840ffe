"""openai-agents: a tool-using run on the Responses API (its default) and one on chat, streamed."""

import asyncio
import json
import os

import openai
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


async def main() -> None:
    class Weather(BaseModel):
        city: str
        celsius: int

    set_tracing_disabled(disabled=True)
    client = openai.AsyncOpenAI(base_url=os.environ["CLIENT_URL"], api_key="none")
    name = os.environ["CLIENT_MODEL"]
    said = {}
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        model = kind(model=name, openai_client=client)
        agent = Agent(
            name="weather",
            instructions="Be brief.",
            tools=[get_weather],
            model=model,
            model_settings=ModelSettings(extra_body={"user": "u1"}),
        )
        whole = await Runner.run(agent, "How warm are both, Paris and Rome?")
        streamed = Runner.run_streamed(agent, "How warm are both, Paris and Rome?")
        async for _ in streamed.stream_events():
            pass
        form = Agent(name="weather", model=model, output_type=Weather)
        parsed = await Runner.run(form, "How warm is Paris?")
        said[kind.__name__] = {
            "texts": [whole.final_output, streamed.final_output],
            "traces": [response.response_id for response in whole.raw_responses],
            "parsed": parsed.final_output.model_dump(),
        }
    print(json.dumps(said))


asyncio.run(main())
