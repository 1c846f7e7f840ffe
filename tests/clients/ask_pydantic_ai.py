"""pydantic-ai: an agent with a tool, streamed too, structured output, chat and Responses API."""

import asyncio
import json
import os

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


async def main() -> None:
    class Weather(BaseModel):
        city: str
        celsius: int

    provider = OpenAIProvider(base_url=os.environ["CLIENT_URL"], api_key="none")
    said = {}
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        model = kind(os.environ["CLIENT_MODEL"], provider=provider)
        agent = Agent(
            model,
            instructions="Be brief.",
            tools=[get_weather],
            model_settings={"openai_user": "u1"},
        )
        whole = await agent.run("How warm are both, Paris and Rome?")
        async with agent.run_stream("How warm is Paris?") as stream:
            streamed = await stream.get_output()
        parsed = await Agent(model, output_type=NativeOutput(Weather)).run("How warm is Paris?")
        responses = [message for message in whole.all_messages() if message.kind == "response"]
        said[kind.__name__] = {
            "texts": [whole.output, streamed],
            "parsed": parsed.output.model_dump(),
            "traces": [response.provider_response_id for response in responses],
        }
    print(json.dumps(said))


asyncio.run(main())
