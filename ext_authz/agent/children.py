# SPDX-License-Identifier: Apache-2.0
"""What the agent keeps running: observer, workers, Envoy. All calls may wait; none belongs on the event loop."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from ext_authz.agent.observing import Observing
from ext_authz.agent.proxy import Proxy
from ext_authz.service.pool import Pool


@dataclass
class Children:
    """Any of them may be missing."""

    pool: Pool | None = None
    proxy: Proxy | None = None
    observer: Observing | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)
    _done: bool = False

    def start(self) -> None:
        """
        Adopt or start all.

        Raises:
            AddressError: The workers cannot listen where they shall; nothing was started.
        """
        with self._busy:
            if self.pool:
                self.pool.start()
            if self.observer:
                self.observer.start()
            if self.proxy:
                self.proxy.start()

    def tick(self) -> None:
        """Notice deaths, start what is due. Nothing once they were stopped: a cancelled call may come late."""
        with self._busy:
            for child in (self.pool, self.proxy, self.observer):
                if child and not self._done:
                    child.tick()

    def stop(self) -> None:
        """Envoy first: while it drains it still asks the workers. The observer last: it sees what both did."""
        with self._busy:
            self._done = True
            if self.proxy:
                self.proxy.stop()
            if self.pool:
                self.pool.stop()
            if self.observer:
                self.observer.stop()

    def leave(self, is_promised: bool) -> None:
        """Go without them: the next agent adopts them. is_promised: as of Proxy.leave."""
        with self._busy:
            self._done = True
            if self.proxy:
                self.proxy.leave(is_promised)
            if self.observer:
                self.observer.leave()

    def give_up(self, is_ready: bool) -> bool:
        """
        The agent failed: what serves stays for the next one, but what a first start began ends with it.

        Args:
            is_ready: The start was over.

        Returns:
            True if it stays.
        """
        stays = is_ready or any(child is not None and child.found_earlier for child in (self.proxy, self.pool))
        if stays:
            self.leave(is_promised=False)
        else:
            self.stop()
        return stays

    def page(self) -> dict[str, Any]:
        """Their part of the status page; `tick` may run in another thread."""
        envoy = self.proxy.process if self.proxy else None
        return {
            "workers": self.pool.processes() if self.pool else [],
            "addresses": [slot.address.text for slot in self.pool.slots] if self.pool else [],
            "envoy": envoy.pid if envoy else None,
            "envoy_trouble": self.proxy.trouble if self.proxy else "",
            "observer": self.observer.page() if self.observer else None,
        }
