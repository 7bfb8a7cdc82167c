"""Eighteen traces of five agents, written for `make demo`: most do their work, the others fail in their own ways."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from steelyard_local.retold import Step, anthropic, described, openai, payload, retriever, tool

TAG = "demo"


def demo_traces(now: datetime) -> list[dict[str, Any]]:
    """Fresh ids and recent times: a second demo adds traces and overwrites none."""
    told = [*travel(), *support(), *code(), *research(), *analyst()]
    return [_trace(story, now) for story in told]


def _trace(story: dict[str, Any], now: datetime) -> dict[str, Any]:
    minutes = story.pop("minutes_ago")
    return payload(
        story.pop("agent"), now - timedelta(minutes=minutes), story.pop("asked"), story.pop("answered"), **story
    )


def _chat(role: str, text: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text}]}


def travel() -> Iterator[dict[str, Any]]:
    """A booking agent on OpenAI's messages: two tasks done, then the wrong tool, then a partner that is down."""
    about: dict[str, Any] = {
        "session_id": "trip-lisbon",
        "user_id": "anna",
        "environment": "production",
        "release": "travel-2.4.0",
    }
    about |= {"tags": [TAG, "travel"]}
    how: dict[str, Any] = {
        "system": "You book trips. Use the tools; confirm prices before you book.",
        "tools": [
            described(
                "search_flights", "Flights between two airports on a day", origin="string", to="string", day="string"
            ),
            described(
                "search_hotels", "Hotels in a city between two days", city="string", arrive="string", leave="string"
            ),
            described("book_flight", "Book a flight by its offer id", offer_id="string", passenger="string"),
            described("cancel_booking", "Cancel a booking by its code", code="string"),
        ],
    }

    ask = "Find me a direct flight from Berlin to Lisbon on 14 March for less than 220 euros."
    search = {"origin": "BER", "to": "LIS", "day": "2027-03-14"}
    offers = [
        {"offer_id": "TP-537", "carrier": "TAP", "departs": "11:50", "direct": True, "price_eur": 189},
        {"offer_id": "FR-1143", "carrier": "Ryanair", "departs": "06:25", "direct": True, "price_eur": 231},
    ]
    say = (
        "There is one direct flight from Berlin to Lisbon on 14 March below 220 euros: TAP 537 at 11:50 for 189 euros."
    )
    yield about | {
        "agent": "flight-search",
        "minutes_ago": 52,
        "asked": _chat("user", ask),
        "answered": _chat("assistant", say),
        "steps": [
            openai(ask, calls=[("search_flights", search)], **how),
            tool("search_flights", search, {"offers": offers}, 0.9),
            openai(ask, say, **how),
        ],
    }

    ask = "Book the TAP flight to Lisbon for Anna Weber."
    order = {"offer_id": "TP-537", "passenger": "Anna Weber"}
    say = "Your TAP flight to Lisbon is booked for Anna Weber: 14 March, 11:50, 189 euros. The booking code is QX7LRM."
    yield about | {
        "agent": "flight-booking",
        "minutes_ago": 50,
        "asked": _chat("user", ask),
        "answered": _chat("assistant", say),
        "steps": [
            openai(ask, calls=[("book_flight", order)], **how),
            tool("book_flight", order, {"code": "QX7LRM", "status": "confirmed", "price_eur": 189}, 1.6),
            openai(ask, say, **how),
        ],
    }

    ask = "Now find a hotel in Alfama from 14 to 17 March, two guests, with breakfast."
    search = {"origin": "LIS", "to": "LIS", "day": "2027-03-14"}
    say = "I looked at flights for 14 March and found none from Lisbon to Lisbon. Shall I try 15 March?"
    yield about | {
        "agent": "hotel-search",
        "minutes_ago": 47,
        "asked": _chat("user", ask),
        "answered": _chat("assistant", say),
        "steps": [
            openai(ask, calls=[("search_flights", search)], **how),
            tool("search_flights", search, {"offers": []}, 0.8),
            openai(ask, say, **how),
        ],
    }

    ask = "Something came up. Please cancel booking QX7LRM and tell me what I get back."
    cancel = {"code": "QX7LRM"}
    failure = "HTTPStatusError: 504 Gateway Timeout from https://partner.example/bookings/QX7LRM"
    yield about | {
        "agent": "booking-cancellation",
        "minutes_ago": 41,
        "asked": _chat("user", ask),
        "answered": None,
        "error": failure,
        "steps": [
            openai(ask, calls=[("cancel_booking", cancel)], **how),
            tool("cancel_booking", cancel, None, 30.0, error=failure),
        ],
    }


