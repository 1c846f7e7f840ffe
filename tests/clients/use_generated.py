"""A product and an operator's tool against the services, by what openapi-python-client made.

Runs with the clients' own packages, and without this project's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import feedback_api as feedback
import rollout_api as rollout
from feedback_api.api.default import (
    export_examples,
    feedback_status,
    list_examples,
    submit,
    submit_batch,
    withdraw,
)
from feedback_api.models import (
    BatchResults,
    Correction,
    ExampleJoined,
    ExampleKind,
    ExamplePage,
    ExportFormat,
    FeedbackBatch,
    FeedbackReceipt,
    FeedbackState,
    FeedbackStatus,
    FeedbackType,
    Preference,
    Problem,
    SignalSubmission,
    SignalType,
    Submission,
)
from rollout_api.api.default import current, explained, register, version, versions
from rollout_api.models import (
    ExplainedStrategy,
    ExplainRequest,
    Lifecycle,
    RegisteredVersion,
    RegisterRequest,
    SettingsRequest,
    TrafficRequest,
    VersionList,
    WholeVersion,
)

WAIT_S = 90.0
TRACE = os.environ["TRACE_ID"]
VALUES: dict[FeedbackType, Any] = {
    FeedbackType.THUMBS_UP: None,
    FeedbackType.THUMBS_DOWN: None,
    FeedbackType.RATING: 4,
    FeedbackType.TEXT_CORRECTION: Correction(corrected="Print the label."),
    FeedbackType.PREFERENCE: Preference(chosen="Print it.", rejected="Ask somebody."),
    FeedbackType.DEMONSTRATION: "Open the account page and print the label.",
    FeedbackType.COMMENT: "The label was hard to find.",
}
SIGNALS: dict[SignalType, Any] = {
    SignalType.REGENERATE: None,
    SignalType.COPY: None,
    SignalType.EDIT_KEPT: 0.5,
    SignalType.ABANDON: None,
    SignalType.FOLLOW_UP: "And where do I bring it?",
}


def client(key: str, of: Any = feedback, url: str = "FEEDBACK_URL") -> Any:
    return of.AuthenticatedClient(base_url=os.environ[url], token=os.environ[key], timeout=30)


def until(said: str, look: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_S
    while not (found := look()):
        assert time.monotonic() < end, f"not in {WAIT_S:g} s: {said}"
        time.sleep(0.2)
    return found


def feedback_of_each_type(product: Any) -> dict[FeedbackType, str]:
    assert set(VALUES) == set(FeedbackType)
    assert set(SIGNALS) == set(SignalType)
    sent: dict[FeedbackType, str] = {}
    for type_, value in VALUES.items():
        user = f"of-{type_.value}"
        body = Submission(trace_id=TRACE, type_=type_, value=value, user_id=user)
        receipt = submit.sync(client=product, body=body)
        assert isinstance(receipt, FeedbackReceipt), receipt
        sent[type_] = receipt.feedback_id
    for signal, value in SIGNALS.items():
        body = SignalSubmission(trace_id=TRACE, type_=signal, value=value, user_id="of-signals")
        assert isinstance(submit.sync(client=product, body=body), FeedbackReceipt)
    return sent


def status_of(product: Any, feedback_id: str) -> FeedbackStatus | None:
    found = feedback_status.sync(feedback_id, client=product, trace_id=TRACE)
    return found if isinstance(found, FeedbackStatus) else None


def read_back(product: Any, operator: Any, sent: dict[FeedbackType, str]) -> None:
    for type_, feedback_id in sent.items():

        def counted(feedback_id: str = feedback_id) -> FeedbackStatus | None:
            found = status_of(product, feedback_id)
            return found if found and found.state is FeedbackState.COUNTED else None

        found = until(f"{type_} counts", counted)
        (revision,) = found.revisions
        assert revision.type_ == type_.value
        assert found.counted.version == os.environ["VERSION"]
        if type_ is FeedbackType.TEXT_CORRECTION:
            assert isinstance(revision.value, Correction), revision
    page = list_examples.sync(client=operator, kind=ExampleKind.ANY, limit=10)
    assert isinstance(page, ExamplePage), page
    (row,) = (
        one for one in page.examples if isinstance(one, ExampleJoined) and one.trace_id == TRACE
    )
    assert {one.type_ for one in row.feedback} == set(VALUES)
    exported = export_examples.sync_detailed(
        client=operator, kind=ExampleKind.ANY, format_=ExportFormat.JSONL
    )
    assert exported.status_code == 200
    assert TRACE in exported.content.decode()


def batch_and_withdrawal(product: Any, sent: dict[FeedbackType, str]) -> None:
    rating = Submission(trace_id=TRACE, type_=FeedbackType.RATING, value=9, user_id="of-batch")
    comment = Submission(trace_id=TRACE, type_=FeedbackType.COMMENT, value="Hm.", user_id="u")
    done = submit_batch.sync(client=product, body=FeedbackBatch(items=[rating, comment]))
    assert isinstance(done, BatchResults), done
    refused, stored = done.results
    assert isinstance(refused.error, Problem)
    assert (refused.status, stored.status) == (422, 202)
    up = FeedbackType.THUMBS_UP
    thumb, user = sent[up], f"of-{up.value}"
    gone = withdraw.sync(thumb, client=product, trace_id=TRACE, type_=up, user_id=user)
    assert isinstance(gone, FeedbackReceipt), gone

    def withdrawn() -> bool:
        found = status_of(product, thumb)
        return found is not None and found.state is FeedbackState.WITHDRAWN

    until("it is withdrawn", withdrawn)


def refusals(product: Any) -> dict[int, str]:
    thumb = Submission(trace_id=TRACE, type_=FeedbackType.THUMBS_UP, user_id="u")
    rating = Submission(trace_id=TRACE, type_=FeedbackType.RATING, value=9, user_id="u")
    limited = client("LIMITED_KEY")

    def over() -> Problem | None:
        answer = submit.sync(client=limited, body=thumb)
        return answer if isinstance(answer, Problem) else None

    found = [
        submit.sync(client=client("WRONG_KEY"), body=thumb),
        list_examples.sync(client=product, kind=ExampleKind.ANY),
        feedback_status.sync("nobody-gave-it", client=product),
        submit.sync(client=product, body=rating),
        until("a key has sent more than it may", over),
    ]
    assert all(isinstance(one, Problem) for one in found), found
    return {one.status: one.code for one in found}


def control() -> dict[int, str]:
    operator = client("OPERATOR_KEY", rollout, "ROLLOUT_URL")
    model, name = "typed", "typed-v1.0"
    body = RegisterRequest(
        version=name,
        model=model,
        base="base",
        reason="a typed client asks",
        settings=SettingsRequest(system="Be kind."),
    )
    made = register.sync(client=operator, body=body)
    # The TypeScript suite may have been there before.
    assert isinstance(made, RegisteredVersion) or made.status == 409, made

    def stable() -> WholeVersion | None:
        found = version.sync(name, client=operator)
        assert isinstance(found, WholeVersion), found
        return found if found.state is Lifecycle.STABLE else None

    assert until("it is stable", stable).record.settings.system == "Be kind."
    listed = versions.sync(client=operator, model=model)
    assert isinstance(listed, VersionList)
    assert [one.version for one in listed.versions] == [name]
    traffic = TrafficRequest(requests_per_s=5)
    plan = explained.sync(client=operator, body=ExplainRequest(strategy="default", traffic=traffic))
    assert isinstance(plan, ExplainedStrategy), plan
    assert plan.steps[0].waits_for
    nobody = client("WRONG_KEY", rollout, "ROLLOUT_URL")
    found = [
        current.sync(client=operator, model=model),
        explained.sync(client=operator, body=ExplainRequest(strategy="none-such")),
        versions.sync(client=nobody),
    ]
    return {one.status: one.code for one in found}


def main() -> None:
    product, operator = client("PRODUCT_KEY"), client("OPERATOR_KEY")
    sent = feedback_of_each_type(product)
    read_back(product, operator, sent)
    batch_and_withdrawal(product, sent)
    said = {
        "types": [type_.value for type_ in sent],
        "refusals": refusals(product),
        "control": control(),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
