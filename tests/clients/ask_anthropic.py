"""anthropic: a message, whole and streamed, on the Messages API that the router passes through."""

import json
import os

import anthropic


def main() -> None:
    # The client adds /v1 itself.
    client = anthropic.Anthropic(
        base_url=os.environ["CLIENT_URL"].removesuffix("/v1"), api_key="none", max_retries=0
    )
    asked = {
        "model": os.environ["CLIENT_MODEL"],
        "max_tokens": 64,
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "How warm is Paris?"}],
        "metadata": {"user_id": "u1"},
    }
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    said = {
        "texts": [message.content[0].text for message in (whole, streamed)],
        "traces": [message.id for message in (whole, streamed)],
        "tokens": [message.usage.output_tokens for message in (whole, streamed)],
    }
    print(json.dumps(said))


main()