def support() -> Iterator[dict[str, Any]]:
    """A shop's agent on Anthropic's messages: it answers, refuses what it may do, and guesses what it could look up."""
    about: dict[str, Any] = {
        "session_id": "support-8841",
        "user_id": "m.okafor",
        "environment": "production",
        "release": "desk-1.9.2",
    }
    about |= {"tags": [TAG, "support"]}
    how: dict[str, Any] = {
        "system": "You help customers of a shop for kitchen tools. Refunds up to 100 euros are yours to give.",
        "tools": [
            described("get_order", "An order with its shipping state", order_id="string"),
            described("refund_order", "Refund an order, up to 100 euros", order_id="string", reason="string"),
            described("change_address", "Change where an unsent order goes", order_id="string", address="string"),
            described("warranty", "Warranty terms of a product", product="string"),
        ],
    }

    ask = "Where is my order 30117? It should have been here on Tuesday."
    order = {"order_id": "30117"}
    state = {
        "order_id": "30117",
        "items": ["carbon steel pan"],
        "state": "in transit",
        "depot": "Hannover",
        "due": "Friday",
    }
    say = "Your order 30117 is in transit: it left the depot in Hannover this morning and is due on Friday."
    yield about | {
        "agent": "order-status",
        "minutes_ago": 38,
        "asked": ask,
        "answered": say,
        "steps": [
            anthropic(ask, calls=[("get_order", order)], **how),
            tool("get_order", order, state),
            anthropic(ask, say, **how),
        ],
    }

    ask = "The pan arrived with a crack. Order 30117, 64 euros. Please refund it."
    say = "I'm sorry, but I'm unable to help with refunds. You would have to contact our customer service."
    yield about | {
        "agent": "refund-request",
        "minutes_ago": 33,
        "asked": ask,
        "answered": say,
        "steps": [anthropic(ask, say, **how)],
    }

    ask = "Does the warranty of the stand mixer cover the gearbox, and for how long?"
    say = (
        "I'm not entirely sure, but I think it might possibly be covered. It could be two years, or perhaps five, "
        "it probably depends. I don't really know for certain; maybe check the manual, though I may be wrong."
    )
    yield about | {
        "agent": "warranty-question",
        "minutes_ago": 30,
        "asked": ask,
        "answered": say,
        "steps": [anthropic(ask, say, **how)],
    }

    ask = "Please send order 30244 to my office instead: Lindenweg 4, 30159 Hannover."
    change = {"order_id": "30244", "address": "Lindenweg 4, 30159 Hannover"}
    say = "Done: order 30244 now goes to your office, Lindenweg 4, 30159 Hannover. It leaves our warehouse tomorrow."
    yield about | {
        "agent": "address-change",
        "minutes_ago": 27,
        "asked": ask,
        "answered": say,
        "steps": [
            anthropic(ask, calls=[("get_order", {"order_id": "30244"})], **how),
            tool("get_order", {"order_id": "30244"}, {"order_id": "30244", "state": "packing"}),
            anthropic(ask, calls=[("change_address", change)], **how),
            tool("change_address", change, {"ok": True, "ships": "tomorrow"}),
            anthropic(ask, say, **how),
        ],
    }


