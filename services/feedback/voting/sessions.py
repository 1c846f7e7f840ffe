"""Rater sessions: sign-in by an invite or a trusted proxy, and the CSRF token of each session.

The cookie is signed, HttpOnly, SameSite=Lax, and Secure outside the local profile.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

from starlette.requests import Request

from services.feedback.errors import FeedbackError, Reason
from services.feedback.voting.invites import InviteRefused, Invites, Rater
from shared.clock import Clock
from shared.contracts.events.api_keys import Permission
from shared.contracts.events.base import MAX_ID
from shared.keys import KeyRing

INVITE_HEADER = "x-ratchet-invite"
"""Carries the invite in the calls of an embedded page."""


class SignedOut(FeedbackError):
    """The session is over, or the request does not come from the page."""

    status = 401
    code = Reason.unauthenticated
    title = "Signed out"


class NotEmbedded(FeedbackError):
    """The origin may not show the page in a frame."""

    status = 403
    code = Reason.forbidden
    title = "Not embedded"


@dataclass(frozen=True, slots=True)
class SignIn:
    """How raters sign in: by an invite, or by a header of a trusted proxy where it is named."""

    secret: str
    session_s: int
    secure: bool
    proxy_header: str = ""
    embed_origins: tuple[str, ...] = ()
    """Origins of product pages that may show the page in a frame."""


class RaterSessions:
    """Who a request comes from. The tenant is that of the key with which pages ask the router."""

    def __init__(
        self, sign_in: SignIn, keys: KeyRing, clock: Clock, *, authorization: str = ""
    ) -> None:
        self._sign_in = sign_in
        self._invites = Invites(sign_in.secret)
        self._keys = keys
        self._clock = clock
        self._authorization = authorization

    def enter(self, request: Request) -> None:
        """Begin the session of the request's invite.

        Raises:
            InviteRefused: it is none, is over, or is for another tenant.
            Unauthenticated, Forbidden: the pages' own key may not vote.

        """
        self._start(request, self.invited(request.query_params.get("invite", "")))

    def invited(self, token: str) -> Rater:
        """Whom an invite names.

        Raises:
            InviteRefused: it is none, is over, or is for another tenant.
            Unauthenticated, Forbidden: the pages' own key may not vote.

        """
        rater = self._invites.read(token, now=self._clock.now())
        if rater.tenant != self._tenant():
            raise InviteRefused(
                f"this invite is for tenant {rater.tenant}, and this page votes for another; "
                "ask for an invite to your tenant's page"
            )
        return rater

    def check_embedding(self, origin: str) -> None:
        """Whether the pages of an origin may embed the page.

        Raises:
            NotEmbedded: they may not.

        """
        if origin not in self._sign_in.embed_origins:
            raise NotEmbedded(
                f"pages of {origin or 'an unnamed origin'} may not embed this one; name it in "
                "?origin= and in RATCHET_FEEDBACK_EMBED_ORIGINS"
            )

    def visitor(self, request: Request) -> Rater:
        """The rater of a page: whom the proxy names, else the session's.

        Raises:
            SignedOut: there is neither.
            Unauthenticated, Forbidden: the pages' own key may not vote.

        """
        return self._proxied(request) or self.rater(request)

    def rater(self, request: Request) -> Rater:
        """The session's rater; in a frame, whose browser sends no cookies, the invite's.

        Raises:
            SignedOut: there is no session, or it is of another tenant or person.
            Unauthenticated, Forbidden: the pages' own key may not vote.

        """
        if token := request.headers.get(INVITE_HEADER):
            return self.invited(token)
        session = request.session
        try:
            rater = Rater(session["tenant"], session["user_id"])
        except KeyError:
            raise SignedOut(
                "your session is over or has not begun; open your invite link again"
            ) from None
        if rater.tenant != self._tenant():
            raise SignedOut("the page serves another tenant now; ask for a new invite")
        if self._sign_in.proxy_header:
            proxied = request.headers.get(self._sign_in.proxy_header, "")
            if session.get("proxied") and proxied != rater.user_id:
                raise SignedOut("you are signed in as another person now; load the page again")
        return rater

    def caller(self, request: Request) -> Rater:
        """The rater of a call that changes something: the session's, with its CSRF token.

        Raises:
            SignedOut: as `rater`, or the token is not the session's.

        """
        rater = self.rater(request)
        if request.headers.get(INVITE_HEADER):
            return rater  # no cookie, so no other site can make a browser send it
        token = request.headers.get("x-csrf-token", "")
        if not hmac.compare_digest(token.encode(), request.session["csrf"].encode()):
            raise SignedOut("the page is older than your session; load it again")
        return rater

    def _proxied(self, request: Request) -> Rater | None:
        """The rater whom a trusted proxy names, in a session of this page."""
        name = self._sign_in.proxy_header
        user_id = request.headers.get(name, "") if name else ""
        if not user_id:
            return None
        if len(user_id) > MAX_ID or not user_id.isprintable():
            raise SignedOut("the proxy named you in a way that cannot be used; tell your operator")
        rater = Rater(self._tenant(), user_id)
        if request.session.get("user_id") != user_id:
            self._start(request, rater, proxied=True)
        return rater

    def _start(self, request: Request, rater: Rater, *, proxied: bool = False) -> None:
        request.session.clear()
        request.session.update(
            tenant=rater.tenant,
            user_id=rater.user_id,
            csrf=secrets.token_urlsafe(24),
            proxied=proxied,
        )

    def _tenant(self) -> str:
        return self._keys.authenticate(self._authorization or None, Permission.vote).tenant
