"""Store of users and tokens.

They are in the same database as all other records, but in a project whose name no user can choose. So no route that
reads a project's records can reach them.
"""

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
"""Not a valid project name for users, as those begin with a letter or digit."""
USED_EVERY = timedelta(hours=1)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_log = logging.getLogger("everloop.server")


class UserStore:
    """Users and tokens of one home. Thread-safe; changes are visible to other processes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records = store.records.for_project(PROJECT)

    def add_user(self, name: str, roles: Mapping[str, str], password: str | None = None) -> tuple[User, str | None]:
        """Add a user.

        Args:
            roles: project, or `*`, to role.
            password: None generates a random one.

        Returns:
            The user, and the password if it was generated: it is not stored anywhere.

        Raises:
            AlreadyExistsError: the name is taken.
            UsageError: the name, a role or the password is not valid.
        """
        _check_name(name, "user")
        generated = new_password() if password is None else None
        now = self.store.now()
        user = User(
            id=new_id(now),
            project=PROJECT,
            created_at=now,
            name=name,
            roles=read_roles(roles),
            password=hash_password(password if password is not None else str(generated)),
        )
        try:
            self.records.put(user, data={"roles": dict(roles)})
        except AlreadyExistsError as error:
            raise AlreadyExistsError(
                f"The user '{name}' already exists.", help="Choose another name. Existing users: everloop users ls"
            ) from error
        return user, generated

    def users(self) -> list[User]:
        return self.records.find(User, order="name")

    def get_user(self, name: str) -> User:
        """Return the user with this name.

        Raises:
            NotFoundError: there is no such user.
        """
        found = self.records.find(User, ("name", "=", name), limit=1)
        if not found:
            raise NotFoundError(f"There is no user '{name}'.", help="List the users: everloop users ls")
        return found[0]

    def set_roles(self, name: str, roles: Mapping[str, str]) -> User:
        """Replace a user's roles.

        Raises:
            ConflictError: the user is the only admin, and would no longer be one.
        """
        with self.records.transaction():
            user = replace(self.get_user(name), roles=read_roles(roles))
            self._keep_an_admin(user)
            return self.records.update(user, verb="roles_set", data={"roles": dict(roles)})[0]

    def set_password(self, name: str, password: str | None = None) -> str | None:
        """Replace a user's password. Returns the new one if it was generated."""
        generated = new_password() if password is None else None
        hashed = hash_password(password if password is not None else str(generated))
        self.records.update(replace(self.get_user(name), password=hashed), verb="password_set")
        return generated

    def remove_user(self, name: str) -> None:
        """Remove a user. Their tokens stop working."""
        with self.records.transaction():
            user = self.get_user(name)
            self._keep_an_admin(replace(user, roles={}))
            self.records.delete(User, user.id)

    def create_token(
        self, name: str, owner: str, roles: Mapping[str, str] | None = None, lifetime: timedelta | None = None
    ) -> tuple[Token, str]:
        """Create a token for a user.

        Args:
            roles: roles to which the token is limited; default: all roles of the owner.
            lifetime: default: until the token is revoked.

        Returns:
            The record, and the secret, which is not stored anywhere.

        Raises:
            AlreadyExistsError: the name is taken.
            NotFoundError: there is no such owner.
        """
        _check_name(name, "token")
        user = self.get_user(owner)
        now = self.store.now()
        if lifetime is not None and lifetime <= timedelta():
            raise UsageError(
                f"The lifetime {lifetime} of a token is not positive.", help="Give a longer one, such as 30d."
            )
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
            raise AlreadyExistsError(
                f"The token '{name}' already exists.", help="Choose another name. Existing tokens: everloop tokens ls"
            ) from error
        return token, secret

    def tokens(self) -> list[Token]:
        return self.records.find(Token, order="name")

    def get_token(self, name: str) -> Token:
        """Return the token with this name.

        Raises:
            NotFoundError: there is no such token.
        """
        found = self.records.find(Token, ("name", "=", name), limit=1)
        if not found:
            raise NotFoundError(f"There is no token '{name}'.", help="List the tokens: everloop tokens ls")
        return found[0]

    def revoke_token(self, name: str) -> Token:
        """Revoke a token: it stops working. Revoking it again changes nothing."""
        token = self.get_token(name)
        if token.revoked_at is not None:
            return token
        return self.records.update(replace(token, revoked_at=self.store.now()), verb="revoked")[0]

    def has_users(self) -> bool:
        return bool(self.records.find(User, limit=1))

    def has_admin(self) -> bool:
        """Whether there is an admin, whom a server with logins needs."""
        return any(is_enough(role, "admin") for user in self.users() for role in user.roles.values())

    def find_by_password(self, name: str, password: bytes) -> Principal | None:
        """Return the principal of a name and password; None if they are wrong.

        An unknown name takes as long as a known one: about a quarter of a second.
        """
        found = self.records.find(User, ("name", "=", name), limit=1) if _NAME.fullmatch(name) else []
        user = found[0] if found else None
        if not verify_password(password, user.password if user else None) or user is None:
            return None
        return Principal(f"user:{user.name}", user.name, user.roles)

    def find_by_token(self, secret: str) -> tuple[Principal, datetime | None] | None:
        """Return the principal of a token and when the token expires; None if the token is not valid.

        Records the use, at most once an hour.
        """
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
                # A later user of the same name does not inherit the token.
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
            # Another request has recorded it, or the token was just revoked, which the next lookup sees.
            return
        except (StoreError, UnavailableError) as error:
            # A valid token must work even if the disk is full.
            _log.warning("Cannot record the use of the token '%s': %s", token.name, error)

    def _keep_an_admin(self, changed: User) -> None:
        admins = [user.name for user in self.users() if any(role == "admin" for role in user.roles.values())]
        if admins == [changed.name] and not any(role == "admin" for role in changed.roles.values()):
            raise ConflictError(
                f"'{changed.name}' is the only admin.",
                help="Add another one first: everloop users add NAME --role admin",
            )


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is not a valid name for a {what}.",
            help="Use at most 64 letters, digits and . _ @ + -, beginning with a letter or digit.",
        )


def _later(now: datetime, lifetime: timedelta) -> datetime:
    try:
        return now + lifetime
    except OverflowError as error:
        raise UsageError(
            f"The lifetime {lifetime} of a token is too long.", help="Give some days, such as 90d."
        ) from error


__all__ = ["PROJECT", "Role", "UserStore"]