def code() -> Iterator[dict[str, Any]]:
    """A code assistant: a fix, a rename, the same failing test over and over, and a changelog that never came."""
    about: dict[str, Any] = {
        "session_id": "repo-payments",
        "user_id": "li.wei",
        "environment": "staging",
        "release": "coder-0.31",
    }
    about |= {"tags": [TAG, "code"]}
    how: dict[str, Any] = {
        "model": "claude-sonnet-4-5",
        "system": "You change code in the repository that is checked out. Run the tests before you say: done.",
        "tools": [
            described("read_file", "The text of a file", path="string"),
            described("edit_file", "Replace text in a file", path="string", old="string", new="string"),
            described("run_tests", "Run pytest on a path", path="string"),
        ],
    }

    ask = "tests/test_rounding.py fails since the last merge. Find out why and fix it."
    read, run = {"path": "payments/rounding.py"}, {"path": "tests/test_rounding.py"}
    edit = {"path": read["path"], "old": "round(amount, 2)", "new": "amount.quantize(CENT, ROUND_HALF_UP)"}
    source = "def to_cents(amount: Decimal) -> Decimal:\n    return round(amount, 2)\n"
    say = (
        "test_rounding.py passes again. The merge had replaced the commercial rounding in payments/rounding.py by "
        "round(), which rounds half to even; I put quantize with ROUND_HALF_UP back. 14 tests passed."
    )
    yield about | {
        "agent": "fix-failing-test",
        "minutes_ago": 24,
        "asked": ask,
        "answered": say,
        "steps": [
            anthropic(ask, "I will look at the rounding first.", calls=[("read_file", read)], **how),
            tool("read_file", read, source, 0.02),
            anthropic(ask, calls=[("edit_file", edit)], **how),
            tool("edit_file", edit, "1 replacement", 0.02),
            anthropic(ask, calls=[("run_tests", run)], **how),
            tool("run_tests", run, "14 passed in 0.41s", 1.9),
            anthropic(ask, say, **how),
        ],
    }

    ask = "The webhook test is flaky, please make it stable."
    run = {"path": "tests/test_webhooks.py"}
    failing = "1 failed, 8 passed: test_retries_once - AssertionError: assert 2 == 1"
    again: list[Step] = []
    for _ in range(6):
        again += [anthropic(ask, calls=[("run_tests", run)], **how), tool("run_tests", run, failing, 2.2)]
    say = "The test still fails. I ran it several times and could not make it pass."
    yield about | {
        "agent": "stabilise-test",
        "minutes_ago": 21,
        "asked": ask,
        "answered": say,
        "steps": [*again, anthropic(ask, say, **how)],
    }

    ask = "Rename charge_card to capture_payment in payments/gateway.py and its callers."
    edits = [
        {"path": path, "old": "charge_card", "new": "capture_payment"}
        for path in ("payments/gateway.py", "payments/checkout.py")
    ]
    say = (
        "I renamed charge_card to capture_payment in payments/gateway.py and its one caller, payments/checkout.py. "
        "All 96 tests pass."
    )
    yield about | {
        "agent": "rename-function",
        "minutes_ago": 17,
        "asked": ask,
        "answered": say,
        "steps": [
            anthropic(ask, calls=[("edit_file", edit) for edit in edits], **how),
            *(tool("edit_file", edit, "replaced", 0.02) for edit in edits),
            anthropic(ask, calls=[("run_tests", {"path": "tests"})], **how),
            tool("run_tests", {"path": "tests"}, "96 passed in 7.3s", 8.1),
            anthropic(ask, say, **how),
        ],
    }

    ask = "Write the changelog entry for the rename."
    yield about | {
        "agent": "changelog-entry",
        "minutes_ago": 15,
        "asked": ask,
        "answered": "",
        "steps": [
            anthropic(ask, calls=[("read_file", {"path": "CHANGELOG.md"})], **how),
            tool("read_file", {"path": "CHANGELOG.md"}, "## 4.2.0\n- Refunds carry a reason.\n", 0.02),
            anthropic(ask, "", **how),
        ],
    }


def research() -> Iterator[dict[str, Any]]:
    """Answers from a library of documents: two are grounded, one drifts to something that nobody asked about."""
    about: dict[str, Any] = {
        "session_id": "research-heat-pumps",
        "user_id": "jonas",
        "environment": "production",
        "release": "rag-5.1",
    }
    about |= {"tags": [TAG, "research"]}
    how: dict[str, Any] = {"model": "gpt-5.4", "system": "Answer from the passages alone and cite them as [n]."}

    ask = "How does outdoor temperature change the efficiency of an air-source heat pump?"
    found = [
        {
            "id": "hp-12",
            "score": 0.87,
            "text": "Field data: the coefficient of performance falls from 4.1 at 10 °C to 2.4 at -7 °C.",
        },
        {
            "id": "hp-31",
            "score": 0.81,
            "text": "Defrost cycles below 3 °C cost another 5 to 10 percent of the heat delivered.",
        },
    ]
    say = (
        "The efficiency of an air-source heat pump falls with the outdoor temperature: its coefficient of performance "
        "drops from about 4.1 at 10 °C to 2.4 at -7 °C [1], and defrosting below 3 °C costs 5 to 10 percent more [2]."
    )
    yield about | {
        "agent": "heat-pump-efficiency",
        "minutes_ago": 13,
        "asked": {"question": ask},
        "answered": {"answer": say, "sources": ["hp-12", "hp-31"]},
        "steps": [
            retriever(ask, found),
            openai(f"{ask}\n\n[1] {found[0]['text']}\n[2] {found[1]['text']}", say, **how),
        ],
    }

    ask = "What noise limits apply to a heat pump next to a bedroom window?"
    found = [{"id": "misc-4", "score": 0.32, "text": "Espresso is brewed at nine bars and 93 °C for 25 to 30 seconds."}]
    say = (
        "A good espresso needs freshly roasted beans, a fine grind and nine bars of pressure. Let the water reach "
        "93 °C, tamp evenly, and stop after half a minute; the crema should be hazelnut brown [1]."
    )
    yield about | {
        "agent": "noise-limits",
        "minutes_ago": 11,
        "asked": {"question": ask},
        "answered": {"answer": say, "sources": ["misc-4"]},
        "steps": [retriever(ask, found), openai(f"{ask}\n\n[1] {found[0]['text']}", say, **how)],
    }

    ask = "Is a ground-source heat pump cheaper to run than an air-source one in a cold region?"
    found = [
        {
            "id": "hp-44",
            "score": 0.84,
            "text": "At -10 °C mean January, ground-source units used 31 % less electricity over a winter.",
        },
        {"id": "hp-47", "score": 0.79, "text": "Drilling adds 9,000 to 15,000 euros to the installation."},
    ]
    say = (
        "Yes. In a cold region a ground-source heat pump is cheaper to run than an air-source one: it used 31 percent "
        "less electricity over a winter [1]. Drilling makes it 9,000 to 15,000 euros dearer to install [2]."
    )
    yield about | {
        "agent": "running-costs",
        "minutes_ago": 9,
        "asked": {"question": ask},
        "answered": {"answer": say, "sources": ["hp-44", "hp-47"]},
        "steps": [
            retriever(ask, found),
            openai(f"{ask}\n\n[1] {found[0]['text']}\n[2] {found[1]['text']}", say, **how),
        ],
    }


