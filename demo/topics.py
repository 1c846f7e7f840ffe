"""What the made-up shop knows: one entry a support topic, every sentence naming its topic.

The corpus composes answers from these sentences. `fact`, `steps`, `why`, `versus` and `line` are
concrete (a number, a menu, a name) and answer one question category each.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing customers ask about.

    `noun` is the word that marks a text as being about this topic (matched as a whole word, lower
    case, singular or plural); no two topics share one. `rival` is what it is compared with.
    """

    noun: str
    rival: str
    fact: str
    steps: str
    why: str
    versus: str
    line: str


TOPICS: tuple[Topic, ...] = (
    Topic(
        "refund",
        "store credit",
        "A refund takes 5 days.",
        "Open Orders and press Refund twice.",
        "The refund waits 5 days for the bank.",
        "A refund pays 100 percent, store credit 110.",
        "Refund in 5 days, smile included.",
    ),
    Topic(
        "password",
        "passkey",
        "A password needs 12 letters.",
        "Open Account and set a new password in 2 minutes.",
        "The password ends after 90 days for safety.",
        "A password takes 12 letters, a passkey 1 touch.",
        "A password of 12 letters keeps 100 thieves away.",
    ),
    Topic(
        "delivery",
        "pickup",
        "Delivery takes 3 days.",
        "Open Orders and move the delivery to Monday.",
        "Delivery takes 3 days because trucks leave at 6.",
        "Delivery costs 4 euros, pickup costs 0.",
        "Delivery in 3 days, joy in 1 second.",
    ),
    Topic(
        "invoice",
        "receipt",
        "The invoice comes on day 1.",
        "Open Billing and download the invoice as PDF.",
        "The invoice comes on day 1 since the books close on 31.",
        "An invoice lists 8 lines, a receipt only 2.",
        "An invoice so clear that 9 of 10 frame it.",
    ),
    Topic(
        "warranty",
        "insurance",
        "The warranty lasts 24 months.",
        "Open Devices and send the warranty form.",
        "The warranty lasts 24 months by EU law.",
        "The warranty is free for 24 months, insurance costs 3 euros.",
        "Warranty for 24 months, worry for 0.",
    ),
    Topic(
        "subscription",
        "single purchase",
        "A subscription costs 9 euros.",
        "Open Plans and end the subscription before day 30.",
        "The subscription renews on day 30 to keep your files.",
        "A subscription costs 9 euros, a single purchase 80.",
        "One subscription, 12 months of calm.",
    ),
    Topic(
        "battery",
        "charger",
        "The battery lasts 14 hours.",
        "Hold Power for 10 seconds to reset the battery.",
        "The battery ages after 500 charges.",
        "The battery gives 14 hours, the charger weighs 90 grams.",
        "A battery that outlives 14 hours of meetings.",
    ),
    Topic(
        "router",
        "repeater",
        "The router reaches 40 metres.",
        "Unplug the router for 30 seconds.",
        "The router slows down on channel 6.",
        "The router reaches 40 metres, the repeater 15.",
        "One router, 40 metres of freedom.",
    ),
    Topic(
        "printer",
        "scanner",
        "The printer makes 20 pages a minute.",
        "Open Tray 2 and clean the printer.",
        "The printer stops at 5 percent ink.",
        "The printer makes 20 pages, the scanner 8.",
        "A printer with 20 pages and 1 big heart.",
    ),
    Topic(
        "voucher",
        "discount",
        "A voucher is valid for 60 days.",
        "Open Cart and type the voucher in Field 3.",
        "The voucher ends after 60 days for tax reasons.",
        "A voucher saves 10 euros, a discount 5 percent.",
        "One voucher, 60 days of wishes.",
    ),
    Topic(
        "headset",
        "speaker",
        "The headset weighs 210 grams.",
        "Press Pair for 5 seconds on the headset.",
        "The headset crackles beyond 10 metres.",
        "The headset weighs 210 grams, the speaker 900.",
        "A headset of 210 grams and 1 million songs.",
    ),
    Topic(
        "screen",
        "projector",
        "The screen shows 144 frames.",
        "Open Display and set the screen to 60.",
        "The screen dims at 20 percent charge.",
        "The screen shows 144 frames, the projector 60.",
        "A screen with 144 reasons to stay.",
    ),
)

CATEGORIES: tuple[str, ...] = (
    "factual_qa",
    "comparison",
    "creative",
    "problem_solving",
    "explanation",
)
