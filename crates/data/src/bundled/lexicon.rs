//! The word lists of the five languages, read from the text files beside the code.

use crate::Language;

const NOUNS: &str = include_str!("text/nouns.txt");
const ADJECTIVES: &str = include_str!("text/adjectives.txt");

/// Grammatical gender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    Masculine,
    Feminine,
    Neuter,
}

/// How a noun departs from the rules of its language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Habit {
    Regular,
    /// German weak declension: every case but the nominative singular is the plural form.
    Weak,
    /// A French h that forbids elision.
    Aspirate,
    /// A Spanish feminine that takes `el` in the singular.
    StressedA,
}

/// A noun of one language. The same index names the same thing in every language.
#[derive(Clone, Debug)]
pub(super) struct Noun {
    pub(super) singular: String,
    pub(super) plural: String,
    pub(super) gender: Gender,
    pub(super) plural_gender: Gender,
    pub(super) habit: Habit,
    pub(super) class: usize,
}

/// An adjective of one language: masculine, feminine, masculine plural, feminine plural.
#[derive(Clone, Debug)]
pub(super) struct Adjective {
    pub(super) forms: [String; 4],
    pub(super) precedes: bool,
}

/// All words of one language.
#[derive(Debug)]
pub(super) struct Lexicon {
    pub(super) nouns: Vec<Noun>,
    pub(super) adjectives: Vec<Adjective>,
    /// For each class of `CLASSES`, its first and past-last noun.
    pub(super) ranges: Vec<(usize, usize)>,
    /// For each class, the adjectives that fit.
    pub(super) fitting: Vec<Vec<usize>>,
}

/// Classes of nouns, in file order, with the letter that adjectives use for them.
pub(super) const CLASSES: [(&str, char); 15] = [
    ("tool", 't'),
    ("vessel", 't'),
    ("store", 't'),
    ("furniture", 't'),
    ("food", 'f'),
    ("dish", 'f'),
    ("mass", 'm'),
    ("animal", 'a'),
    ("plant", 'l'),
    ("place", 'p'),
    ("nature", 'n'),
    ("cloth", 'c'),
    ("fabric", 'x'),
    ("matter", 'x'),
    ("trade", 'h'),
];

/// The index of a class of nouns.
pub(super) fn class_index(name: &str) -> Option<usize> {
    CLASSES.iter().position(|(class, _)| *class == name)
}

/// The columns of the files, which are not in the order of `Language::ALL`.
fn column(language: Language) -> usize {
    match language {
        Language::English => 0,
        Language::French => 1,
        Language::German => 2,
        Language::Spanish => 3,
        Language::Italian => 4,
    }
}

impl Lexicon {
    /// Reads the words of one language.
    pub(super) fn new(language: Language) -> Self {
        let mut nouns: Vec<Noun> = Vec::new();
        let mut ranges = vec![(0, 0); CLASSES.len()];
        let mut class = 0;
        for line in NOUNS.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            if let Some(name) = line.strip_prefix("= ") {
                class = class_index(name).expect("the noun file names a class that code knows");
                ranges[class].0 = nouns.len();
                continue;
            }
            let cells: Vec<&str> = line.split(';').map(str::trim).collect();
            assert_eq!(cells.len(), 5, "noun line `{line}`");
            if CLASSES[class].0 == "trade" {
                nouns.extend(tradespeople(language, cells[column(language)], class));
            } else {
                nouns.push(noun(language, cells[column(language)], class));
            }
            ranges[class].1 = nouns.len();
        }
        let mut lexicon = Self {
            nouns,
            adjectives: Vec::new(),
            ranges,
            fitting: vec![Vec::new(); CLASSES.len()],
        };
        lexicon.read_adjectives(language);
        lexicon
    }

    fn read_adjectives(&mut self, language: Language) {
        for line in ADJECTIVES.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let cells: Vec<&str> = line.split(';').map(str::trim).collect();
            assert_eq!(cells.len(), 6, "adjective line `{line}`");
            for (class, (_, letter)) in CLASSES.iter().enumerate() {
                if cells[0].contains(*letter) {
                    self.fitting[class].push(self.adjectives.len());
                }
            }
            self.adjectives.push(adjective(language, cells[1 + column(language)]));
        }
    }
}

