"""What the made-up shop knows: one entry a support topic, and one concrete sentence a category.

A concrete sentence carries a number or a menu of its topic; its form is the category's, so that a
very small model can learn to write it. Every sentence names its topic.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShopTopic:
    """One thing customers ask about.

    `noun` is the word that marks a text as being about this topic (matched as a whole word, lower
    case, singular or plural); no two topics share one. `rival` is what it is compared with.
    """

    noun: str
    rival: str
    menu: str
    party: str
    days: int
    euros: int


TOPICS: tuple[ShopTopic, ...] = (
    ShopTopic("refund", "credit", "Orders", "bank", 5, 10),
    ShopTopic("password", "passkey", "Account", "server", 90, 2),
    ShopTopic("delivery", "pickup", "Orders", "driver", 3, 4),
    ShopTopic("invoice", "receipt", "Billing", "bank", 31, 8),
    ShopTopic("warranty", "insurance", "Devices", "maker", 24, 3),
    ShopTopic("subscription", "purchase", "Billing", "bank", 30, 9),
    ShopTopic("battery", "charger", "Devices", "maker", 14, 40),
    ShopTopic("router", "repeater", "Devices", "server", 6, 60),
    ShopTopic("printer", "scanner", "Devices", "driver", 20, 80),
    ShopTopic("voucher", "discount", "Account", "team", 60, 15),
    ShopTopic("headset", "speaker", "Devices", "maker", 12, 70),
    ShopTopic("screen", "projector", "Devices", "maker", 7, 50),
)

CATEGORIES: tuple[str, ...] = (
    "factual_qa",
    "comparison",
    "creative",
    "problem_solving",
    "explanation",
)

CONCRETE: dict[str, str] = {
    "factual_qa": "The {noun} takes {days} days.",
    "comparison": "The {noun} costs {euros} euros, the {rival} 5 more.",
    "creative": "One {noun}, {days} days of joy.",
    "problem_solving": "Open {menu}, press {noun} and wait 2 minutes.",
    "explanation": "The {noun} waits {days} hours for the {party}.",
}
