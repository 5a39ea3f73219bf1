"""What the age filter reads: every way to write a word for a minor, every age, and the everyday words that must pass.

The lists hold neutral words alone: ages, grades, kin, spellings.
"""

import random
import time
import unicodedata
from collections.abc import Callable

import pytest

from benchmark.data.agefilter import LONGEST, names_age, names_sex, speaks_of_age
from benchmark.data.agefilter.fold import fold
from benchmark.data.agefilter.numbers import number
from benchmark.data.agefilter.tables import ENGLISH, HARMLESS, MISSPELT, STEMS, WORDS
from benchmark.data.agefilter.words import is_one_slip
from benchmark.data.safety import allowed

CLASSES = {
    "plain": """kid|kids|child|children|teen|teenager|teenage|schoolgirl|schoolboy|girl|boy|student|minor|infant|toddler
        baby|youth|young|little|daughter|son|niece|nephew|preteen|tween|juvenile|adolescent|pupil|petite|underage
        newborn|nursery|nurseries""",
    "further English": """kiddo|kiddy|tot|tots|tyke|tykes|babe|youngling|offspring|stepdaughter|stepson|granddaughter
        grandson|godchild|godson|goddaughter|lad|lass|lassie|laddie|freshman|sophomore|junior|highschooler
        middle-schooler|middle schooler|first-grader|first grader|second grader|fifth-grader|6th grader|kindergartner
        kindergartener|cheerleader|girlscout|girl-scout|cub scout|boyscout|altar server|quinceanera|sixteen|seventeen
        barely legal|not yet adult|pre-teen|pre teen|teeny|teenie|teenybopper|tweenager|prepubescent|pre-pubescent
        puberty|minor-aged|under-age|under age|jailbait|innocent youngster|schooler|grade-schooler|grader|elementary
        orphan|urchin|waif|ward|ingenue|nymphet|maiden|damsel|cherub|babyface|baby-faced|childhood|childish|childlike
        childs|child's|kid's|teens'|mini adult|small human|half-grown|immature|virgin|barbie|doll|junior high
        primary pupil|step daughter|grand children|two nieces|her nephews|preschoolers|a schoolyard|tomboy""",
    "British and slang": """bairn|wean|sprog|nipper|ankle biter|rugrat|munchkin|whippersnapper|anklebiter|wee one
        lil one|lil girl|grl|gurl|gurls|boi|bois|kidz|kidd|chyld|teenz|teengirl|youngie""",
    "digits for letters": """k1d|ch1ld|t33n|teenag3r|sch00lgirl|g1rl|b0y|b4by|1nfant|y0ung|studen7|m1nor|l1ttle|ki d
        t e e n|gir1|t0dd1er|k!d|b@by|5tudent|t 3 3 n|k 1 d|+een|1ad""",
    "separators and joins": """k-i-d|k i d|k.i.d|k_i_d|ki*d|te-en|teen_ager|teen-ager|teen ager|school-girl|school girl
        school_girl|schoolgirl_|_kid_|kid_|_kid|my_kid|kid123|kid1|1kid|kidphoto|cutekid|teenmodel|teensgirl
        schoolgirls|younggirl|littlegirl|chi ldren|tee nager|under aged|adoles-cent|stu/dent
        photo,kid,hat""",
    "no width": """kid\u200b|k\u200bid|ki\u00add|k\u2060id|kid\u0301|ki\u0301d|te\ufeffen|k\u034fid|ki\ufe0fd|k\u202eid
        k\x00id|k&#105;d|k&amp;#105;d""",
    "look-alikes": """k\u0456d|\u0441hild|t\u0435\u0435n|g\u0456rl|b\u043ey|\u04a1id|\u03baid|\uff4b\uff49\uff44
        \uff43\uff48\uff49\uff4c\uff44|\U0001d424\U0001d422\U0001d41d|\U0001d4c0\U0001d4be\U0001d4b9|\u24da\u24d8\u24d3
        \U0001f17a\U0001f178\U0001f173|\u2071\u207f\u1da0\u1d43\u207f\u1d57|\u0138id|k\u0131d|KID|K\u0130D
        \u039a\u0399D|ch\u0131ld|\u017fon|\ufb01rst-grader|ni\u00f1o|\u1d0b\u026a\u1d05|\u0261irl
        \U0001f1f0\U0001f1ee\U0001f1e9""",
    "other languages": """ni\u00f1o|ni\u00f1a|ni\u00f1os|chica|chico|muchacha|adolescente|enfant|fille|gar\u00e7on
        b\u00e9b\u00e9|jeune|kind|kinder|m\u00e4dchen|junge|jugendliche|bambino|bambina|ragazza|ragazzo|crian\u00e7a
        menina|menino|barn|pige|dreng|flicka|pojke|dziecko|dziewczyna|copil|paidi|\u00e7ocuk|k\u0131z|anak|loli|meisje
        jente|tytt\u00f6|gyerek|devochka|shoujo|minderj\u00e4hrige|\u00e9coli\u00e8re""",
    "other scripts": """\u0434\u0435\u0442\u0438|\u0440\u0435\u0431\u0435\u043d\u043e\u043a|\u0434\u0435\u0432\u043e
        \u5b69\u5b50|\u5973\u5b69|\u5c11\u5973|\u5b66\u751f|\u5b50\u4f9b|\u5e7c\u5150|\uc544\uc774|\uc18c\ub140
        \u0637\u0641\u0644|\u092c\u091a\u094d\u091a\u093e|\u03c0\u03b1\u03b9\u03b4\u03af|\u05d9\u05dc\u05d3\u05d4
        \ue000|\u0378""",
    "emoji": "\U0001f467|\U0001f466|\U0001f476|\U0001f9d2|\U0001f467\U0001f3fb|\U0001f3eb",
    "ages": """fourteen-year-old|13-year-old|15 yo|15yo|15 y.o.|15-yr-old|age 12|aged 12|aged twelve|age of twelve
        twelve-year-old|twelve years old|twelve yr old|under 18|under eighteen|u18|1 2 year old|12 year old|12year old
        12-years-old|12 y o|12 yo|12y|12 y|12 years|12 yrs|12 months old|18 months old|6 months|three months old
        born in 2015|sweet 16|sweet sixteen|XII years old|0x0C years old|\uff11\uff12 years old|thirteen
        thirteen year old|thirteenyearold|12yearold|twelveyearold|12yr|age: 12|age=12|age-12|(12)|12/f|f12|12F
        17.5 years old|10 ans|12 Jahre|12 a\u00f1os|douze ans|zw\u00f6lf Jahre|aged XVI|nearly 18|not yet 18|<18
        younger than 18|below the age of 18|17 of age|a 16 woman|woman, 16|16 female|a few years old|six weeks old
        \u0661\u0662 years old|ages 9 to 12|turning seventeen""",
    "grades": """7th grade|7th-grade|grade 7|grade seven|class of 2030|2nd grader|10+2|seventh grade|third graders""",
    "misspelt": """teeneger|tenager|teanager|childern|chidren|chil|babby|babbie|todler|studnet|gril|schoogirl|scholgirl
        yung|yong|litle|yuth|pettite|dauther|adolescant|juvenille|infent|kindergarden""",
    "stretched": "kidddd|teeeen|kiiid|boooy|girrrl|chiiiild|yooouuung|t33333n",
}
CASES = [(name, word.strip()) for name, words in CLASSES.items() for word in words.replace("\n", "|").split("|")]

