"""Every Python client: a text, whole and streamed, of an engine whose model calls no tools."""

import asyncio
import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import waits for the network

import anthropic
import litellm
import openai
from agents import (
    Agent,
    ModelBehaviorError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticResponses
from pydantic_ai.providers.openai import OpenAIProvider

URL, MODEL = os.environ["CLIENT_URL"], os.environ["CLIENT_MODEL"]
QUESTION = "Where is my parcel?"
TOKENS = 24


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


def ask_anthropic() -> dict[str, list[str]]:
    client = anthropic.Anthropic(base_url=URL.removesuffix("/v1"), api_key="none", max_retries=0)
    asked = {
        "model": MODEL,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": QUESTION}],
        "extra_body": {"temperature": 0},  # the client has no argument for it any more
    }
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    return {"anthropic": [message.content[0].text for message in (whole, streamed)]}


async def ask_openai_agents() -> dict[str, list[str]]:
    set_tracing_disabled(disabled=True)
    client = openai.AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)

    def agent(model: type) -> Agent:
        return Agent(
            name="parcels",
            instructions="Be brief.",
            tools=[function_tool(get_weather)],
            model=model(model=MODEL, openai_client=client),
            model_settings=ModelSettings(temperature=0, max_tokens=TOKENS),
        )

    whole = await Runner.run(agent(OpenAIChatCompletionsModel), QUESTION)
    streamed = Runner.run_streamed(agent(OpenAIChatCompletionsModel), QUESTION)
    async for _ in streamed.stream_events():
        pass
    said = {"openai-agents chat": [whole.final_output, streamed.final_output]}
    try:  # The engine's model never ends by itself; the client takes a cut response for an error.
        await Runner.run(agent(OpenAIResponsesModel), QUESTION)
    except ModelBehaviorError as cut:
        said["openai-agents responses"] = [str(cut)]
    return said


def ask_langchain() -> dict[str, list[str]]:
    said = {}
    for api in ("chat", "responses"):
        model = ChatOpenAI(
            base_url=URL,
            model=MODEL,
            api_key="none",
            max_retries=0,
            temperature=0,
            max_tokens=TOKENS,
            use_responses_api=api == "responses",
        ).bind_tools([tool(get_weather)])
        chunks = model.stream(QUESTION)
        streamed = "".join(chunk.text for chunk in chunks)
        said[f"langchain-openai {api}"] = [model.invoke(QUESTION).text, streamed]
    return said


def ask_litellm() -> dict[str, list[str]]:
    settings = {
        "model": f"openai/{MODEL}",
        "api_base": URL,
        "api_key": "none",
        "temperature": 0,
    }
    asked = {
        **settings,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    whole = litellm.completion(**asked).choices[0].message.content
    chunks = litellm.completion(**asked, stream=True)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    response = litellm.responses(**settings, input=QUESTION, max_output_tokens=TOKENS)
    said = response.output[0].content[0].text
    return {"litellm completion": [whole, streamed], "litellm responses": [said]}


async def ask_pydantic_ai() -> dict[str, list[str]]:
    provider = OpenAIProvider(base_url=URL, api_key="none")
    said = {}
    for kind in (OpenAIChatModel, PydanticResponses):
        agent = PydanticAgent(
            kind(MODEL, provider=provider),
            instructions="Be brief.",
            tools=[get_weather],
            model_settings={"temperature": 0, "max_tokens": TOKENS},
        )
        whole = await agent.run(QUESTION)
        async with agent.run_stream(QUESTION) as stream:
            streamed = await stream.get_output()
        said[f"pydantic-ai {kind.__name__}"] = [whole.output, streamed]
    return said


async def main() -> None:
    said = {
        **ask_anthropic(),
        **await ask_openai_agents(),
        **ask_langchain(),
        **ask_litellm(),
        **await ask_pydantic_ai(),
    }
    print(json.dumps(said))


asyncio.run(main())
