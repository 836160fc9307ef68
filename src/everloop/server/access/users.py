"""The book of users and tokens. It lies in the same database as everything else, but in no project of its own
name: no route over a project's records can reach it."""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from everloop.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    StoreError,
    UnavailableError,
    UsageError,
)
from everloop.records import Role, Token, User
from everloop.server.access.passwords import (
    hash_password,
    new_password,
    new_token,
    token_digest,
    verify_password,
)
from everloop.server.access.roles import Principal, is_enough, read_roles
from everloop.stores.clock import new_id

if TYPE_CHECKING:
    from everloop.stores import Store

PROJECT = "_access"
"""No name that a project can have, as those begin with a letter or digit."""
USED_EVERY = timedelta(hours=1)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_log = logging.getLogger("everloop.server")


class UserStore:
    """Users and tokens of one home. Safe from any thread; what one process writes the others see."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records = store.records.for_project(PROJECT)

    def add_user(self, name: str, roles: Mapping[str, str], password: str | None = None) -> tuple[User, str | None]:
        """Add a user.

        Args:
            roles: project, or `*`, to role.
            password: None makes a random one.

        Returns:
            The user, and the password if it was made here: it is kept nowhere.

        Raises:
            AlreadyExistsError: the name is taken.
            UsageError: a name, role or password that cannot be used.
        """
        _check_name(name, "user")
        made = new_password() if password is None else None
        now = self.store.now()
        user = User(
            id=new_id(now),
            project=PROJECT,
            created_at=now,
            name=name,
            roles=read_roles(roles),
            password=hash_password(password if password is not None else str(made)),
        )
        try:
            self.records.put(user, data={"roles": dict(roles)})
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"There is a user '{name}' already.", help="See: everloop users ls") from error
        return user, made

    def users(self) -> list[User]:
        return self.records.find(User, order="name")

    def get_user(self, name: str) -> User:
        """The user of this name.

        Raises:
            NotFoundError: there is none.
        """
        found = self.records.find(User, ("name", "=", name), limit=1)
        if not found:
            raise NotFoundError(f"There is no user '{name}'.", help="See: everloop users ls")
        return found[0]

    def set_roles(self, name: str, roles: Mapping[str, str]) -> User:
        """Replace a user's roles. The last admin stays one."""
        with self.records.transaction():
            user = replace(self.get_user(name), roles=read_roles(roles))
            self._keep_an_admin(user)
            return self.records.update(user, verb="roles_set", data={"roles": dict(roles)})[0]

    def set_password(self, name: str, password: str | None = None) -> str | None:
        """Replace a user's password; returns it if it was made here."""
        made = new_password() if password is None else None
        hashed = hash_password(password if password is not None else str(made))
        self.records.update(replace(self.get_user(name), password=hashed), verb="password_set")
        return made

    def remove_user(self, name: str) -> None:
        """Remove a user; the tokens of a removed user open nothing."""
        with self.records.transaction():
            user = self.get_user(name)
            self._keep_an_admin(replace(user, roles={}))
            self.records.delete(User, user.id)

    def create_token(
        self, name: str, owner: str, roles: Mapping[str, str] | None = None, lifetime: timedelta | None = None
    ) -> tuple[Token, str]:
        """Make a token for a user.

        Args:
            roles: at most these; default: all that the owner has.
            lifetime: default: until it is revoked.

        Returns:
            The record, and the secret, which is kept nowhere.

        Raises:
            AlreadyExistsError: the name is taken.
            NotFoundError: there is no such owner.
        """
        _check_name(name, "token")
        user = self.get_user(owner)
        now = self.store.now()
        if lifetime is not None and lifetime <= timedelta():
            raise UsageError(f"A token cannot live for {lifetime}.", help="Give a time ahead, such as 30d.")
        secret = new_token()
        token = Token(
            id=new_id(now),
            project=PROJECT,
            created_at=now,
            name=name,
            owner=user.name,
            digest=token_digest(secret),
            prefix=secret[:10],
            roles=read_roles(roles) if roles is not None else {"*": "admin"},
            expires_at=None if lifetime is None else _later(now, lifetime),
        )
        try:
            self.records.put(token, data={"owner": owner, "roles": dict(token.roles)})
        except AlreadyExistsError as error:
            raise AlreadyExistsError(f"There is a token '{name}' already.", help="See: everloop tokens ls") from error
        return token, secret

    def tokens(self) -> list[Token]:
        return self.records.find(Token, order="name")

    def get_token(self, name: str) -> Token:
        """The token of this name.

        Raises:
            NotFoundError: there is none.
        """
        found = self.records.find(Token, ("name", "=", name), limit=1)
        if not found:
            raise NotFoundError(f"There is no token '{name}'.", help="See: everloop tokens ls")
        return found[0]

    def revoke_token(self, name: str) -> Token:
        """Make a token open nothing from now on. Revoking twice changes nothing."""
        token = self.get_token(name)
        if token.revoked_at is not None:
            return token
        return self.records.update(replace(token, revoked_at=self.store.now()), verb="revoked")[0]

    def has_users(self) -> bool:
        return bool(self.records.find(User, limit=1))

    def has_admin(self) -> bool:
        """Whether somebody could manage a server that nobody enters without a login."""
        return any(is_enough(role, "admin") for user in self.users() for role in user.roles.values())

    def find_by_password(self, name: str, password: bytes) -> Principal | None:
        """Who this is; None if nobody. Takes as long for a name that nobody has: about a quarter of a second."""
        found = self.records.find(User, ("name", "=", name), limit=1) if _NAME.fullmatch(name) else []
        user = found[0] if found else None
        if not verify_password(password, user.password if user else None) or user is None:
            return None
        return Principal(f"user:{user.name}", user.name, user.roles)

    def find_by_token(self, secret: str) -> tuple[Principal, datetime | None] | None:
        """Who this is and until when; None if nobody. Notes the use, at most once an hour."""
        digest = token_digest(secret)
        found = self.records.find(Token, ("digest", "=", digest), limit=1)
        now = self.store.now()
        for token in found:
            if not hmac.compare_digest(token.digest, digest) or token.revoked_at is not None:
                return None
            if token.expires_at is not None and token.expires_at <= now:
                return None
            owners = self.records.find(User, ("name", "=", token.owner), limit=1)
            if not owners or owners[0].created_at > token.created_at:
                # Somebody of the same name who came later does not inherit it.
                return None
            if token.used_at is None or now - token.used_at >= USED_EVERY:
                self._note_use(token, now)
            actor = f"user:{token.owner}/{token.name}"
            return Principal(actor, token.owner, owners[0].roles, token.roles), token.expires_at
        return None

    def _note_use(self, token: Token, now: datetime) -> None:
        try:
            self.records.update(replace(token, used_at=now.replace(minute=0, second=0, microsecond=0)), verb="used")
        except (ConflictError, NotFoundError):
            # Another request has noted it, or it was revoked just now: the next look sees that.
            return
        except (StoreError, UnavailableError) as error:
            # A full disk is no reason to refuse a valid token.
            _log.warning("The use of the token '%s' could not be noted: %s", token.name, error)

    def _keep_an_admin(self, changed: User) -> None:
        admins = [user.name for user in self.users() if any(role == "admin" for role in user.roles.values())]
        if admins == [changed.name] and not any(role == "admin" for role in changed.roles.values()):
            raise ConflictError(
                f"'{changed.name}' is the only admin.", help="Add another first: everloop users add NAME --role admin"
            )


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a {what}.", help="Use letters, digits and . _ @ + -; at most 64, a letter first."
        )


def _later(now: datetime, lifetime: timedelta) -> datetime:
    try:
        return now + lifetime
    except OverflowError as error:
        raise UsageError(f"A token cannot live for {lifetime}.", help="Give some days, such as 90d.") from error


__all__ = ["PROJECT", "Role", "UserStore"]