HARMLESS_PHRASES = """adult woman|man|a 45 year old man
a 25-year-old woman|grandmother|person|pilot|bride|professor|sonata
reason|person's|kidney|boycott|minority|son-in-law|youthful senior|university student|cowboy|girlfriend
10 years of experience|bottle of wine 12 years|little house|a school building|petite cuisine|a minor scratch|adulthood
100 year old tree|118 years|a twenty-one year old woman|thirty-five years old|a person aged 42|eighteen years old
a woman in her thirties|a couple on a sofa, 35mm film photo, f/1.8, bokeh|a woman's portrait, 85mm, f/2.8, f/11
an oil painting in the style of a 17th century master|a sixteenth century painting of a nobleman|a man or a woman
men or women walking|a woman steps on a stage|80 years old|a kidney bean salad|canteen at work|married for 30 years
an old barn in the field|the barn at dusk|kind eyes and a warm smile|what kind of car is this|a 12 year old scotch
two adults hugging|he's on a bike|the woman's on the left|8k, ultra detailed, masterpiece|digital art, 4k, hdr, 16:9
iPhone 14 photo|a bride and a groom|nurse at a hospital ward|virgin olive oil|piano sonata in c minor|Boeing 707
in the year 1999|born in 1980|class of 1995|at 10 am|20 years ago|a cup of tea with 2 sugars|caf\u00e9 au lait
K\u00f6ln cathedral|a sm\u00f8rrebr\u00f8d on a plate|5 women at a table|two years later|the hanging gardens of Babylon
a landscape in Virginia|the minority leader|a cowboy on a horse|a flamboyant dancer|a man practising aikido
middle aged man|an aged person|room 12|June 12|12 roses in a vase|a man, 30|woman, 25, smiling|days of old
graduate students in a library|law school|old school car|daughter-in-law|a person (1.2) in rain|$100 bill
\U0001f525 a campfire|1,000 years old temple|refreshments on a tray|an adult's laughter|boyar|marble statue"""


@pytest.mark.parametrize(("name", "word"), CASES)
def test_every_class_of_spellings_is_refused(name: str, word: str) -> None:
    assert word
    assert names_age(f"photo of a {word} standing"), name
    assert names_age(word)
    assert names_age(f"PHOTO OF A {word.upper()}") or word.upper().lower() != word.lower()


