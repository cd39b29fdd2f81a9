"""Random and adversarial texts for comparisons of tokenizers."""

CONTROL_LIKE = [
    "[INST]", "[/INST]", "<s>", "</s>", "<unk>", "<pad>", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[IMG]", "[REF]",
    "[/REF]", "[REFERENCE_DOC_1]", "[REFERENCE_DOC_12]", "[REFERENCE_DOC_", "[control_8]", "<0x0A>", "<0xE2>", "▁",
    "▁▁▁", "<SPECIAL_30>", "[SYSTEM_PROMPT]", "[PREFIX]", "<|endoftext|>", "[INST", "s>", "</", "⁇", " ⁇ ", "\u2581a",
]
SPACES = list(" \t\n\r\v\f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000") + [
    "  ", "   ", "\r\n", "\n\n", "\n \n", " \n", "\t\t", " " * 17, "\u200b", "\u200d", "\ufeff", "\u2060", "\u180e",
]
WORDS = (
    "the of and to in wind sea Galerne l'été d’accord qu'il aujourd'hui Straße Äpfel naïve niño città être œuvre "
    "HTTPServer getElementById snake_case CamelCase XMLHttpRequest iPhone McDonald's don't WE'VE I'm they'll "
    "слово Москва привет Ελληνικά λόγος हिन्दी नमस्ते தமிழ் বাংলা ไทย ภาษา עברית שָׁלוֹם العربية مُحَمَّد فارسی "
    "日本語 テキスト ひらがな 漢字 中文字符 한국어 텍스트 ⅣⅫ ǅungla ŉ ﬁn ｆｕｌｌ １２３ ٣٤٥ ½ ²³ ⁿ ª º ʰ ˈ ƛ"
).split()
CODE = [
    "fn main() {\n    println!(\"{}\", x[0] + 1);\n}\n", "if (a != b && c >= d) { return -1; }", "// comment //\n/* x */",
    "def f(x):\n\treturn x**2  # sq\n", "<div class=\"a\">&nbsp;</div>\r\n", "https://example.org/a/b?c=d&e=%20f#g",
    "SELECT * FROM t WHERE a = 'b';", "\\frac{1}{2}\\alpha_{i}^{2}", "{\"a\": [1, 2.5e-3, null]}", "a///b\n//\n/",
    "0xDEADBEEF 1_000_000 3.14159 12:34:56", "$$$###@@@!!!???...---___===", "--flag=value | grep -v '^#' > /dev/null",
]
EMOJI = ["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇫🇷🇩🇪", "☃️", "#️⃣", "🧑🏿‍🚀", "\ufe0f", "\u20e3", "🫠", "\U0001f1eb"]
MARKS = ["\u0301", "\u0308", "\u0323", "\u093f", "\u064e", "\u05b8", "\u20dd", "\u0e33", "\U000e0100", "\u3099"]
RANGES = [
    (0x20, 0x7E), (0x00, 0x1F), (0x7F, 0xA0), (0xA1, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x530, 0x8FF),
    (0x900, 0xDFF), (0xE00, 0x1FFF), (0x2000, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x30FF), (0x3100, 0xA4CF),
    (0xA4D0, 0xABFF), (0xAC00, 0xD7FF), (0xE000, 0xFAFF), (0xFB00, 0xFFFF), (0x10000, 0x107FF), (0x10800, 0x16FFF),
    (0x17000, 0x1D3FF), (0x1D400, 0x1EFFF), (0x1F000, 0x1FAFF), (0x1FB00, 0x2FFFF), (0x30000, 0xDFFFF),
    (0xE0000, 0x10FFFF),
]


def random_character(source):
    """Any code point but the surrogates, every range alike."""
    first, last = source.choice(RANGES)
    return chr(source.randint(first, last))


def piece(source, vocabulary):
    """A small piece of text of one of many kinds."""
    kind = source.randrange(14)
    if kind < 2:
        return source.choice(WORDS)
    if kind == 2:
        return source.choice(CONTROL_LIKE)
    if kind == 3:
        return source.choice(SPACES)
    if kind == 4:
        return source.choice(EMOJI + MARKS)
    if kind == 5:
        return str(source.randrange(10 ** source.randint(1, 20)))
    if kind == 6:
        return source.choice(CODE)
    if kind == 7:
        first, last = source.choice(RANGES)
        return "".join(chr(source.randint(first, last)) for _ in range(source.randint(1, 12)))
    if kind == 8:
        return random_character(source)
    if kind == 9:
        return random_character(source) * source.randint(2, 70)
    if kind == 10:
        return "".join(chr(source.randint(0x20, 0x7E)) for _ in range(source.randint(1, 15)))
    if kind == 11:
        letters = "aAbBzZ éÉ漢\u0301ªʰǅ'/.\n 1"
        return "".join(source.choice(letters) for _ in range(source.randint(1, 25)))
    # Tokens of the vocabulary as text: their neighbours decide what becomes of them.
    return "".join(source.choice(vocabulary) for _ in range(source.randint(1, 5)))


def random_text(source, vocabulary):
    """A text of up to a dozen pieces, with or without spaces between them; one of a few hundred is a long run."""
    if source.randrange(400) == 0:
        unit = source.choice([random_character(source), "ab", " ", "\n", "-", "a ", "漢", "\u0301", "é", "🙂", "Aa", "/"])
        return unit * (source.choice([1000, 3000, 10000]) // len(unit))
    joint = source.choice(["", "", " ", " ", "  ", "\n"])
    return joint.join(piece(source, vocabulary) for _ in range(source.randint(0, 12)))
