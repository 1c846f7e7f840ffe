"""Mounts raters' pages and their invites on the service's application."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import FastAPI, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.routing import Route

from services.feedback.errors import FeedbackError, Reason, field_errors, invalid
from services.feedback.settings import FeedbackSettings
from services.feedback.submissions import parse_json
from services.feedback.voting.invites import Invites, Rater
from services.feedback.voting.pages import OFF, PATH, pages_app, pages_off
from services.feedback.voting.plan import VotingPlan, load_plan
from services.feedback.voting.sessions import RaterSessions, SignIn
from shared.clock import Clock
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import Identifier
from shared.http.body import read_body
from shared.http.openapi import problem_responses
from shared.http.problems import json_response
from shared.keys import KeyRing

MAX_INVITE_BYTES = 10_000
INVITE_TIMEOUT_S = 10.0
MAX_INVITE_HOURS = 24 * 90


class VotingOff(FeedbackError):
    """The voting page is off, so nobody can be invited to it."""

    status = 503
    code = Reason.not_found
    title = "Voting page off"


class InviteRequest(BaseModel):
    """Body of `POST /v1/invites`."""

    model_config = ConfigDict(extra="forbid")
    user_id: Identifier
    hours: Annotated[float, Field(gt=0, le=MAX_INVITE_HOURS)] = 24 * 7


class Invited(BaseModel):
    """Invite of a rater."""

    user_id: str
    tenant: str
    path: str = Field(description="of the link that signs them in, at this service")
    expires_at: AwareDatetime


@dataclass(frozen=True, slots=True)
class VotingOptions:
    """What the settings say of the voting page; `sign_in` is None where it is off."""

    plan: VotingPlan
    sign_in: SignIn | None
    authorization: str

    @classmethod
    def of(cls, settings: FeedbackSettings) -> VotingOptions:
        """Read the files that the settings name.

        Raises:
            CredentialsUnreadable: the secret or the key cannot be read, or the secret is short.
            PlanUnreadable: the plan cannot be read or breaks a rule.

        """
        secret = settings.voting_secret()
        sign_in = SignIn(
            secret=secret,
            session_s=round(settings.voting_session_hours * 3600),
            secure=settings.profile != "local",
            proxy_header=settings.voting_user_header,
            embed_origins=settings.embed_origins,
        )
        return cls(
            plan=load_plan(settings.voting_plan_file),
            sign_in=sign_in if secret else None,
            authorization=settings.router_authorization(),
        )


def mount_voting(
    app: FastAPI,
    pages: Callable[[RaterSessions], Sequence[Route]],
    options: VotingOptions,
    keys: KeyRing,
    clock: Clock,
) -> None:
    """Serve raters' pages below PATH, and invites to them; without a secret, the reason why not."""
    sign_in = options.sign_in

    async def invite(request: Request) -> Response:
        """Invite a rater: a link that signs them in until it expires. Scope: operate."""
        key = keys.authenticate(request.headers.get("authorization"), Permission.operate)
        if sign_in is None:
            raise VotingOff(OFF)
        body = await read_body(
            request.scope, request.receive, limit=MAX_INVITE_BYTES, timeout_s=INVITE_TIMEOUT_S
        )
        try:
            asked = InviteRequest.model_validate(parse_json(body))
        except ValidationError as error:
            raise invalid(field_errors(error)) from None
        expires_at = clock.now() + timedelta(hours=asked.hours)
        token = Invites(sign_in.secret).issue(
            Rater(key.tenant, asked.user_id), expires_at=expires_at
        )
        answer = {
            "user_id": asked.user_id,
            "tenant": key.tenant,
            "path": f"{PATH}/sign-in?invite={token}",
            "expires_at": expires_at.isoformat(timespec="seconds"),
        }
        return json_response(201, answer)

    app.add_api_route(
        "/v1/invites",
        invite,
        methods=["POST"],
        response_class=Response,
        summary=invite.__doc__,
        status_code=201,
        responses={201: {"model": Invited}, **problem_responses(400, 408, 413)},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": InviteRequest.model_json_schema()}},
            }
        },
    )
    if sign_in is None:
        app.mount(PATH, pages_off())
    else:
        sessions = RaterSessions(sign_in, keys, clock, authorization=options.authorization)
        app.mount(PATH, pages_app(pages(sessions), sign_in))
