"""litellm as a client: text, stream, tools, reasoning and the Responses API of an own address."""

import json
import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import waits for the network

import litellm

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def main() -> None:
    settings = {
        "model": f"openai/{os.environ['CLIENT_MODEL']}",
        "api_base": os.environ["CLIENT_URL"],
        "api_key": "none",
    }
    turns = [{"role": "user", "content": "How warm are both, Paris and Rome?"}]
    whole = litellm.completion(
        **settings, messages=turns, user="u1", allowed_openai_params=["user"]
    )
    chunks = list(litellm.completion(**settings, messages=turns, stream=True))
    called = litellm.completion(**settings, messages=turns, tools=[TOOL]).choices[0].message
    thought = litellm.completion(
        **settings,
        messages=turns,
        reasoning_effort="low",
        allowed_openai_params=["reasoning_effort"],
    )
    response = litellm.responses(**settings, input="How warm is Paris?")
    said = {
        "texts": [
            whole.choices[0].message.content,
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
            response.output[0].content[0].text,
        ],
        "calls": [json.loads(call.function.arguments) for call in called.tool_calls],
        "reasoning": thought.choices[0].message.reasoning_content,
        "traces": [whole.id, chunks[0].id],
    }
    print(json.dumps(said))


main()
