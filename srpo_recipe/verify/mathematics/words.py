"""Words and signs of written answers: what is a function, a unit, a multiple, a word, and the signs of other alphabets."""

# Names that may stand without their backslash, and what they mean.
FUNCTIONS: dict[str, str] = {
    **{
        name: "\\" + name
        for name in (
            "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp pi theta alpha beta gamma delta lambda mu "
            "sigma omega phi rho tau epsilon infty sqrt min max gcd"
        ).split()
    },
    **dict.fromkeys(("infinity", "oo"), r"\infty"),
}

SIGNS: dict[str, str] = {
    "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "×": r"\times ", "÷": "/", "∕": "/", "−": "-", "–": "-",
    "∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ",
    "μ": r"\mu ", "σ": r"\sigma ", "ω": r"\omega ", "φ": r"\phi ", "ρ": r"\rho ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ",
    "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "≈": r"\approx ",
    "º": "°", "˚": "°", "％": r"\%", "，": ",", "（": "(", "）": ")", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip

SUPERSCRIPTS: dict[str, str] = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))

VULGAR: dict[str, tuple[int, int]] = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
}  # fmt: skip

# A bare run of two or three letters is a product, unless it is one of these.
SHORT_WORDS = frozenset(
    "yes no odd one two six ten all any red blue tan up down left low top new old day dog cat saw was on not and or if "
    "none both even prime true man men she he her him his we us it is be at in by do go so my me an as sun mon tue wed thu "
    "fri sat jan feb mar apr may jun jul aug sep oct nov dec amy ann ben bob dan eve ivy jim joe kim lee leo max mia pam sam "
    "sue ted tim tom zoe".split()
)

MULTIPLIERS: dict[str, str] = {
    "hundred": "10^{2}",
    "thousand": "10^{3}",
    "million": "10^{6}",
    "billion": "10^{9}",
    "trillion": "10^{12}",
    "dozen": "12",
}

_LENGTHS = (
    "mm millimeter millimetre", "cm centimeter centimetre", "m meter metre", "km kilometer kilometre", "mile mi",
    "inch in inches", "foot ft feet", "yard yd", "unit",
)  # fmt: skip

# Spelling -> one name. A plural with an s is found as well.
UNITS: dict[str, str] = {
    **{
        spelling: spellings.split()[0]
        for spellings in (
            *_LENGTHS, "second s sec", "minute min", "hour h hr", "day", "week", "month",
            "year yr", "dollar usd", "cent", "euro", "pound lb lbs", "ounce oz", "gram g", "kg kilogram", "liter l litre",
            "ml milliliter", "gallon", "degree deg", "radian rad", "mph", "kmh", "newton n", "joule j", "watt w", "volt v",
            "kelvin k", "hertz hz", "pascal pa", "mole mol", "point", "people person", "student", "apple", "way",
            "time", "page", "book", "coin", "ticket", "mark", "digit",
        )
        for spelling in spellings.split()
    },
    **{
        f"{word} {spelling}": f"{spellings.split()[0]}{power}"
        for word, power in (("square", 2), ("sq", 2), ("cubic", 3))
        for spellings in _LENGTHS
        for spelling in spellings.split()
    },
    "mile per hour": "mph", "miles per hour": "mph", "kilometers per hour": "kmh", "kilometres per hour": "kmh",
}  # fmt: skip