/// Reads `word g`, `word g/plural`, `word/plural g`; English has no gender.
fn noun(language: Language, cell: &str, class: usize) -> Noun {
    let mut habit = Habit::Regular;
    let cell = cell.strip_prefix('\'').inspect(|_| habit = Habit::Aspirate).unwrap_or(cell);
    let mut gender = Gender::Neuter;
    let mut words = cell;
    let mut plural_cell = None;
    if language != Language::English {
        let (head, tail) = cell.rsplit_once(' ').expect("a noun has a gender");
        words = head;
        let (mark, plural) = tail.split_once('/').map_or((tail, None), |(m, p)| (m, Some(p)));
        plural_cell = plural;
        gender = match mark.as_bytes()[0] {
            b'm' => Gender::Masculine,
            b'f' => Gender::Feminine,
            _ => Gender::Neuter,
        };
        match mark.as_bytes().get(1) {
            Some(b'*') => habit = Habit::Weak,
            Some(b'^') => habit = Habit::StressedA,
            _ => {}
        }
    }
    let (singular, slash) = words.split_once('/').map_or((words, None), |(s, p)| (s, Some(p)));
    let mut plural_gender = gender;
    let plural = match plural_cell.or(slash) {
        Some(form) => match form.split_once('=') {
            Some((form, _)) => {
                plural_gender = Gender::Feminine;
                form.to_owned()
            }
            None => form.to_owned(),
        },
        None => plural(language, singular),
    };
    Noun { singular: singular.to_owned(), plural, gender, plural_gender, habit, class }
}

/// The man and the woman of a trade, as two nouns.
fn tradespeople(language: Language, cell: &str, class: usize) -> [Noun; 2] {
    let forms: Vec<&str> = cell.split('/').collect();
    let mut habit = Habit::Regular;
    let man = forms[0].strip_suffix('*').inspect(|_| habit = Habit::Weak).unwrap_or(forms[0]);
    let (woman, men, women) = match language {
        Language::English => (man, plural(language, man), plural(language, man)),
        Language::German => {
            let women = forms[2]
                .strip_suffix("frau")
                .map_or_else(|| format!("{}nen", forms[2]), |stem| format!("{stem}frauen"));
            (forms[2], forms[1].to_owned(), women)
        }
        _ => (
            forms[1],
            forms.get(2).map_or_else(|| plural(language, man), |p| (*p).to_owned()),
            forms.get(3).map_or_else(|| plural(language, forms[1]), |p| (*p).to_owned()),
        ),
    };
    let build = |singular: &str, plural: String, gender, habit| Noun {
        singular: singular.to_owned(),
        plural,
        gender,
        plural_gender: gender,
        habit,
        class,
    };
    [
        build(man, men, Gender::Masculine, habit),
        build(woman, women, Gender::Feminine, Habit::Regular),
    ]
}

/// The regular plural.
fn plural(language: Language, word: &str) -> String {
    match language {
        Language::English => {
            if let Some(stem) = word.strip_suffix("man") {
                return format!("{stem}men");
            }
            match word.strip_suffix('y') {
                Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{stem}ies"),
                _ => format!("{word}s"),
            }
        }
        Language::French => {
            if word.ends_with(['s', 'x', 'z']) {
                word.to_owned()
            } else if word.ends_with("eau") {
                format!("{word}x")
            } else if let Some(stem) = word.strip_suffix("al") {
                format!("{stem}aux")
            } else {
                format!("{word}s")
            }
        }
        Language::German => word.to_owned(),
        Language::Spanish => {
            if word == "gris" {
                "grises".to_owned()
            } else if word.ends_with('s') {
                word.to_owned()
            } else if let Some(stem) = word.strip_suffix('z') {
                format!("{stem}ces")
            } else if word.ends_with(['a', 'e', 'i', 'o', 'u', 'é', 'í']) {
                format!("{word}s")
            } else {
                format!("{word}es")
            }
        }
        Language::Italian => italian_plural(word),
    }
}

