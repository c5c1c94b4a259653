"""Chinese as it is spoken: numbers in characters instead of digits, spaces instead of marks.

The rules are those of SpeechIO's `TextNorm` with every option off, which scored the published numbers. They run in this order,
each over the text that the ones before it left:

    date                 2012年5月3日    二零一二年五月三日      the year digit by digit, if it is 19xx, 20xx, 8x, 9x or 0x
    money                3.5万元         三点五万元
    mobile telephone     13812345678     一三八一二三四五六七八  1 is 一, not 幺
    fixed telephone      010-12345678    零一零一二三四五六七八
    fraction             3/4             四分之三
    percentage           50%             百分之五十
    before a quantifier  1234个          一千两百三十四个
    four digits or more  1234            一二三四
    any other number     25.5            二十五点五
    2 between letters    B二B            B2B                     what the rules before have spoilt

Three habits are kept, because they are part of the published numbers. A number is written at the first place where the same
digits stand, which may be another one: "15，5个" becomes "一五 五个". Zeros alone are silent: "10:00" becomes "十". A sign
is a mark like any other: "-5" becomes "五".
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable

_DIGITS = "零一二三四五六七八九"
_UNITS = ((44, "载"), (40, "正"), (36, "涧"), (32, "沟"), (28, "穰"), (24, "秭"), (20, "垓"), (16, "京"), (12, "兆"),
          (8, "亿"), (4, "万"), (3, "千"), (2, "百"), (1, "十"))  # fmt: skip
_LARGE = "".join(unit for power, unit in _UNITS if power > 1)
_TWO_AS_LIANG = re.compile(rf"(?:^|(?<=[{_LARGE}]))二(?=[{_LARGE}])")

_MULTIPLES = "亿|千万|百万|万|千|百"
_CURRENCY = rf"(?:{_MULTIPLES}|(?:{_MULTIPLES}|)元|(?:{_MULTIPLES}|)块|角|毛|分)"
_NUMBER = r"\d+(?:\.\d+)?"
_QUANTIFIERS = (
    "匹张座回场尾条个首阙阵网炮顶丘棵只支袭辆挑担颗壳窠曲墙群腔砣客贯扎捆刀令打手罗坡山岭江溪钟队单双对出口头脚板跳枝件贴针线管名位身"
    "堂课本页家户层丝毫厘分钱两斤铢石钧锱忽寸尺丈里寻常铺程撮勺合升斗盘碗碟叠桶笼盆盒杯斛锅簋篮罐瓶壶卮盏箩箱煲啖袋钵年月日季刻时周天秒"
    "旬纪岁世更夜春夏秋冬代伏辈丸泡粒幢堆根道面片块"
)
_MARKS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃《》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏·〈〉"
    + string.punctuation
)
_MARKS_TO_SPACES = str.maketrans(dict.fromkeys(_MARKS, " "))

_YEAR, _DAY = r"(?:[089]\d|(?:19|20)\d\d)年", r"\d{1,2}月(?:\d{1,2}[日号])?"
_DATE = re.compile(rf"\D({_YEAR}(?:{_DAY})?|{_DAY})")
_MONEY = re.compile(rf"\D({_NUMBER}[多余几]?{_CURRENCY}(?:\d{_CURRENCY}?)?)")
_MOBILE = re.compile(r"\D((?:\+?86 ?)?1(?:[38]\d|5[0-35-9]|7[678]|9[89])\d{8})\D")
_FIXED = re.compile(r"\D((?:0(?:10|2[1-3]|[3-9]\d\d)-?)?[1-9]\d{6,7})\D")
_FRACTION = re.compile(r"(\d+/\d+)")
_PERCENTAGE = re.compile(rf"({_NUMBER}%)")
_COUNTED = re.compile(rf"({_NUMBER})[多余几]?(?:[{_QUANTIFIERS}]|[千毫微]克|[千分厘毫微]米)")
_CODE = re.compile(r"(\d{4,32})")
_OTHER = re.compile(rf"({_NUMBER})")
_BETWEEN_LETTERS = re.compile("([a-zA-Z]+二[a-zA-Z]+)")


def chinese(text: str) -> str:
    """Mandarin text as it is read aloud, with spaces for marks; case and width stay as they are."""
    text = f"^{text}$"  # so that a non-digit stands on both sides of every number; both vanish with the marks
    text = _rewrite(text, _DATE, _read_date)
    text = _rewrite(text, _MONEY, _read_each)
    text = _rewrite(text, _MOBILE, _read_digits)
    text = _rewrite(text, _FIXED, _read_digits)
    text = _rewrite(text, _FRACTION, _read_fraction)
    text = _rewrite(text.replace("％", "%"), _PERCENTAGE, lambda found: f"百分之{_read_number(found[:-1])}")
    text = _rewrite(text, _COUNTED, _read_number)
    text = _rewrite(text, _CODE, _read_digits)
    text = _rewrite(text, _OTHER, _read_number)
    text = _rewrite(text, _BETWEEN_LETTERS, lambda found: found.replace("二", "2"))
    return text.translate(_MARKS_TO_SPACES).strip(" ")


def _read_number(number: str) -> str:
    """A number as it is read: "20.50" is 二十点五零, "200" 两百, "007" 零七, "0.5" 零点五; "00" is silent.

    Args:
        number: digits, perhaps with a point and more digits.
    """
    whole, _, decimals = number.partition(".")
    spoken = _read_whole(whole) if len(whole) > 1 else _read_digits(whole)
    if decimals:
        spoken = f"{spoken or '零'}点{_read_digits(decimals)}"
    spoken = _TWO_AS_LIANG.sub("两", spoken)
    return spoken.removeprefix("一") if spoken.startswith("一十") else spoken


def _read_whole(digits: str) -> str:
    """Digits with units: the largest unit that fits, what stands before it, and the rest."""
    significant = digits.lstrip("0")
    if not significant:
        return ""
    if len(significant) == 1:
        return ("零" if len(digits) > 1 else "") + _read_digits(significant)
    power, unit = next((power, unit) for power, unit in _UNITS if power < len(significant))
    return _read_whole(digits[:-power]) + unit + _read_whole(significant[-power:])


def _read_digits(text: str) -> str:
    """Digit by digit; what is no digit (the sign or the stroke of a telephone number) is silent."""
    return "".join(_DIGITS[int(digit)] for digit in text if digit.isdecimal())


def _read_each(text: str) -> str:
    """Every number in an amount of money; all places of the same digits at once."""
    for number in _OTHER.findall(text):
        text = text.replace(number, _read_number(number))
    return text


def _read_date(date: str) -> str:
    year, mark, day = date.rpartition("年")
    return _read_digits(year) + mark + re.sub(r"\d+", lambda found: _read_number(found[0]), day)


def _read_fraction(fraction: str) -> str:
    numerator, denominator = fraction.split("/")
    return f"{_read_number(denominator)}分之{_read_number(numerator)}"


def _rewrite(text: str, pattern: re.Pattern[str], read: Callable[[str], str]) -> str:
    """Read what the pattern's group finds, one find after the other, each at the first place where it stands by then."""
    for found in pattern.findall(text):
        text = text.replace(found, read(found), 1)
    return text
