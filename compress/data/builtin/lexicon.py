"""The words of the built-in tickets: what each intent can ask for, and what fills the slots.

Every request is a verb phrase in the base form, so that it fits after "please", "do not", "I wanted you to" and the
other frames of ``grammar.py``. Verbs and nouns are shared between intents on purpose: "cancel" occurs in four of them,
"refund" in three, "order" in nine. Slots in braces are filled from :data:`SLOTS`.
"""

from __future__ import annotations

REQUESTS: dict[str, tuple[str, ...]] = {
    "cancel_order": (
        "cancel my order for the {item}",
        "stop the order of the {item}",
        "call off my purchase of the {item}",
        "cancel the {item} that I ordered",
        "drop the {item} from my order",
    ),
    "cancel_refund": (
        "cancel the refund for the {item}",
        "stop the refund of my order",
        "call off the refund of the {item}",
        "drop the refund that I requested for the {item}",
        "call off the repayment for my order",
    ),
    "refund_order": (
        "refund my order of the {item}",
        "refund the {item} that I ordered",
        "give me my money back for the {item}",
        "pay me back for the order of the {item}",
        "refund my purchase of the {item}",
    ),
    "refund_cancellation": (
        "refund the cancellation fee for the {item}",
        "refund the fee of my cancelled order",
        "give me my money back for the cancelled {item}",
        "pay back the fee that I paid to cancel my order",
        "refund the cancellation of the {item}",
    ),
    "cancel_subscription": (
        "cancel my {plan} plan",
        "stop my subscription to the {plan} plan",
        "call off the renewal of my {plan} plan",
        "drop my subscription",
        "cancel the subscription on my account",
    ),
    "upgrade_plan": (
        "move me from the {low} plan to the {high} plan",
        "change my account from the {low} tier to the {high} tier",
        "switch the {low} subscription over to the {high} subscription",
        "give me a larger plan than the {low} plan",
    ),
    "downgrade_plan": (
        "move me from the {high} plan to the {low} plan",
        "change my account from the {high} tier to the {low} tier",
        "switch the {high} subscription over to the {low} subscription",
        "give me a smaller plan than the {high} plan",
    ),
    "change_address": (
        "change the delivery address of my order",
        "send the {item} to my office in {city}",
        "move the delivery of the {item} to {city}",
        "deliver my order to a new address",
        "update the address of my order to {city}",
    ),
    "change_date": (
        "change the delivery date of my order",
        "send the {item} on {day}",
        "move the delivery of the {item} to {day}",
        "deliver my order on another date",
        "update the date of my order to {day}",
    ),
    "track_order": (
        "check the delivery status of my order",
        "tell me where the {item} is",
        "find out when the {item} arrives",
        "check where my order is",
        "send me the delivery status of the {item}",
    ),
    "replace_item": (
        "replace the {item} that I ordered",
        "send me a new {item} for the broken one",
        "change the {item} for a working one",
        "send another {item} for my order",
        "replace the broken {item}",
    ),
    "update_card": (
        "update the card on my account",
        "change the card for my subscription",
        "move my payment to a new card",
        "use another card to pay for my order",
        "change my payment details",
    ),
    "close_account": (
        "close my account",
        "close the account that I opened in {month}",
        "delete my account and my card",
        "shut the account that you opened for me",
        "stop my account for good",
    ),
    "reopen_account": (
        "open my account again",
        "open the account that I closed in {month}",
        "restore my account and my card",
        "reopen the account that you closed for me",
        "start my account again",
    ),
    "shop_owes_customer": (
        "settle the {amount} that went from the buyer to the seller",
        "check the payment of {amount} from the buyer to the seller",
        "sort out the {amount} that I sent to you by mistake",
        "settle the {amount} that you owe to me",
        "pay out the {amount} that is still mine",
    ),
    "customer_owes_shop": (
        "settle the {amount} that went from the seller to the buyer",
        "check the payment of {amount} from the seller to the buyer",
        "sort out the {amount} that you sent to me by mistake",
        "settle the {amount} that I owe to you",
        "collect the {amount} that is still yours",
    ),
}
"""Intent -> requests. Upgrades and downgrades, and who owes whom, differ in the order of the same words."""

PLANS: tuple[str, ...] = ("basic", "plus", "premium")
"""Subscription plans from the smallest to the largest."""

SLOTS: dict[str, tuple[str, ...]] = {
    "item": (
        "lamp", "kettle", "chair", "desk", "phone", "camera", "printer", "jacket", "blender", "bicycle", "tent", "sofa",
    ),
    "city": ("Leeds", "Porto", "Ghent", "Turin", "Bergen", "Lyon"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "month": ("January", "March", "April", "June", "August", "October"),
    "amount": ("12 euros", "20 euros", "35 euros", "40 euros", "75 euros", "90 euros"),
    "plan": PLANS,
}  # fmt: skip

ADVERBS: tuple[str, ...] = ("", "", "now", "simply", "kindly")
"""May stand before the request of a plain ticket."""

PEOPLE: tuple[str, ...] = ("my wife", "my brother", "my boss", "a colleague")

OPENERS: tuple[str, ...] = ("hello", "hi", "good morning", "dear team")

CLOSERS: tuple[str, ...] = ("thanks", "thank you", "many thanks", "best regards")

DISTRACTORS: tuple[str, ...] = (
    "my last order was fine",
    "the refund in {month} was quick",
    "I like my {plan} plan",
    "my account is two years old",
    "the {item} came on {day}",
    "the last delivery to {city} was late",
    "I did not cancel anything in {month}",
    "I paid {amount} in {month}",
)
"""Sentences that mention the words of other intents and ask for nothing."""