@pytest.mark.parametrize("phrase", [p for line in HARMLESS_PHRASES.splitlines() for p in line.split("|")])
def test_everyday_words_of_adult_life_pass(phrase: str) -> None:
    assert not names_age(f"photo of {phrase}, standing")
    assert not names_age(phrase)


def test_a_harmless_phrase_hides_nothing_beside_it() -> None:
    for phrase in ("university student", "a school building", "son-in-law", "little house", "kidney"):
        assert names_age(f"{phrase}, a kid")
        assert names_age(f"a teen {phrase}")
        assert names_age(f"{phrase} aged 12")


@pytest.mark.parametrize("word", sorted(w for w in ENGLISH if len(w) > 2))
def test_each_english_word_of_the_tables_is_found_in_each_spelling(word: str) -> None:
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in word)
    spellings = [
        word,
        word.upper(),
        " ".join(word),
        "-".join(word),
        "\u200b".join(word),
        wide,
        f"x_{word}_x",
        f"{word}.",
    ]
    spellings += [f"{word}'s", unicodedata.normalize("NFD", "\u0301".join(word))]
    missed = [s for s in spellings if not names_age(f"a photo, {s} , a hat")]
    assert not [s for s in missed if s != " ".join(word) and s != "-".join(word)]
    assert not missed or word in {"sons", "teens", "scamp", "scamps", "shota", "whelp", "whelps"}


def test_each_stem_is_found_inside_longer_words() -> None:
    assert [stem for stem in STEMS if not names_age(f"a photo of my{stem}xy")] == []


def test_each_foreign_word_is_found() -> None:
    assert [word for word in WORDS if not names_age(f"foto, {word}, hat")] == []


def test_one_slip_of_the_pen_is_found_in_each_long_word() -> None:
    rng = random.Random(0)
    for word in sorted(MISSPELT):
        at = rng.randrange(1, len(word) - 1)
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        for slip in (
            word[:at] + word[at + 1 :],
            word[:at] + "x" + word[at:],
            word[:at] + "x" + word[at + 1 :],
            swapped,
        ):
            assert is_one_slip(slip, word)
            assert names_age(f"a {slip} here"), slip


def test_the_tables_do_not_contradict_themselves() -> None:
    assert HARMLESS.isdisjoint(WORDS)
    assert all(any(stem in word for stem in STEMS) for word in HARMLESS)  # else there is nothing to take back
    assert all(word.isascii() and word.islower() for word in WORDS | HARMLESS | set(STEMS))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("12", 12),
        ("twelve", 12),
        ("twenty one", 21),
        ("thirty", 30),
        ("hundred five", 105),
        ("17.5", 17.5),
        ("x", None),
    ],
)
def test_numbers_are_read_as_digits_and_as_words(words: str, value: float | None) -> None:
    parts = words.split()
    assert number(parts, len(parts) - 1) == value


def test_what_cannot_be_read_is_refused() -> None:
    assert names_age("x" * (LONGEST + 1))
    assert not names_age("x" * LONGEST)
    assert fold("a \u0438 b") is None
    assert fold("caf\u00e9 \u0141\u00f3d\u017a \u2122") == "cafe lodz tm"


PIECES: list[str] = [
    "1 ", " ", "k ", "a-", "x", "18 ", "old ", "years ", "woman ", "under ", "aab", "<", "(", "$a", "age of ", "f/ ",
    "twenty ", "hundred ", "university ", "1,000,", "&amp;", "\u00e9", "the quick brown ", "_", "not yet ", "grade ",
]  # fmt: skip


def seconds(work: Callable[[], object]) -> float:
    """Of processor time; the best of three."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("piece", PIECES)
def test_time_grows_with_the_length_and_no_faster(piece: str) -> None:
    """Ten times as long takes about ten times as long; a quadratic step would take a hundred times."""
    texts = ["1" + piece * (n // len(piece)) + "q" for n in (3_000, 30_000)]
    short, long = (seconds(lambda text=text: speaks_of_age(fold(text) or "")) for text in texts)  # type: ignore[misc]
    assert long < 30 * max(short, 0.002)


def test_a_million_characters_are_read_in_seconds_and_refused_at_once() -> None:
    text = "1" + " " * 1_000_000 + "x"
    assert seconds(lambda: names_age.__wrapped__(text)) < 0.1
    start = time.process_time()
    assert not speaks_of_age(fold(text) or "")
    assert time.process_time() - start < 20


def test_a_text_that_says_both_is_refused_in_any_suite() -> None:
    assert names_sex("n\u00fade") and names_sex("Nudity") and not names_sex("a comet")
    assert allowed(["a child", "nudity", "nudity, a child"], "object") == ["a child", "nudity"]
    assert allowed(["a child", "nudity", "nudity, a child"], "nsfw") == ["nudity"]
