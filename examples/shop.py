import httpx
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="local")
answer = client.chat.completions.with_raw_response.create(
    model="assistant",  # or an explicit version: assistant-v1.0
    messages=[{"role": "user", "content": "How do I reset my password?"}],
    user="user-4711",  # the same user stays on the same version
)
print(answer.parse().choices[0].message.content)

trace_id = answer.headers["x-ratchet-trace-id"]  # the body's id is the same
sent = httpx.post(
    "http://127.0.0.1:8081/v1/feedback",
    json={"trace_id": trace_id, "type": "thumbs_up", "user_id": "user-4711"},
).raise_for_status()  # 202: the brokers have it, it will count exactly once
print(sent.json()["feedback_id"])
