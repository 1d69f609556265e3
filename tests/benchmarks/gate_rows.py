"""Sets for the data gate: rows of which no two ask the same, and each said in other words, to be planted.

`MADE[name](count, rng)` gives both, in the same order. Shapes: a measure of a firm and a year, headlines under one
instruction, chats with a tool, and instructions and sums in Chinese.
"""

import json

TREES = "Alder Birch Cedar Elm Fir Hazel Larch Maple Oak Pine".split()
FIRMS = [f"{tree} {trade}" for tree in TREES for trade in ("Air", "Bank", "Foods")]
MEASURES = """net income/gross profit/operating income/total revenue/capital expenditure/free cash flow/total assets/
total liabilities/shareholders' equity/inventory turnover/days payable outstanding/quick ratio/return on assets/
dividend payout ratio/research expense/marketing expense/interest expense/effective tax rate/depreciation/
net working capital/long-term debt/accounts receivable""".replace("\n", "").split("/")
FILINGS = [
    ("What is the FY{y} {m} (in USD millions) for {f}? Use the income statement and the balance sheet of its filing.",
     "How high was {m} at {f} for {y}, in millions of US dollars?"),
    ("What was the {m} of {f} in fiscal year {y}? Give a response in millions.",
     "For {y}, which {m} did {f} report? State it in USD millions."),
    ("We need to know {f}'s FY{y} {m}. Please answer in USD millions, to two decimals.",
     "According to its annual report, {f} had what {m} during fiscal {y}?"),
]  # fmt: skip
INSTRUCTION = ("What is the mood of this news? Please choose an answer from {very bad/rather bad/slightly bad/neutral/"
               "slightly good/rather good/very good}.")  # fmt: skip
EVENTS = """shares rise after strong quarter/shares fall on profit warning/wins contract for new terminal/slumps/soars/
cuts its dividend as debt grows/names a new chief executive/recalls faulty batteries/opens a plant in Brazil/slips/
settles lawsuit over patents/warns of weaker demand/raises guidance for the year/delays launch of its main product/
buys back bonds early/faces probe by regulator/lays off staff in Europe/sells its leasing unit to rival/beats forecasts/
upgraded by analysts/downgraded on margin worries/agrees merger with smaller peer/restates accounts of two years/
secures loan from state bank/loses appeal against fine/hires thousands for warehouses/halts mining after accident/
doubles exports to Asia/suffers cyber attack/launches cheaper tariff/closes stores in small towns/cuts outlook/
misses delivery target/ends pension dispute/expands fleet with electric trucks/suspends trading""".replace(
    "\n", ""
).split("/")
TOPICS = """
毛利率 净利率 流动比率 速动比率 资产负债率 市盈率 市净率 股息率 贝塔系数
夏普比率 久期 凸性 期权 期货 远期合约 利率互换 信用违约互换 可转换债券
国债 市政债券 通货膨胀 通货紧缩 货币政策 财政政策 存款准备金 公开市场操作 量化宽松
汇率 外汇储备 经常账户 资本账户 对冲基金 指数基金 私募股权 风险投资 首次公开募股
股票回购 送股 配股 分红 商誉 折旧 摊销 应收账款 存货周转率
现金流量表 利润表 资产负债表 审计 内部控制 保险精算 再保险 年金 住房公积金
个人所得税 增值税 印花税 关税 黄金 原油 大豆 铜 螺纹钢
碳排放权 区块链 数字货币 移动支付 消费信贷 小额贷款 供应链金融 融资租赁
""".split()
ASK = """{}的含义是什么？它对投资者有什么用处？|请解释一下{}是什么意思，投资者为什么要关心它？
请写一篇关于{}的短文，不少于三百字。|以{}为主题写一段三百字以上的文章。
列出影响{}的五个主要因素。|影响{}的因素有哪些？请列举五个主要的。
用简单的语言向小学生介绍{}。|怎样用小学生能听懂的话讲解{}？
比较{}在中国和美国的不同之处。|{}在美国与中国之间有哪些差异？请作比较。
为一家银行设计一份介绍{}的宣传标语。|请替某银行想一句宣传{}的口号。
{}有哪些常见的误区？请举例说明。|关于{}，人们常有哪些误解？举几个例子。
简述{}的历史发展。|{}是如何一步步发展起来的？请简要叙述。
如果{}突然大幅变化，市场会怎样反应？|市场对{}的骤然大幅变动会有什么反应？
给出一道关于{}的选择题并附上答案。|请出一道与{}有关的选择题，同时给出答案。
翻译成英文：{}是企业经营中的重要概念。|把这句话译为英文：{}是企业经营中的重要概念。
请告诉我学习{}应该读哪些书。|想学{}，有什么书可以推荐？
{}和宏观经济之间有什么联系？|宏观经济与{}有怎样的关联？
请为{}写一首四行的小诗。|写四行小诗来描写{}。""".split("\n")
GOODS = "苹果 铅笔 本子 桌子 玩具车 西瓜 毛巾 水杯 书包 鸡蛋".split()
PEOPLE = "小明 小红 李华 王芳 张伟 刘洋".split()
SUMS = """{p}买了{a}个{g}，每个{b}元，一共花了多少元？|每个{g}的价格是{b}元，{p}一共买了{a}个，总共要付多少钱？
仓库里有{a}箱{g}，卖出{b}箱后又运来{c}箱，现在有多少箱？|运来{c}箱之后，原有{a}箱、已卖掉{b}箱{g}的仓库现在还剩几箱？
{p}存入银行{a}元，年利率{b}%，存{c}年，到期利息是多少？|年利率为{b}%，{p}把{a}元存了{c}年，请问能得到多少利息？
工厂每天生产{a}个{g}，{b}天后完成了任务的一半，任务是多少个？|{b}天完成了一半任务的工厂日产{g}{a}个，总任务量是多少？""".split(
    "\n"
)
OPENINGS = ["Hello, I need help with my homework.", "Hi! Could you help me with something?", "I have a question."]
FOLLOW_UPS = [
    "Can you show me the steps?",
    "Thanks! Please explain it again in simpler words.",
    "Are you sure? Check it.",
]


