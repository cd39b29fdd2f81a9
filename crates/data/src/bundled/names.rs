//! Invented proper names, built from syllables with the flavour of each language.

use crate::Language;
use crate::random::Random;

struct Syllables {
    first: &'static [&'static str],
    middle: &'static [&'static str],
    last_man: &'static [&'static str],
    last_woman: &'static [&'static str],
}

const FRENCH: Syllables = Syllables {
    first: &[
        "Ad", "Al", "Am", "Ann", "Ar", "Aub", "Bas", "Ben", "Ber", "Bl", "Cam", "Cél", "Cl", "Cor",
        "Dam", "Del", "Éd", "Él", "Ém", "Fab", "Fl", "Gab", "Ger", "Hon", "Is", "Jul", "Lam",
        "Léon", "Luc", "Mar", "Mat", "Mél", "Nic", "Od", "Pal", "Per", "Quent", "Ros", "Sab",
        "Sim", "Th", "Val", "Vict", "Yv",
    ],
    middle: &["a", "é", "i", "o", "ari", "ero", "ani", "oli", "eli", "ati", "ima", "ori"],
    last_man: &[
        "bert", "lin", "mond", "rien", "tien", "nard", "dric", "vin", "las", "mien", "ran", "tin",
    ],
    last_woman: &[
        "line", "nette", "delle", "ria", "vie", "nne", "tine", "sée", "belle", "rine", "lle", "da",
    ],
};

const ENGLISH: Syllables = Syllables {
    first: &[
        "Al", "Am", "Ash", "Bar", "Ber", "Br", "Cal", "Car", "Col", "Dar", "Del", "Dun", "Ed",
        "El", "Em", "Far", "Fen", "Gar", "Gil", "Had", "Har", "Il", "Jan", "Jos", "Kel", "Lan",
        "Lor", "Mar", "Mer", "Nat", "Ned", "Or", "Pen", "Ral", "Row", "Sel", "Sil", "Tam", "Thor",
        "Tob", "Wal", "Win", "Wyn",
    ],
    middle: &["a", "e", "i", "o", "er", "en", "in", "ol", "an", "ar", "el", "is"],
    last_man: &[
        "ford", "ley", "den", "mund", "ric", "win", "son", "ton", "wick", "bert", "man", "vin",
    ],
    last_woman: &[
        "ta", "beth", "lyn", "wen", "da", "lia", "sie", "nora", "rose", "ny", "dith", "na",
    ],
};

const GERMAN: Syllables = Syllables {
    first: &[
        "Ad", "Al", "Ans", "Arn", "Ber", "Bod", "Dag", "Diet", "Eck", "Ed", "Er", "Fried", "Ger",
        "Gis", "Gun", "Har", "Hed", "Heil", "Hel", "Ing", "Irm", "Jor", "Kas", "Kon", "Lam",
        "Leon", "Lor", "Man", "Mart", "Nor", "Os", "Rein", "Rom", "Sig", "Sol", "Til", "Ul", "Vol",
        "Wal", "Wend", "Wil", "Wolf",
    ],
    middle: &["a", "e", "i", "o", "er", "en", "il", "in", "el", "al"],
    last_man: &[
        "bert", "mar", "rich", "win", "hard", "mund", "fried", "wald", "bold", "ger", "ram", "not",
    ],
    last_woman: &[
        "linde", "gard", "traud", "lore", "hilde", "na", "run", "line", "burg", "mut", "rike", "sa",
    ],
};

