"""The words, signs and units that stand beside numbers, in the languages that answers come in.

English wins where languages differ: `billion` and `bn` are 1e9. A scale that has two values and none of its own in
English stands in TWO_VALUES, and its number is not read.
"""

import re

ENGLISH_SCALES = {
    "dozen dozens": 12.0, "hundred": 1e2, "thousand thousands": 1e3, "lakh lakhs lac lacs": 1e5,
    "million millions mn mm": 1e6, "crore crores cr": 1e7, "kcr": 1e10, "billion billions bn": 1e9,
    "trillion trillions tn lakh_crore lakh_crores lcr": 1e12,
    "quadrillion quadrillions": 1e15, "quintillion quintillions": 1e18,
}  # fmt: skip
OTHER_SCALES = {
    "tausend tsd mille millier milliers mila duizend tusen tusind tuhatta tys tysiąc tysiące tysięcy tysiąca "
    "tis tisíc tisíce тыс тысяча тысячи тысяч тис тисяч тисячі ezer mii bin rb ribu nghìn tkr हज़ार": 1e3,
    "लाख": 1e5,
    "mln mio mill millionen millón millones milione milioni milhão milhões miljoen miljon miljoner millioner milj "
    "miljoonaa milion miliona miliony milionów milionů milioane milyon millió jt juta triệu mkr mnkr "
    "млн миллион миллиона миллионов мільйон мільйона мільйони мільйонів": 1e6,
    "करोड़": 1e7,
    "mrd mld md mds mdr mia milliarde milliarden milliard milliards miliardo miliardi miljard miljarder milliarder "
    "miljardia miliard miliarda miliardy miliardów miliarde milyar milliárd bilhão bilhões miliar tỷ mdkr mil_millones "
    "mil_milhões mil_m млрд миллиард миллиарда миллиардов мільярд мільярда мільярди мільярдів bi mr अरब": 1e9,
    "bio billionen billioner billón billones biljoen biljon biljoner biljoonaa bilion biliona biliony bilionů bilionów "
    "trilhão trilhões trilyon triliun mila_miliardi mille_miliardi tril trilioane "
    "трлн триллион триллиона триллионов трильйон трильйона трильйони трильйонів bilj billió tri खरब": 1e12,
}
TWO_VALUES = "mil mi bil bill bln grand thou".split()  # `5 mil`: 5,000 in Spanish, 5 million to a trader
HAN = {"十": 1e1, "百": 1e2, "千": 1e3, "万": 1e4, "萬": 1e4, "亿": 1e8, "億": 1e8, "兆": 1e12, "京": 1e16,
       "십": 1e1, "백": 1e2, "천": 1e3, "만": 1e4, "억": 1e8, "조": 1e12}  # fmt: skip


def by_word(table: dict[str, float]) -> dict[str, float]:
    return {word.replace("_", " "): value for words, value in table.items() for word in words.split()}


SCALES = by_word(OTHER_SCALES) | by_word(ENGLISH_SCALES)
ENGLISH = frozenset(by_word(ENGLISH_SCALES))
SCALE_WORDS = "|".join(map(re.escape, sorted([*SCALES, *TWO_VALUES], key=len, reverse=True)))
LETTER = "a-z\u00c0-\u024f\u0400-\u045f"  # what ends no word

UNIT_WORDS = (
    r"percent(?:age)?(?:\ points?)?|per\ cent|pct|p\.?p\.?t?s?|prozent(?:punkten?)?|procent(?:enheter)?|prosent"
    r"|pour\ cent|points?\ de\ pourcentage|por\ cien(?:to)?|por\ cento|per\ cento|процент(?:а|ов)?"
    r"|per\ mill?e?|promill?e|bps?|basis\ points?|basispunkten?|(?:[x×]|times)(?!\s?(?:[($€]|\.?\d))"
)
HAN_UNITS = "个?百分点|個百分點|퍼센트|パーセント|倍|배"

# Signs, codes and names of money; `comma`: of places that write 1.234,56.
CURRENCIES = re.compile(
    rf"""(?P<comma>B?R\$|[€₺₽₫₴]|(?<![a-z])(?:[dns]?kr\.?|zł|Kč|(?-i:Ft|TL)|Rp\.?|руб\.?|грн\.?)(?![{LETTER}])
      |(?:(?<![a-z])|(?<=[ \d][mkt]))(?:EUR|SEK|NOK|DKK|PLN|CZK|HUF|RON|BRL|TRY|RUB|VND|IDR|UAH|ISK|BGN
      |ARS|CLP|COP)(?![a-z])
      |\b(?:euros?|kron(?:a|or|er|e)|reais|złotych|рублей|рубля|forint|欧元|ユーロ|유로)\b)
    |(?:\b(?:US|CA|AU|HK|NZ|NT|MX|C|A|S))?\$(?:(?:US|CA|AU|HK|NZ|SG)\b)?|£GB\b|(?:CN|JP)?[£¥₠-₿]|\bRs\.?(?![a-z])
    |(?:(?<![a-z])|(?<=[ \d][mkt]))(?:USD|GBP|JPY|INR|CNY|RMB|CHF|CAD|AUD|HKD|SGD|NZD|KRW|MXN|ZAR|TWD|THB|ILS|MYR
      |PHP|AED|SAR|PKR|EGP|NGN|KES)(?![a-z])
    |\b(?:(?:US|U\.S\.|Canadian|Australian|Hong\ Kong|Singapore|Indian|British|Swiss|Japanese|Chinese)\ )?
      (?:dollars?|pounds?|rupees?|yen|yuan|francs?)\b
    |[美港日]?元|英镑|人民币|块钱|[円圆圓원]|[米]?ドル|달러""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip
