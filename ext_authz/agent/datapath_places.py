# SPDX-License-Identifier: Apache-2.0
"""
Which addresses lead to which interface: those that are the endpoint's own in the revision in force, and no others.

Sources may give an address to the next Pod while the one before is still there; on its interface it would be judged,
and send, as that one. So an address goes before the revision in which it is another's, and comes after its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ext_authz.agent.attachments import Attachment, AttachmentStore, Stage
from ext_authz.boot import boot_id
from ext_authz.datapath import Datapath, DatapathError
from ext_authz.datapath.addresses import packed
from ext_authz.datapath.layout import row
from ext_authz.engine.engine import Engine
from ext_authz.flow.names import Identities
from ext_authz.identity import reserved

# Of an address that the revision has no row for.
_NOBODYS = tuple((identity, None) for identity in (reserved.WORLD, reserved.WORLD_IPV4, reserved.WORLD_IPV6))
_Held = tuple[str, ...] | None  # addresses; None: the kernel refused half-way, so nobody knows


class Places:
    """Of one data path. All raise DatapathError: the kernel refuses; where many are meant, all others are done."""

    def __init__(self, kernel: Datapath, store: AttachmentStore) -> None:
        self._kernel = kernel
        self._store = store
        self._held: dict[str, _Held] = {}  # by the endpoint's name

    def attach(self, attachment: Attachment, engine: Engine | None) -> None:
        """engine: in force; None: of the revision in force nobody knows whose an address is."""
        addresses: tuple[str, ...] = ()
        if attachment.stage is not Stage.COMING:
            addresses = own_addresses(attachment, engine) if engine is not None else tuple(self._as_before(attachment))
        self._kernel.attach(attachment.ifindex, addresses, attachment.mac or None, peer_ifindex=attachment.peer_ifindex)
        self._held[attachment.key] = addresses

    def detach(self, attachment: Attachment) -> None:
        self._kernel.detach(attachment.ifindex)
        self._held.pop(attachment.key, None)

    def take_away(self, engine: Engine) -> None:
        """What is another's in the revision to come. What is nobody's stays: no row of it will say who it is."""
        found = [(one, held, _ours_or_nobodys(one, engine)) for one, held in self._all()]
        self._place((one, held, tuple(at for at in held or () if at in kept)) for one, held, kept in found)

    def give_back(self, engine: Engine) -> None:
        """What is the endpoint's own in the revision in force."""
        ready = [(one, held) for one, held in self._all() if one.stage is Stage.ATTACHED]
        self._place((one, held, _of_revision(one, held, engine)) for one, held in ready)

    def _all(self) -> Iterator[tuple[Attachment, _Held]]:
        """With the addresses that they hold, perhaps since an earlier process."""
        for attachment in self._store.all():
            # By another start of the host its number is another interface's.
            if attachment.ifindex and attachment.boot in ("", boot_id()):
                before = () if attachment.stage is Stage.COMING else attachment.addresses
                yield attachment, self._held.get(attachment.key, before)

    def _place(self, wanted: Iterable[tuple[Attachment, _Held, tuple[str, ...]]]) -> None:
        failures = []
        for attachment, held, addresses in wanted:
            if addresses == held:
                continue
            self._held[attachment.key] = None
            mac = attachment.mac or None
            try:
                self._kernel.place(attachment.ifindex, addresses, mac, peer_ifindex=attachment.peer_ifindex)
                self._held[attachment.key] = addresses
            except DatapathError as error:
                failures.append(f"{attachment.key}: {error}")
        if failures:
            raise DatapathError(failures[0])

    def _as_before(self, attachment: Attachment) -> Iterator[str]:
        """Where an earlier process had put them."""
        for address in attachment.addresses:
            try:
                value = self._kernel.lookup(f"endpoints_{self._kernel.generation & 1}", packed(address))
            except KeyError:
                yield address
                continue
            if row("idm_endpoint_row").unpack_from(value)["ifindex"] == attachment.ifindex:
                yield address


def own_addresses(attachment: Attachment, engine: Engine) -> tuple[str, ...]:
    """Those by which a revision knows this very endpoint."""
    names, own = Identities(engine), []
    for address in attachment.addresses:
        _, endpoint = engine.resolve(address)
        if endpoint is not None and names.endpoint(endpoint) == attachment.key:
            own.append(address)
    return tuple(own)


def _ours_or_nobodys(attachment: Attachment, engine: Engine) -> set[str]:
    nobodys = {address for address in attachment.addresses if engine.resolve(address) in _NOBODYS}
    return nobodys | set(own_addresses(attachment, engine))


def _of_revision(attachment: Attachment, held: _Held, engine: Engine) -> tuple[str, ...]:
    """The own addresses, and those held that are nobody's."""
    own, kept = own_addresses(attachment, engine), _ours_or_nobodys(attachment, engine)
    return tuple(
        address for address in attachment.addresses if address in own or (address in kept and address in (held or ()))
    )