const SPANISH: Syllables = Syllables {
    first: &[
        "Ad", "Al", "Am", "Ans", "Ar", "Bal", "Bas", "Ben", "Cal", "Cam", "Cel", "Cris", "Dal",
        "Dom", "El", "Em", "Est", "Fab", "Fel", "Ger", "Gon", "Is", "Jac", "Jul", "Lau", "Leon",
        "Lis", "Mac", "Mar", "Mat", "Nat", "Oct", "Pal", "Per", "Ram", "Ros", "Sal", "Ser", "Tad",
        "Tor", "Val", "Vic", "Zen",
    ],
    middle: &["a", "e", "i", "o", "ari", "eri", "ani", "ori", "eli", "imi"],
    last_man: &["no", "do", "lio", "nso", "rdo", "cio", "to", "mundo", "nte", "berto", "ro", "rio"],
    last_woman: &[
        "na", "da", "lia", "nsa", "rda", "cia", "ta", "munda", "nta", "berta", "ra", "ria",
    ],
};

const ITALIAN: Syllables = Syllables {
    first: &[
        "Ad", "Al", "Am", "Ang", "Arn", "Bart", "Ben", "Brun", "Cam", "Carl", "Cor", "Dant", "Dom",
        "Elv", "Em", "Er", "Fab", "Ferr", "Fior", "Gal", "Gild", "Giul", "Ir", "Lav", "Leon",
        "Lor", "Lud", "Mar", "Mart", "Mel", "Nin", "Orn", "Pal", "Pier", "Raff", "Ros", "Sab",
        "Silv", "Ter", "Ug", "Val", "Vit",
    ],
    middle: &["a", "e", "i", "o", "ari", "eri", "ani", "ori", "eli", "ini"],
    last_man: &["no", "do", "lio", "ldo", "rdo", "zio", "to", "ndro", "sto", "berto", "ro", "tino"],
    last_woman: &[
        "na", "da", "lia", "lda", "rda", "zia", "ta", "ndra", "sta", "berta", "ra", "tina",
    ],
};

/// The first name of a man or a woman, in the flavour of a language.
pub(super) fn person(language: Language, random: &mut Random, is_woman: bool) -> String {
    let syllables = match language {
        Language::French => &FRENCH,
        Language::English => &ENGLISH,
        Language::German => &GERMAN,
        Language::Spanish => &SPANISH,
        Language::Italian => &ITALIAN,
    };
    let last = if is_woman { syllables.last_woman } else { syllables.last_man };
    if random.chance(20) {
        return join(random, syllables.first, syllables.middle, last);
    }
    let first = closed_syllable(random);
    format!("{first}{}", join(random, &[""], syllables.middle, last))
}

/// A first syllable that ends in a consonant: one of about two thousand.
fn closed_syllable(random: &mut Random) -> String {
    const START: [&str; 24] = [
        "B", "Br", "C", "Cl", "D", "F", "Fl", "G", "Gr", "J", "L", "M", "N", "P", "R", "S", "T",
        "Tr", "V", "Bl", "Dr", "Fr", "Pl", "H",
    ];
    const CORE: [&str; 9] = ["a", "e", "i", "o", "u", "au", "ai", "eo", "ia"];
    const END: [&str; 9] = ["l", "n", "r", "m", "d", "s", "v", "t", "b"];
    join(random, &START, &CORE, &END)
}

const FAMILY_MIDDLE: [&str; 20] = [
    "a", "e", "i", "o", "u", "ar", "er", "or", "an", "en", "on", "al", "el", "il", "am", "im",
    "as", "os", "av", "ov",
];

