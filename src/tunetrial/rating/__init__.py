"""Answers held against each other by people or by a judge model: blind, every pair in both orders.

    from tunetrial.rating import Client, Endpoint, Item, compare, rate, sheets
    items = [Item("t1", prompt, {"full": text, "lora": other}), …]
    with Client(Endpoint(url="http://localhost:8000/v1", model="judge"), cache) as client:
        judged = compare(client, items, criterion="which answer is right", seed=0)
    preferences.win_rate(judged.votes, "lora", "full")

What comes of it are `Vote`s and `Rating`s, which `analysis.preferences` and `analysis.ratings` take. A judge is an
instrument with faults of its own: hold it against people on the same items before its word counts.
"""

from tunetrial.rating import sheets
from tunetrial.rating.endpoint import Client, Endpoint
from tunetrial.rating.items import Item
from tunetrial.rating.judge import Judged, Rated, compare, rate

__all__ = ["Client", "Endpoint", "Item", "Judged", "Rated", "compare", "rate", "sheets"]