def row(id: str, question: str, gold: float | None = None) -> dict:
    answer = "It is so." if gold is None else f"It is {gold}.\n#### {gold}"
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    typed = None if gold is None else {"value": gold, "unit": "none"}
    return {"id": id, "source": "made", "kind": "made", "messages": messages, "gold": typed, "group": id}


def _both(id: str, texts: tuple[str, str], slots: dict, gold: float | None = None) -> tuple[dict, dict]:
    return tuple(row(name, text.format(**slots), gold) for name, text in zip((id, f"{id}'"), texts))


def _filings(count: int, rng, golds: bool = True) -> list[tuple[dict, dict]]:
    made = []
    for k in rng.permutation(len(FIRMS) * len(MEASURES) * 6)[:count].tolist():
        slots = {"f": FIRMS[k % 30], "m": MEASURES[k // 30 % 22], "y": 2017 + k // 660}
        gold = round(float(rng.lognormal(6, 2)), 2)
        made.append(_both(f"filing-{k}", FILINGS[rng.integers(3)], slots, gold if golds else None))
    return made


def _headlines(count: int, rng) -> list[tuple[dict, dict]]:
    made = []
    for k in rng.permutation(len(FIRMS) * len(EVENTS))[:count].tolist():
        texts = (
            f"{INSTRUCTION}\n\n{FIRMS[k % 30]} {EVENTS[k // 30]}",
            f"{FIRMS[k % 30]} {EVENTS[k // 30]}: how is this meant?",
        )
        made.append(tuple(row(id, text) for id, text in zip((f"news-{k}", f"news-{k}'"), texts)))
    return made


def _tool_chats(count: int, rng) -> list[tuple[dict, dict]]:
    made = []
    texts = ("What did {f} close at on {month} {day}, 2024, and what are {shares} shares worth?",
             "On {month} {day}, 2024, how much would {shares} shares of {f} have cost at the close?")  # fmt: skip
    for k in range(count):
        price, shares = round(float(rng.lognormal(4, 1)), 2), int(rng.integers(11, 990))
        slots = {"f": FIRMS[k % 30], "month": "March April May June".split()[k // 810 % 4], "day": 2 + k // 30 % 27}
        call = {"function": {"name": "price", "arguments": {"of": FIRMS[k % 30]}}}
        told = {"role": "tool", "content": json.dumps({"of": FIRMS[k % 30], "close": price, "currency": "USD"})}
        both = []
        for one in _both(f"tool-{k}", texts, slots | {"shares": shares}, round(price * shares, 2)):
            question, answer = one["messages"]
            system = {"role": "system", "content": "You are a broker. Use the tool where you need a price."}
            asks = {"role": "assistant", "content": "", "tool_calls": [call]}
            both.append(one | {"messages": [system, question, asks, told, answer], "tools": [{"name": "price"}]})
        made.append(tuple(both))
    return made


def _instructions(count: int, rng) -> list[tuple[dict, dict]]:
    made = []
    for k in rng.permutation(len(TOPICS) * len(ASK))[:count].tolist():
        texts = [text.format(TOPICS[k % len(TOPICS)]) for text in ASK[k // len(TOPICS)].split("|")]
        made.append(tuple(row(id, text) for id, text in zip((f"ask-{k}", f"ask-{k}'"), texts)))
    return made


def _sums(count: int, rng) -> list[tuple[dict, dict]]:
    made = {}
    while len(made) < count:
        kind, a, b, c = (int(rng.integers(*limits)) for limits in ((4,), (100, 990), (2, 99), (2, 30)))
        slots = {"a": a, "b": b, "c": c, "g": GOODS[rng.integers(10)], "p": PEOPLE[rng.integers(6)]}
        gold = (a * b, a - b + c, a * b * c / 100, 2 * a * b)[kind]
        seen = (kind, a, b, c if kind in (1, 2) else 0)
        made[seen] = _both(f"sum-{len(made)}", tuple(SUMS[kind].split("|")), slots, float(gold))
    return list(made.values())


MADE = {
    name: lambda count, rng, make=make: [list(rows) for rows in zip(*make(count, rng))]
    for name, make in {
        "filings": _filings, "filings without golds": lambda count, rng: _filings(count, rng, golds=False),
        "headlines": _headlines, "tool chats": _tool_chats, "instructions in Chinese": _instructions,
        "sums in Chinese": _sums,
    }.items()
}  # fmt: skip


def inside_chat(one: dict, rng) -> dict:
    """The row's question as one turn of a longer chat."""
    opening = [{"role": "user", "content": str(rng.choice(OPENINGS))}, {"role": "assistant", "content": "Of course."}]
    closing = [{"role": "user", "content": str(rng.choice(FOLLOW_UPS))}, {"role": "assistant", "content": "As above."}]
    return one | {"messages": [*opening[: 2 * rng.integers(2)], *one["messages"], *closing]}