/// A family name in the flavour of a language.
pub(super) fn family(language: Language, random: &mut Random) -> String {
    let last: &[&str] = match language {
        Language::French => &[
            "dier", "teau", "lard", "gnon", "vel", "rieux", "doux", "court", "tier", "let", "dac",
            "mière",
        ],
        Language::English => &[
            "combe", "worth", "ridge", "stone", "by", "more", "wood", "ling", "shaw", "field",
            "den", "kins",
        ],
        Language::German => &[
            "mann", "bach", "stein", "ler", "hofer", "brecht", "meier", "ner", "berg", "tke",
            "wald", "ger",
        ],
        Language::Spanish => &[
            "dez", "rres", "nares", "lero", "zabal", "gosa", "teno", "dillo", "rano", "lastra",
            "mera", "vedo",
        ],
        Language::Italian => &[
            "lli", "tti", "nelli", "rosi", "cchi", "doni", "mante", "sco", "rini", "viani",
            "letta", "gliani",
        ],
    };
    let mut name = closed_syllable(random);
    name.push_str(random.pick::<&str>(&FAMILY_MIDDLE));
    if random.chance(40) {
        name.push_str(&join(
            random,
            &["r", "l", "n", "d", "t", "v", "m"],
            &["a", "e", "i", "o"],
            &[""],
        ));
    }
    let ending = random.pick(last);
    format!("{name}{ending}")
}

/// A village that is mentioned in passing: there are thousands.
pub(super) fn village(random: &mut Random) -> String {
    const LAST: [&str; 24] = [
        "mont", "dal", "van", "nac", "ster", "ville", "court", "mar", "dun", "bec", "gard", "lis",
        "ro", "field", "mer", "val", "rive", "tour", "sel", "bourg", "lac", "pont", "nes", "lande",
    ];
    let first = closed_syllable(random);
    format!("{first}{}", join(random, &[""], &FAMILY_MIDDLE, &LAST))
}

/// A town of the invented world; the same in every language.
pub(super) fn town(random: &mut Random) -> String {
    const FIRST: [&str; 30] = [
        "Val", "Mor", "Ker", "Bel", "Cor", "Dar", "Fal", "Gor", "Lan", "Mel", "Nor", "Per", "Quil",
        "Ras", "Sar", "Tal", "Ver", "Bran", "Cal", "Dun", "Fer", "Gran", "Lor", "Mar", "Pel",
        "Ros", "Sol", "Tor", "Vel", "Bren",
    ];
    const MIDDLE: [&str; 8] = ["a", "e", "i", "o", "en", "an", "ol", "er"];
    const LAST: [&str; 16] = [
        "mont", "dal", "vane", "nac", "ster", "ville", "court", "mar", "dun", "bec", "gard", "lis",
        "ro", "field", "mer", "val",
    ];
    join(random, &FIRST, &MIDDLE, &LAST)
}

/// A river or a region of the invented world.
pub(super) fn river(random: &mut Random) -> String {
    const FIRST: [&str; 20] = [
        "B", "Br", "C", "Cr", "D", "Dr", "F", "G", "Gr", "L", "M", "N", "P", "R", "S", "T", "Tr",
        "V", "Fl", "Pl",
    ];
    const MIDDLE: [&str; 10] = ["a", "o", "e", "au", "ai", "ou", "ie", "u", "oi", "ea"];
    const LAST: [&str; 12] =
        ["rne", "lme", "ndre", "se", "lle", "rve", "mbe", "ne", "vre", "ste", "gne", "dore"];
    join(random, &FIRST, &MIDDLE, &LAST)
}

/// A plant or animal that exists in the invented world only; starts with a consonant.
pub(super) fn creature(random: &mut Random) -> String {
    const FIRST: [&str; 20] = [
        "b", "br", "c", "cl", "d", "dr", "f", "fl", "g", "gr", "l", "m", "n", "p", "pl", "r", "t",
        "tr", "v", "t",
    ];
    const MIDDLE: [&str; 10] =
        ["ova", "ari", "elo", "omi", "anti", "uri", "ela", "obi", "ira", "ulo"];
    const LAST: [&str; 12] =
        ["n", "l", "ndre", "ret", "bon", "vin", "que", "mel", "dor", "san", "lot", "rac"];
    join(random, &FIRST, &MIDDLE, &LAST)
}

fn join(random: &mut Random, first: &[&str], middle: &[&str], last: &[&str]) -> String {
    let first = random.pick(first);
    let middle = random.pick(middle);
    let last = random.pick(last);
    format!("{first}{middle}{last}")
}
