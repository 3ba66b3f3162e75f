"""Configuration of the director's desk: the chain, and the settings of the server."""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.chain_schema import ChainConfig
from modules.errors import UserError


@dataclass
class DeskConfig:
    """The server and its limits."""

    host: str = "127.0.0.1"  # another address shows the page to the network, without a password
    port: int = 8000
    open: bool = True  # open the page in a browser
    folder: str = "outputs/desk"  # sessions are kept here, and nothing is written elsewhere
    keep_days: float = 30.0  # a session or a link that nobody opened for so long is deleted; 0: never
    compare: list[str] = field(default_factory=list)  # further runs to choose from: runs/<stage>/<name>/export
    max_upload_mb: float = 8.0
    max_waiting: int = 8  # scenes that wait, one a side of a desk; more are refused
    max_visitors: int = 32  # kept in memory; the others are read from the folder when they come back
    max_people: int = 6  # of an uploaded plan
    max_seconds: float = 20.0
    max_side: int = 1024  # px of a canvas

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UserError(f"port is {self.port}; allowed are 0 (a free one) to 65535")
        for name in ("max_upload_mb", "max_waiting", "max_visitors", "max_people", "max_side"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.keep_days < 0:
            raise UserError(f"keep_days is {self.keep_days}; it must be a number of days, or 0 to delete nothing")


@dataclass
class AppConfig(ChainConfig):
    """What `python -m app` reads."""

    desk: DeskConfig = field(default_factory=DeskConfig)
