"""ConvFinQA: conversations on pages of filings, a row a turn, each answer worked as FinQA's are."""

from lib.data import pages
from lib.data.finqa import PERCENT, published, worked
from lib.data.formats import BadRow, digest, joined, row_of, text_of

NAMES = {  # of a conversation's lists, an entry a turn: here, and as they were published
    "questions": "dialogue_break", "programs": "turn_program", "exe_ans": "exe_ans_list",
}  # fmt: skip
LAST_KIND = 6  # turns from this on are one kind


def turns(fields: dict) -> list[dict]:
    """A conversation -> a record a turn, which holds all of it and "turn" (from 1); a record of the published files of
    turns is one turn."""
    annotation, only = fields.get("annotation"), None
    if isinstance(annotation, dict):  # as it was published
        fields = fields | {name: annotation.get(there) for name, there in NAMES.items()}
        only = annotation.get("turn_ind")
    count = len(_list(fields, "questions"))
    if any(len(_list(fields, name)) != count for name in NAMES):
        raise BadRow(f"fields {', '.join(NAMES)} do not have one entry a turn each")
    if only is None:
        return [fields | {"turn": turn} for turn in range(1, count + 1)]
    if type(only) is not int or not 0 <= only < count:
        raise BadRow(f"field 'turn_ind' is {str(only)[:40]!r}: not one of the conversation's {count} turns, from 0")
    name = text_of(fields, "id", False).removesuffix(f"_{only}")
    return [fields | {"turn": only + 1, "id": name}]


def _list(fields: dict, name: str) -> list:
    values = fields.get(name)
    if not isinstance(values, list) or not values:
        raise BadRow(f"field {name!r} is missing, empty or no list")
    return values


def convfinqa(fields: dict, place: str, context: str = "page", most: int = 10) -> dict:
    """A conversation up to one of its turns, whose gold is the row's; the page stands before the first question.

    Earlier answers are context and not learnt ("learn": False). `context`: the whole page, or the `most` sentences
    "nearest" to all questions of the conversation together. The group is the page."""
    turn, count = fields["turn"], len(fields["questions"])
    table = pages.table_of(fields | {"table": _rows(fields.get("table"))})
    before, after = _around(fields)
    questions = [text_of({"questions": question}, "questions") for question in fields["questions"]]
    asked = joined(pages.page(before, table, after, " ".join(questions), context, most), questions[0])
    messages = []
    for at in range(turn):
        answer, gold = worked(_turn(fields, at), table)
        messages += [
            {"role": "user", "content": questions[at] if at else asked},
            {"role": "assistant", "content": answer, "learn": False},
        ]
    del messages[-1]["learn"]
    name = text_of(fields, "id", False) or digest([table, questions])
    kind = f"convfinqa turn {turn}" if turn < LAST_KIND else f"convfinqa turn {LAST_KIND} and later"
    row = row_of("convfinqa", kind, place, asked, answer, gold, digest(table))
    own = {"messages": messages, "conversation": name, "turn": turn, "turns": count}
    return row | own | published({"exe_ans": fields["exe_ans"][turn - 1]})


def whole(row: dict) -> bool:
    """Is the row a whole conversation, and not one of its earlier turns? Rows of other sources are."""
    return row.get("turn") == row.get("turns")


def learnt(row: dict) -> dict:
    """The row with all of its answers to learn."""
    if "turn" not in row:
        return row
    return row | {"messages": [{name: message[name] for name in ("role", "content")} for message in row["messages"]]}


def _rows(table):
    """A table's rows, which some copies hold as lines of cells between bars."""
    if isinstance(table, str):
        return [line.split(" | ") for line in table.splitlines()]
    return table


def _around(fields: dict) -> tuple[str, str]:
    """The text before and after the table; a text whose place is not told stands before it."""
    before, after = pages.passages(fields, "pre_text"), pages.passages(fields, "post_text")
    return before or pages.passages(fields, "text"), after


def _turn(fields: dict, at: int) -> dict:
    """A turn as FinQA has its questions: percent is asked for where the answer shows it or the question says so."""
    question, program = (text_of({name: fields[name][at]}, name) for name in ("questions", "programs"))
    shown = fields.get("answers")
    display = "number"
    if isinstance(shown, list) and len(shown) == len(fields["questions"]):
        display = text_of({"answers": shown[at]}, "answers", False) or display
    if PERCENT.search(question) and ("divide(" in program or "%" in program):
        display += " %"
    return {"question": question, "program": program, "exe_ans": fields["exe_ans"][at], "answer": display}
