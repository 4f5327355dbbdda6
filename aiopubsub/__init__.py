"""Publish and subscribe through Redis and Valkey from asyncio, without losing messages in silence."""

from .client import Client
from .errors import (
    Closed,
    ConnectFailed,
    CursorFailed,
    EncodeFailed,
    GapError,
    MissingExtra,
    NotSent,
    PublishRefused,
    PubSubError,
    SlowConsumer,
    SubscribeRefused,
    Unconfirmed,
)
from .link import Backoff
from .message import Gap, GapReason, Message, Receipt, Undecodable
from .position import Position
from .publisher import Publisher
from .stats import ClientStats, LinkStats, SubscriberStats
from .subscriber import Events, Subscriber
from .topic import JSON, History, Pattern, Subscribable, Topic

__all__ = [
    "JSON",
    "Backoff",
    "Client",
    "ClientStats",
    "Closed",
    "ConnectFailed",
    "CursorFailed",
    "EncodeFailed",
    "Events",
    "Gap",
    "GapError",
    "GapReason",
    "History",
    "LinkStats",
    "Message",
    "MissingExtra",
    "NotSent",
    "Pattern",
    "Position",
    "PubSubError",
    "PublishRefused",
    "Publisher",
    "Receipt",
    "SlowConsumer",
    "Subscribable",
    "SubscribeRefused",
    "Subscriber",
    "SubscriberStats",
    "Topic",
    "Unconfirmed",
    "Undecodable",
]