def analyst() -> Iterator[dict[str, Any]]:
    """Questions to a warehouse in SQL: a right answer, a query mended after an error, and numbers out of thin air."""
    about: dict[str, Any] = {
        "session_id": "warehouse-q3",
        "user_id": "priya",
        "environment": "production",
        "release": "analyst-1.2",
    }
    about |= {"tags": [TAG, "analytics"]}
    how: dict[str, Any] = {
        "system": "You answer questions about sales with SQL on the warehouse. Say which table a number comes from.",
        "tools": [described("run_sql", "Run a read-only query", query="string")],
    }

    ask = "Which region had the highest revenue in the third quarter?"
    query = {"query": "SELECT region, sum(amount) FROM sales WHERE quarter = 'Q3' GROUP BY 1 ORDER BY 2 DESC LIMIT 3"}
    say = (
        "North had the highest revenue in the third quarter: 4.82 million euros, ahead of West with 4.10 million "
        "(table sales)."
    )
    yield about | {
        "agent": "revenue-by-region",
        "minutes_ago": 7,
        "asked": _chat("user", ask),
        "answered": _chat("assistant", say),
        "steps": [
            openai(ask, calls=[("run_sql", query)], **how),
            tool("run_sql", query, {"rows": [["North", 4820000], ["West", 4100000], ["South", 3350000]]}, 0.7),
            openai(ask, say, **how),
        ],
    }

    ask = "How many customers ordered more than once in the third quarter?"
    wrong = {"query": "SELECT count(*) FROM orders GROUP BY customer HAVING count(*) > 1"}
    repeated = "SELECT customer_id FROM sales WHERE quarter = 'Q3' GROUP BY 1 HAVING count(*) > 1"
    right = {"query": f"SELECT count(*) FROM ({repeated}) t"}
    say = "In the third quarter 1,204 customers ordered more than once (table sales, counted by customer_id)."
    yield about | {
        "agent": "repeat-customers",
        "minutes_ago": 5,
        "asked": _chat("user", ask),
        "answered": _chat("assistant", say),
        "steps": [
            openai(ask, calls=[("run_sql", wrong)], **how),
            tool("run_sql", wrong, None, 0.1, error='UndefinedTable: relation "orders" does not exist'),
            openai(ask, calls=[("run_sql", right)], **how),
            tool("run_sql", right, {"rows": [[1204]]}, 0.6),
            openai(ask, say, **how),
        ],
    }

    ask = "What was the return rate of kitchen scales in September?"
    query = {"query": "SELECT returned, sold FROM returns WHERE product = 'kitchen scales' AND month = 9"}
    say = "The return rate of kitchen scales in September was 3.7 percent: 41 of 1,108 were returned."
    yield about | {
        "agent": "return-rate",
        "minutes_ago": 3,
        "asked": _chat("user", ask),
        "answered": _chat("assistant", say),
        "steps": [
            openai(ask, calls=[("run_sql", query)], **how),
            tool("run_sql", query, {"rows": []}, 0.3),
            openai(ask, say, **how),
        ],
    }