fn italian_plural(word: &str) -> String {
    for (ending, plural) in [("ca", "che"), ("ga", "ghe"), ("io", "i")] {
        if let Some(stem) = word.strip_suffix(ending) {
            return format!("{stem}{plural}");
        }
    }
    let stem = &word[..word.len() - 1];
    match word.as_bytes()[word.len() - 1] {
        b'a' => format!("{stem}e"),
        b'o' | b'e' => format!("{stem}i"),
        _ => word.to_owned(),
    }
}

fn adjective(language: Language, cell: &str) -> Adjective {
    let (precedes, cell) = cell.strip_prefix('<').map_or((false, cell), |rest| (true, rest));
    let forms: Vec<&str> = cell.split('/').collect();
    let m = forms[0];
    let forms = match language {
        Language::English | Language::German => {
            [m.to_owned(), m.to_owned(), m.to_owned(), m.to_owned()]
        }
        Language::French => {
            let f = forms.get(1).map_or_else(|| french_feminine(m), |f| (*f).to_owned());
            let plural_f = plural(language, &f);
            [m.to_owned(), f, plural(language, m), plural_f]
        }
        Language::Spanish => {
            let f = match forms.get(1).filter(|f| f.ends_with('a')) {
                Some(f) => (*f).to_owned(),
                None => m.strip_suffix('o').map_or_else(|| m.to_owned(), |s| format!("{s}a")),
            };
            let masculine =
                forms.iter().skip(1).find(|f| f.ends_with('s')).map(|f| (*f).to_owned());
            let plural_f = match &masculine {
                Some(p) if f == m => p.clone(),
                _ => plural(language, &f),
            };
            [m.to_owned(), f, masculine.unwrap_or_else(|| plural(language, m)), plural_f]
        }
        Language::Italian => {
            let f = match forms.get(1).filter(|f| f.ends_with('a')) {
                Some(f) => (*f).to_owned(),
                None => m.strip_suffix('o').map_or_else(|| m.to_owned(), |s| format!("{s}a")),
            };
            let masculine = forms
                .get(1)
                .filter(|p| p.ends_with('i'))
                .map_or_else(|| italian_plural(m), |p| (*p).to_owned());
            let plural_f = italian_plural(&f);
            [m.to_owned(), f, masculine, plural_f]
        }
    };
    Adjective { forms, precedes }
}

fn french_feminine(m: &str) -> String {
    if m.ends_with('e') { m.to_owned() } else { format!("{m}e") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms(language: Language, cell: &str) -> [String; 4] {
        adjective(language, cell).forms
    }

    #[test]
    fn adjectives_agree_in_gender_and_number() {
        assert_eq!(forms(Language::French, "gris"), ["gris", "grise", "gris", "grises"]);
        assert_eq!(forms(Language::Spanish, "joven/jóvenes")[3], "jóvenes");
        assert_eq!(
            forms(Language::Italian, "bianco/bianchi"),
            ["bianco", "bianca", "bianchi", "bianche"]
        );
    }

    #[test]
    fn every_language_has_the_same_nouns_in_the_same_places() {
        let french = Lexicon::new(Language::French);
        for language in Language::ALL {
            let lexicon = Lexicon::new(language);
            assert_eq!(lexicon.ranges, french.ranges, "{language:?}");
            assert_eq!(lexicon.nouns.len(), french.nouns.len(), "{language:?}");
        }
    }
}
